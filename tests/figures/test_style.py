"""Text that fits its place."""

import pytest
from tests.figures.pictures import check_page

from svae.figures.style import (
    decimal,
    file_stem,
    new_page,
    printable,
    shortened,
    signed,
    text_inches,
)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("/data/a.b/image_1.tiff", "image_1"),
        (r"C:\data\image.PNG", "image"),
        ("galaxy 1.25", "galaxy 1.25"),
        ("stack.mrcs", "stack"),
        (".png", ".png"),
        ("plain", "plain"),
    ],
)
def test_a_file_name_loses_folder_and_ending(name: str, stem: str) -> None:
    assert file_stem(name) == stem


@pytest.mark.parametrize("inches", [0.3, 0.6, 1.0])
def test_long_texts_keep_most_of_their_end(inches: float) -> None:
    text = "2026-11-21_plate_7_well_B03_000123"
    short = shortened(text, inches, 7.5)
    assert text_inches(short, 7.5) <= inches
    assert text_inches(short, 7.5) > inches - 0.15
    head, tail = short.split("…")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(tail) > len(head)
    assert shortened("short", 1.0, 7.5) == "short"


def test_what_the_font_lacks_is_a_box() -> None:
    assert printable("a\n\tθ 日本") == "a θ □□"


@pytest.mark.parametrize("title", ["", "One", "word " * 40, "w" * 300, "50 $ and _x_ {y} \\frac"])
@pytest.mark.parametrize("width", [1.0, 3.2, 9.0])
def test_titles_are_broken_where_the_page_ends(title: str, width: float) -> None:
    figure = new_page(width, 1.0, title)
    shown = "".join(text.get_text() for text in figure.texts)
    assert shown.replace(" ", "") == title.replace(" ", "")
    assert bool(title) == (figure.get_size_inches()[1] > 1)
    if title:
        check_page(figure)


def test_minus_signs() -> None:
    assert [signed(value, 1) for value in (-0.04, 0.04, -1.25)] == ["+0.0", "+0.0", "−1.2"]
    assert [decimal(value, 1) for value in (-0.04, 2.0, -1.26)] == ["0.0", "2.0", "−1.3"]
