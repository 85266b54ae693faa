import os
from pathlib import Path

import numpy as np
import pytest

from svae.formats.star import StarTable, new_star, read_star, write_star

RELION_31 = """
# version 30001

data_optics

_rlnOpticsGroup        1
_rlnOpticsGroupName    'the first one'
_rlnVoltage            300.000000


# version 30001

data_particles

loop_
_rlnMicrographName #1
_rlnImageName #2
_rlnDefocusU #3
_rlnOpticsGroup #4
mic/a.mrc 000001@mic/a.mrcs 10000.50 1
mic/b.mrc 000002@mic/a.mrcs -1.20e+04 1
data_b.mrc 000003@mic/a.mrcs 1 1
"a b.mrc" 000001@mic/ü.mrcs 007 1

data_other
loop_
_rlnFoo #1
loop_
_rlnBar #1
_rlnOther #2
x [1,2]
"""


@pytest.fixture
def table(tmp_path: Path) -> StarTable:
    (tmp_path / "in.star").write_text(RELION_31)
    return read_star(tmp_path / "in.star")


def words(text: str) -> list[list[str]]:
    """The lines of a star as words: what is in it, whatever the blanks between."""
    return [line.split() for line in text.splitlines() if line.strip()]


def written(path: Path, table: StarTable) -> str:
    write_star(path, table)
    return path.read_text()


def test_what_was_read_is_written_value_by_value(tmp_path: Path, table: StarTable):
    text = written(tmp_path / "out.star", table)
    assert words(text) == words(RELION_31)
    assert len(table) == 4


@pytest.mark.parametrize(
    "name", ["relion31.star", "sample_relion_data.star", "empiar_10076_7.star"]
)
def test_real_stars_are_written_as_they_were(tmp_path: Path, name: str):
    path = Path(os.environ.get("SVAE_DATA_DIR", "")) / "particles" / name
    if not path.is_file():
        pytest.skip(f"SVAE_DATA_DIR has no {name}")
    assert words(written(tmp_path / "out.star", read_star(path))) == words(path.read_text())


def test_columns_are_changed_in_their_place_and_new_ones_come_last(
    tmp_path: Path, table: StarTable
):
    changed = table.with_columns(
        {
            "rlnAnglePsi": np.array([1.25, -90, 0, np.pi]),
            "rlnImageName": ["1@a", "2@b", "2@c", "3@c d"],
            "rlnClassNumber": np.array([3, 2, 2, 1]),
        }
    ).with_columns({"rlnVoltage": ["200"]}, optics=True)
    text = written(tmp_path / "out.star", changed.select(np.array([3, 0])))
    lines = words(text)

    assert ["_rlnImageName", "#2"] in lines
    assert ["_rlnClassNumber", "#6"] in lines
    assert ["_rlnVoltage", "200"] in lines
    rows = [line for line in lines if "@" in " ".join(line)]
    assert rows == [
        ['"a', 'b.mrc"', '"3@c', 'd"', "007", "1", "3.141593", "1"],
        ["mic/a.mrc", "1@a", "10000.50", "1", "1.250000", "3"],
    ]
    assert words(written(tmp_path / "same.star", table)) == words(RELION_31)


def test_a_long_loop_is_read_in_parts(
    tmp_path: Path, table: StarTable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("svae.formats.star._ROWS_AT_ONCE", 3)
    again = read_star(tmp_path / "in.star")
    for tag in ("rlnMicrographName", "rlnOpticsGroup"):
        assert again.column(tag).tolist() == table.column(tag).tolist()


def test_paths_that_are_no_text_are_written_as_they_were(tmp_path: Path, table: StarTable):
    odd = os.fsdecode(b"1@\xff.mrcs")
    write_star(tmp_path / "out.star", table.with_columns({"rlnImageName": [odd] * 4}))
    again = read_star(tmp_path / "out.star").column("rlnImageName")
    assert again.tolist() == [b"1@\xff.mrcs"] * 4


def test_a_new_star_is_one_of_relion_31(tmp_path: Path):
    star = new_star(
        {"rlnImageName": ["1@a.mrcs", "2@a.mrcs"], "rlnOpticsGroup": np.array([1, 1])},
        {"rlnOpticsGroup": np.array([1]), "rlnImagePixelSize": np.array([1.5])},
    )
    text = written(tmp_path / "new.star", star)
    again = read_star(tmp_path / "new.star")

    assert text.count("# version 30001") == 2
    assert again.column("rlnImagePixelSize", optics=True).tolist() == [b"1.500000"]
    assert again.column("rlnImageName").tolist() == [b"1@a.mrcs", b"2@a.mrcs"]
    assert again.column("rlnVoltage") is None


def test_windows_line_ends_are_read(tmp_path: Path, table: StarTable):
    path = tmp_path / "crlf.star"
    path.write_bytes(RELION_31.replace("\n", "\r\n").encode())
    assert words(written(tmp_path / "out.star", read_star(path))) == words(RELION_31)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column rlnImageName.*it has nothing"),
        (b"data_x\nloop_\n_rlnA\n1\n", "no column rlnImageName.*it has data_x"),
        (
            b"data_\nloop_\n_rlnImageName\n_rlnA\n1@a 2\n3@a\n",
            "no whole star.*line 6: expected 2 values, got '3@a'",
        ),
        (b"\x93NUMPY\x01\x00", "no whole star"),
        (
            b"data_\nloop_\n_rlnImageName\n_rlnImageName\n1@a 1@a\n",
            "no whole.*there twice",
        ),
    ],
)
def test_what_is_no_star_is_told_in_one_line(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "in.star"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"in.star: {message}") as caught:
        read_star(path)
    assert "\n" not in str(caught.value)


def test_columns_are_left_out(table: StarTable):
    left = table.without(["rlnDefocusU", "rlnVoltage", "rlnNone"])
    assert list(left.loops[left.particles].columns) == [
        *("rlnMicrographName", "rlnImageName", "rlnOpticsGroup")
    ]
    assert left.column("rlnVoltage", optics=True) is not None


def test_columns_of_another_length_are_refused(table: StarTable):
    with pytest.raises(ValueError, match="rlnFoo: expected 4 values, got 2"):
        table.with_columns({"rlnFoo": ["1", "2"]})
