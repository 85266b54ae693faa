"""The look that all figures share: the page, its fonts and colours, and how text is written."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator

__all__ = [
    "CLASS_COLOURS",
    "DENSITY",
    "DIFFERENCE",
    "LABEL_SIZE",
    "LINE_COLOURS",
    "MARGIN",
    "MOST_POINTS",
    "SMALL_SIZE",
    "above",
    "add_bar",
    "axes_at",
    "decimal",
    "few_ticks",
    "file_stem",
    "label_of",
    "legend_above",
    "new_page",
    "padded_limits",
    "point_look",
    "printable",
    "shortened",
    "signed",
    "some_of",
    "text_inches",
]

DPI = 150
TITLE_SIZE, LABEL_SIZE, SMALL_SIZE = 10.5, 9.0, 8.0
# In inches.
MARGIN, TITLE_LINE, TITLE_GAP = 0.08, 0.19, 0.12

# Sets of colours that colour-blind readers tell apart: of Okabe and Ito (2008) for lines, and of
# Tol (2021, "muted") with black for up to ten classes.
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
CLASS_COLOURS = (
    "#332288",
    "#CC6677",
    "#117733",
    "#DDCC77",
    "#88CCEE",
    "#882255",
    "#44AA99",
    "#999933",
    "#AA4499",
    "#000000",
)
DENSITY, DIFFERENCE = "viridis", "RdBu_r"

# More points than this take long and hide each other.
MOST_POINTS = 20_000


def new_page(width: float, height: float, title: str) -> Figure:
    """A figure of `width` x `height` inches and, on top, a title in as many lines as needed.

    It has an Agg canvas of its own and is unknown to pyplot, so that it needs no screen and
    threads may draw at the same time.
    """
    lines = _lines(printable(title), width - 2 * MARGIN)
    total = height + (TITLE_GAP + TITLE_LINE * len(lines) if lines else 0.0)
    figure = Figure(figsize=(width, total), dpi=DPI)
    FigureCanvasAgg(figure)
    for row, line in enumerate(lines):
        top = total - MARGIN - row * TITLE_LINE
        figure.text(
            MARGIN / width, top / total, line, fontsize=TITLE_SIZE, va="top", parse_math=False
        )
    return figure


def axes_at(
    figure: Figure, left: float, bottom: float, width: float, height: float, **options: Any
) -> Axes:
    """Axes at a place given in inches from the lower left corner of the page."""
    page_width, page_height = figure.get_size_inches()
    box = (left / page_width, bottom / page_height, width / page_width, height / page_height)
    axes = figure.add_axes(box, **options)
    axes.tick_params(length=3, width=0.6, labelsize=SMALL_SIZE)
    axes.xaxis.label.set_fontsize(LABEL_SIZE)
    axes.yaxis.label.set_fontsize(LABEL_SIZE)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)
    return axes


def add_bar(
    axes: Axes,
    label: str,
    low: float,
    high: float,
    colours: str,
    *,
    extend: str = "neither",
    whole: bool = False,
) -> Colorbar:
    """Fill `axes` with a vertical colour bar of the values from `low` to `high`.

    Arguments:
        axes: Where the bar goes.
        label: What the values are, with their unit.
        low: The value of the first colour.
        high: The value of the last colour.
        colours: The name of the colour map.
        extend: Which ends have values beyond: `neither`, `min`, `max` or `both`.
        whole: Whether the values are whole numbers.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    inches = axes.get_position().height * figure.get_size_inches()[1]
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, high), colours),
        cax=axes,
        ticks=few_ticks(max(2, round(inches / 0.4)), integer=whole),
        format=lambda value, _: f"{value + 0.0:.5g}".replace("-", "−"),
        extend=extend,
        extendfrac=0.06,
    )
    bar.outline.set_linewidth(0.6)
    axes.tick_params(length=2, width=0.6, labelsize=SMALL_SIZE - 0.5, pad=2)
    bar.set_label(label, size=SMALL_SIZE, labelpad=3)
    return bar


def signed(value: float, digits: int) -> str:
    """`value` with its sign, a minus sign being one and no hyphen."""
    return f"{_rounded(value, digits):+.{digits}f}".replace("-", "−")


def decimal(value: float, digits: int) -> str:
    """`value` with a minus sign where it is negative."""
    return f"{_rounded(value, digits):.{digits}f}".replace("-", "−")


def file_stem(name: str) -> str:
    """A file name without folder and ending."""
    return re.sub(r"(?<=.)\.[A-Za-z][A-Za-z0-9]{1,4}$", "", re.split(r"[/\\]", name.strip())[-1])


def shortened(text: str, inches: float, size: float) -> str:
    """Of a long text as much of both ends as fits, more of the last: it tells files apart.

    Arguments:
        text: The text.
        inches: How long it may be.
        size: The size of its letters in points.
    """
    text = short = printable(text)
    letters = len(text)
    while letters > 2 and text_inches(short, size) > inches:
        letters -= 1
        head = letters // 4 if letters >= 12 else 0
        short = f"{text[:head]}…{text[head - letters :]}"
    return short


def printable(text: str) -> str:
    """`text` in one line, with a box for each character that the font does not have."""
    text = " ".join(text.split())
    return "".join(letter if ord(letter) in _characters() else "□" for letter in text)


def text_inches(text: str, size: float) -> float:
    """The length of a line of text whose letters have `size` points."""
    font = get_font(findfont(FontProperties()))
    font.set_size(size, 72)
    font.set_text(text)
    return font.get_width_height()[0] / 64 / 72  # from 64ths of a point


def some_of(count: int) -> np.ndarray:
    """Which points are drawn, in a random order that is always the same: no class lies on top."""
    return np.random.default_rng(0).permutation(count)[:MOST_POINTS]


def point_look(count: int, inches: float) -> dict[str, Any]:
    """Keywords of `Axes.scatter`, so that few points are seen and many do not hide each other.

    Arguments:
        count: The number of points.
        inches: The side of the axes.
    """
    room = inches**2 / max(count, 1)
    return {
        "s": float(np.clip(570 * room, 3, 24)),
        "alpha": float(np.clip(120 * room, 0.25, 0.9)),
        "linewidths": 0,
        "rasterized": True,
    }


def padded_limits(values: np.ndarray) -> tuple[float, float]:
    """The range of the values with a margin of 4 %; about a single value, a tenth of it or 0.5."""
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low)
    if margin <= 1e-9 * abs(low):
        margin = 0.1 * abs(low) or 0.5
    return low - margin, high + margin


def few_ticks(count: int, **options: Any) -> MaxNLocator:
    """About `count` ticks at multiples of 1, 2, 2.5 or 5."""
    return MaxNLocator(count, steps=[1, 2, 2.5, 5, 10], **options)


def above(axes: Axes, text: str, place: float = 0.0, **options: Any) -> None:
    """Text over axes, where a legend has room between them.

    Arguments:
        axes: The axes.
        text: What is written.
        place: Where along them, from 0 (left) to 1.
        options: Of `Axes.annotate`.
    """
    axes.annotate(
        text,
        (place, 1),
        (0, 17),
        xycoords="axes fraction",
        textcoords="offset points",
        va="bottom",
        **options,
    )


def legend_above(axes: Axes, named: Mapping[str, Artist]) -> None:
    """A legend over axes, of what is drawn by its name; up to four beside each other."""
    axes.legend(
        list(named.values()),
        list(named),
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        frameon=False,
        fontsize=SMALL_SIZE - 1,
        handlelength=2.0,
        columnspacing=1.0,
        borderpad=0.1,
        borderaxespad=0.2,
    )


def label_of(label: int, names: Sequence[str] | None) -> str:
    """The name of a label, else its number."""
    if names is not None and 0 <= label < len(names):
        return str(names[label])
    return str(label)


def _rounded(value: float, digits: int) -> float:
    # `+ 0.0` takes the sign from a rounded minus zero.
    return round(value, digits) + 0.0


def _lines(title: str, inches: float) -> list[str]:
    """The title in lines that are no longer than `inches`."""
    for letters in range(len(title), 0, -1):
        lines = textwrap.wrap(title, letters)
        if all(text_inches(line, TITLE_SIZE) <= inches for line in lines):
            return lines
    return []


@cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())
