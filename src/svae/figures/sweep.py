"""What a sweep shows: a metric against what was swept, and how its runs learned."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from svae.curves import LARGEST, robust_range
from svae.figures.style import (
    DENSITY,
    LINE_COLOURS,
    SMALL_SIZE,
    add_bar,
    axes_at,
    decimal,
    few_ticks,
    new_page,
    padded_limits,
    printable,
    shortened,
    text_inches,
)

__all__ = ["Curve", "Point", "learning_figure", "sweep_figure", "sweep_map_figure"]

#: Values that span more than so many powers of ten have a logarithmic axis.
LOG_FROM = 1.5
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))
MARKERS = ("o", "s", "^")
# In inches; a heading is in the room above the axes.
LEFT, BOTTOM, TOP, GAP, NO_HEADING = 0.75, 0.52, 0.26, 0.22, 0.12
WIDTH, HEIGHT = 3.3, 2.6
CURVES_WIDTH, CURVES_HEIGHT = 2.3, 1.8
LONGEST = 1.9
ROW, LINE_ROW = 0.2, 0.13


class Point(NamedTuple):
    """A run in a figure of a metric.

    Arguments:
        x: The value of what was swept along the axis.
        line: The values of what tells lines apart.
        value: The metric.
        panel: The axes that it is in.
        ended: Whether the run has ended; else it may still change.
    """

    x: float | str
    line: tuple[str, ...]
    value: float
    panel: str = ""
    ended: bool = True


class Curve(NamedTuple):
    """A run in a figure of what was learned.

    Arguments:
        line: The values of what tells lines apart.
        epochs: Of the values.
        values: The metric.
        panel: The axes that it is in.
        state: What became of the run.
    """

    line: tuple[str, ...]
    epochs: Sequence[float]
    values: Sequence[float]
    panel: str = ""
    state: str = "finished"


class Look(NamedTuple):
    """How a line is drawn."""

    colour: str
    dash: Any
    marker: str


def sweep_figure(
    points: Sequence[Point],
    *,
    x: str,
    metric: str,
    lines: Sequence[str],
    known: Sequence[tuple[str, ...]],
    title: str,
    joined: bool = True,
) -> Figure:
    """A metric against what was swept: a line through the means, with every run as a small dot.

    The bars are sample standard deviations; hollow dots are runs that have not ended. Where `x`
    is no number, its values lie below each other and the metric runs to the right. Panels have
    axes of their own, because metrics of different images do not compare. A few extreme values
    may lie outside of the axes, which then say how many.

    Arguments:
        points: The runs; at least one value is finite.
        x: What lies along the axis.
        metric: The name of the values.
        lines: The names of what tells lines apart.
        known: All lines of the sweep, so that its figures have the same colours.
        title: On top.
        joined: Whether runs of one line differ in their seed alone; else they are dots only.
    """
    points = [point for point in points if abs(point.value) < LARGEST]
    looks = _looks(known, [point.line for point in points])
    numeric = all(not isinstance(point.x, str) for point in points)
    panels = list(dict.fromkeys(point.panel for point in points))
    categories = list(dict.fromkeys(str(point.x) for point in points))
    rows = len(categories) * (ROW + LINE_ROW * len(looks))
    left = LEFT if numeric else 0.25 + max(_inches(name) for name in categories)
    height = HEIGHT if numeric else max(rows, 0.6)
    gap = LEFT if numeric else GAP
    named = _legend_of(looks, joined=joined) if lines else {}
    if not all(point.ended for point in points):
        named[UNFINISHED] = _mark(color="0.35", marker="o", markerfacecolor="white")

    across = left + len(panels) * (WIDTH + gap) - gap + GAP
    top = TOP if panels != [""] else NO_HEADING
    figure = new_page(across + _legend_width(named, lines), BOTTOM + height + top, title)
    for number, panel in enumerate(panels):
        axes = axes_at(figure, left + number * (WIDTH + gap), BOTTOM, WIDTH, height)
        shown = [point for point in points if point.panel == panel]
        if numeric:
            _draw_lines(axes, shown, looks, joined)
            axes.set_xlabel(x)
            axes.set_ylabel(_with_unit(metric) if number == 0 else "")
        else:
            _draw_rows(axes, shown, looks, categories, joined)
            if number:
                axes.yaxis.set_major_formatter(NullFormatter())
            axes.set_xlabel(_with_unit(metric))
        _heading(axes, panel)
    _legend(figure, across, BOTTOM + height, named, lines)
    return figure


def sweep_map_figure(
    points: Sequence[tuple[float, float, float]], *, x: str, y: str, metric: str, title: str
) -> Figure:
    """A metric by two numbers that were swept: a cell for each pair, the mean of its runs in it.

    Where most cells would be empty, as those of random values are, each run is a dot.

    Arguments:
        points: The two numbers and the metric of each run; at least one metric is finite.
        x: The name of the first number.
        y: The name of the second.
        metric: The name of the values.
        title: On top.
    """
    found = np.array([p for p in points if abs(p[2]) < LARGEST], dtype=float)
    columns, rows = np.unique(found[:, 0]), np.unique(found[:, 1])
    means = np.full((len(rows), len(columns)), math.nan)
    for row, column in {(p[1], p[0]) for p in found.tolist()}:
        here = found[(found[:, 0] == column) & (found[:, 1] == row), 2]
        means[np.searchsorted(rows, row), np.searchsorted(columns, column)] = here.mean()
    grid = np.isfinite(means).sum() > 0.5 * means.size
    shown = means[np.isfinite(means)] if grid else found[:, 2]
    low, high = robust_range(shown.tolist())

    width = min(max(0.62 * len(columns), 1.6), 6.0) if grid else WIDTH
    height = min(max(0.42 * len(rows), 1.2), 4.5) if grid else HEIGHT
    figure = new_page(LEFT + width + 1.05, BOTTOM + height + 0.1, title)
    axes = axes_at(figure, LEFT, BOTTOM, width, height)
    axes.set(xlabel=x, ylabel=y)
    if grid:
        _draw_cells(axes, means, columns, rows, Normalize(low, high))
    else:
        # The best of those that lie on each other is seen.
        found = found[found[:, 2].argsort()]
        axes.scatter(
            found[:, 0],
            found[:, 1],
            s=26,
            c=found[:, 2],
            cmap=DENSITY,
            norm=Normalize(low, high),
            linewidths=0.4,
            edgecolors="white",
        )
        _number_axis(axes, "x", found[:, 0])
        _number_axis(axes, "y", found[:, 1])
    ends = "min" * bool(shown.min() < low) + "max" * bool(shown.max() > high)
    extend = {"": "neither", "minmax": "both"}.get(ends, ends)
    bar = axes_at(figure, LEFT + width + 0.12, BOTTOM, 0.12, height)
    if high > low:
        add_bar(bar, _with_unit(metric), low, high, DENSITY, extend=extend)
    else:
        bar.remove()
    return figure


def learning_figure(
    curves: Sequence[Curve],
    *,
    metric: str,
    lines: Sequence[str],
    known: Sequence[tuple[str, ...]],
    panels: str,
    shared: bool,
    title: str,
) -> Figure:
    """A metric by epoch, a curve for each run.

    A circle ends the curve of a run that has not ended, a cross that of one that failed.

    Arguments:
        curves: The runs; at least one has a finite value.
        metric: The name of the values.
        lines: The names of what tells lines apart.
        known: All lines of the sweep, so that its figures have the same colours.
        panels: The name of what tells panels apart.
        shared: Whether the panels show the same range of the metric.
        title: On top.
    """
    looks = _looks(known, [curve.line for curve in curves])
    names = list(dict.fromkeys(curve.panel for curve in curves))
    named = _legend_of(looks, marked=False) if lines else {}
    for marker, (name, states) in ENDS.items():
        if any(curve.state in states for curve in curves):
            named[name] = _mark(color="0.35", marker=marker, markerfacecolor="white")
    single = len(names) == 1
    wide, high = (WIDTH, HEIGHT) if single else (CURVES_WIDTH, CURVES_HEIGHT)
    across = min(len(names), 2 if len(names) == 4 else 3)
    down = -(-len(names) // across)
    top = NO_HEADING if single else TOP
    step_x, step_y = wide + (GAP if shared else LEFT), BOTTOM + high + top
    left = LEFT + across * step_x - (0 if shared else LEFT - GAP)
    figure = new_page(left + _legend_width(named, lines), down * step_y, title)
    last = max(epoch for curve in curves for epoch in curve.epochs)
    for number, name in enumerate(names):
        row, column = divmod(number, across)
        bottom = BOTTOM + (down - 1 - row) * step_y
        axes = axes_at(figure, LEFT + column * step_x, bottom, wide, high)
        own = [curve for curve in curves if curve.panel == name]
        _draw_curves(axes, own, looks)
        # The first epochs are far below all others.
        late = [v for c in (curves if shared else own) for v in c.values[len(c.values) // 4 :]]
        every = [value for value in late if abs(value) < LARGEST]
        axes.set(xlim=padded_limits(np.array([0.0, last])), xlabel="epoch")
        axes.set_ylim(padded_limits(np.array(robust_range(every or [0.0]))))
        axes.xaxis.set_major_locator(few_ticks(5, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(few_ticks(5))
        if column == 0:
            axes.set_ylabel(_with_unit(metric))
        elif shared:
            axes.yaxis.set_major_formatter(NullFormatter())
        _heading(axes, "" if single else f"{panels} {name}")
    _legend(figure, left, down * step_y - top, named, lines)
    return figure


#: What is at the end of a curve, and in which states of the run.
UNFINISHED = "not finished"
ENDS = {"o": (UNFINISHED, ("running", "interrupted", "pruned")), "x": ("failed", ("failed",))}


def _looks(
    known: Sequence[tuple[str, ...]], drawn: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], Look]:
    """Of two names, one gives the colour and the other the dash; else each line has its own."""
    parts = [list(dict.fromkeys(values)) for values in zip(*known, strict=True)]
    order = {line: i for i, line in enumerate(dict.fromkeys(known))}
    looks = {line: (i % len(LINE_COLOURS), i // len(LINE_COLOURS)) for line, i in order.items()}
    if len(parts) == 2:
        many = 0 if len(parts[0]) >= len(parts[1]) else 1
        if len(parts[many]) <= len(LINE_COLOURS) and len(parts[1 - many]) <= len(DASHES):
            looks = {
                line: (parts[many].index(line[many]), parts[1 - many].index(line[1 - many]))
                for line in order
            }
    return {
        line: Look(LINE_COLOURS[colour], DASHES[dash % len(DASHES)], MARKERS[dash % len(MARKERS)])
        for line, (colour, dash) in looks.items()
        if line in set(drawn)
    }


def _draw_lines(
    axes: Axes, points: Sequence[Point], looks: Mapping[tuple[str, ...], Look], joined: bool
) -> None:
    numbers = np.array([float(point.x) for point in points])
    log = _number_axis(axes, "x", numbers)
    # Beside each other, so that one bar does not hide another, and nearer than the next value.
    places = np.unique(np.log10(numbers) if log else numbers)
    near = 0.5 * float(np.diff(places).min()) if len(places) > 1 else 0.0
    step = min(0.014 * float(np.ptp(places)), near / len(looks))
    ends: list[float] = []
    for number, (line, look) in enumerate(looks.items()):
        own = sorted((p for p in points if p.line == line), key=lambda p: p.x)
        aside = (number - (len(looks) - 1) / 2) * step
        at, mean, std = [], [], []
        for place, runs in groupby(own, key=lambda p: float(p.x)):
            here = list(runs)
            values = [p.value for p in here]
            at.append(place * 10**aside if log else place + aside)
            mean.append(statistics.fmean(values))
            std.append(_deviation(values))
            if len(here) > 1 or not joined:
                _dots(axes, [at[-1]] * len(here), values, here, look, joined)
            elif not here[0].ended:
                _dots(axes, at[-1:], values, here, look, False)
        if joined:
            _means(axes, at, mean, look, y_std=std)
        ends += [value + way * s for value, s in zip(mean, std, strict=True) for way in (-1, 1)]
    _show(axes, "y", points, ends if joined else [])


def _draw_rows(
    axes: Axes,
    points: Sequence[Point],
    looks: Mapping[tuple[str, ...], Look],
    categories: Sequence[str],
    joined: bool,
) -> None:
    ends: list[float] = []
    height = ROW + LINE_ROW * len(looks)
    for row, category in enumerate(categories):
        for place, (line, look) in enumerate(looks.items()):
            here = [p for p in points if (str(p.x), p.line) == (category, line)]
            if not here:
                continue
            values = [p.value for p in here]
            at = row + (place - (len(looks) - 1) / 2) * LINE_ROW / height
            mean = statistics.fmean(values)
            std = _deviation(values)
            ends += [mean - std, mean + std]
            if len(here) > 1 or not joined or not here[0].ended:
                _dots(axes, values, [at] * len(here), here, look, joined and len(here) > 1)
            if joined:
                _means(axes, [mean], [at], look, x_std=[std])
    axes.set_ylim(len(categories) - 0.5, -0.5)
    axes.yaxis.set_major_locator(FixedLocator(list(range(len(categories)))))
    names = [shortened(name, LONGEST, SMALL_SIZE) for name in categories]
    axes.set_yticks(range(len(categories)), names, parse_math=False)
    axes.tick_params(axis="y", length=0)
    for row in range(1, len(categories)):
        axes.axhline(row - 0.5, color="0.85", linewidth=0.6, zorder=0)
    _show(axes, "x", points, ends if joined else [])


def _dots(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    runs: Sequence[Point],
    look: Look,
    faint: bool,
) -> None:
    """The runs by themselves; those that have not ended are hollow."""
    for ended in (True, False):
        chosen = [i for i, run in enumerate(runs) if run.ended == ended]
        axes.scatter(
            [x[i] for i in chosen],
            [y[i] for i in chosen],
            s=9 if faint else 17,
            marker=look.marker,
            facecolors=look.colour if ended else "white",
            edgecolors=look.colour,
            linewidths=0 if ended else 0.8,
            alpha=0.45 if faint and ended else 1.0,
            zorder=2.5 if faint else 4,
        )


def _means(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    look: Look,
    *,
    x_std: Sequence[float] | None = None,
    y_std: Sequence[float] | None = None,
) -> None:
    axes.errorbar(
        x,
        y,
        xerr=x_std,
        yerr=y_std,
        color=look.colour,
        linestyle=look.dash,
        linewidth=1.3,
        marker=look.marker,
        markersize=4,
        elinewidth=0.9,
        capsize=2,
        capthick=0.9,
        zorder=3,
    )


def _draw_cells(
    axes: Axes, means: np.ndarray, columns: np.ndarray, rows: np.ndarray, scale: Normalize
) -> None:
    axes.imshow(means, cmap=DENSITY, norm=scale, origin="lower", aspect="auto")
    axes.set_facecolor("0.93")
    axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
    axes.tick_params(length=0)
    if len(columns) > 10 or len(rows) > 12:
        axes.xaxis.set_major_locator(FixedLocator(range(0, len(columns), len(columns) // 10 + 1)))
        axes.yaxis.set_major_locator(FixedLocator(range(0, len(rows), len(rows) // 12 + 1)))
        return
    digits = max(0, 3 - math.floor(math.log10(np.nanmax(np.abs(means)) or 1.0)))
    for (row, column), mean in np.ndenumerate(means):
        if math.isfinite(mean):
            # Viridis is dark where values are low.
            colour = "white" if scale(mean) < 0.6 else "black"
            text = decimal(mean, digits)
            axes.text(
                column, row, text, color=colour, fontsize=SMALL_SIZE, ha="center", va="center"
            )


def _draw_curves(
    axes: Axes, curves: Sequence[Curve], looks: Mapping[tuple[str, ...], Look]
) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    strong = len(curves) <= 40
    for curve in curves:
        look = looks[curve.line]
        style: dict[str, Any] = {"color": look.colour, "alpha": 0.8 if strong else 0.4}
        axes.plot(
            curve.epochs,
            curve.values,
            linestyle=look.dash,
            linewidth=1.0 if strong else 0.7,
            marker="." if len(curve.epochs) == 1 else "",
            **style,
        )
        for marker, (_, states) in ENDS.items():
            if curve.state in states:
                axes.plot(
                    curve.epochs[-1:],
                    curve.values[-1:],
                    marker=marker,
                    markersize=4.5,
                    markerfacecolor="white",
                    markeredgewidth=1.0,
                    zorder=4,
                    **style,
                )


def _number_axis(axes: Axes, which: str, numbers: np.ndarray) -> bool:
    """Scale, limits and ticks for the values of what was swept; whether it is logarithmic."""
    values = np.unique(numbers)
    log = bool(values[0] > 0 and values[-1] / values[0] > 10**LOG_FROM)
    axis = axes.xaxis if which == "x" else axes.yaxis
    places = np.log10(values) if log else values
    margin = 0.06 * float(np.ptp(places)) or (0.2 if log else 0.1 * abs(places[0]) or 0.5)
    low, high = places[0] - margin, places[-1] + margin
    limits = (10**low, 10**high) if log else (low, high)
    if which == "x":
        axes.set(xscale="log" if log else "linear", xlim=limits)
    else:
        axes.set(yscale="log" if log else "linear", ylim=limits)
    if len(values) > 10:
        axis.set_major_locator(LogLocator() if log else few_ticks(6))
    else:
        room = [text_inches(f"{value:g}", SMALL_SIZE) / WIDTH for value in values]
        if which == "y":
            room = [SMALL_SIZE / 72 / HEIGHT] * len(values)
        axis.set_major_locator(FixedLocator(_apart(values, (places - low) / (high - low), room)))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    axis.set_minor_formatter(NullFormatter())
    return log


def _apart(values: np.ndarray, places: np.ndarray, room: Sequence[float]) -> list[float]:
    """Those values whose labels do not touch, the largest among them.

    Arguments:
        values: In their order.
        places: Where they are along the axis.
        room: How much of the axis each label takes.
    """
    kept: list[float] = []
    limit = math.inf
    for value, place, size in reversed(list(zip(values.tolist(), places, room, strict=True))):
        if place + size / 2 < limit:
            kept.insert(0, value)
            limit = place - size / 2 - 0.02
    return kept


def _show(axes: Axes, which: str, points: Sequence[Point], ends: Sequence[float]) -> None:
    """Limits and ticks for a metric and the ends of its bars, and how many runs are outside."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if which == "x" else "y", linewidth=0.4, alpha=0.5)
    values = [point.value for point in points]
    within = [end for end in ends if math.isfinite(end)]
    low, high = padded_limits(np.array(robust_range([*values, *within])))
    outside = sum(not low <= value <= high for value in values)
    if which == "x":
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(few_ticks(5))
    else:
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(few_ticks(6))
    if outside:
        note = f"{outside} of {len(values)} runs outside"
        axes.set_title(note, loc="right", fontsize=SMALL_SIZE - 1, color="0.35", pad=4)


def _deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; NaN, for which no bar is drawn, of a single value."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _heading(axes: Axes, text: str) -> None:
    text = shortened(text, WIDTH, SMALL_SIZE + 1)
    axes.set_title(text, loc="left", fontsize=SMALL_SIZE + 1, pad=4, parse_math=False)


def _legend_of(
    looks: Mapping[tuple[str, ...], Look], *, marked: bool = True, joined: bool = True
) -> dict[str, Artist]:
    return {
        shortened(", ".join(line), LONGEST, SMALL_SIZE): _mark(
            color=look.colour,
            linestyle=look.dash if joined else "none",
            linewidth=1.3,
            marker=look.marker if marked else "",
        )
        for line, look in looks.items()
    }


def _mark(**look: Any) -> Line2D:
    options: dict[str, Any] = {"linestyle": "none", "markersize": 4} | look
    return Line2D([], [], **options)


def _legend_width(named: Mapping[str, Artist], lines: Sequence[str]) -> float:
    texts = [*named, ", ".join(lines)]
    return 0.65 + max(_inches(text) for text in texts) if named else 0.0


def _legend(
    figure: Figure, left: float, top: float, named: Mapping[str, Artist], lines: Sequence[str]
) -> None:
    """To the right of the axes, what is drawn by its name."""
    if not named:
        return
    width, height = figure.get_size_inches()
    legend = figure.legend(
        list(named.values()),
        list(named),
        title=shortened(", ".join(lines), LONGEST, SMALL_SIZE),
        loc="upper left",
        bbox_to_anchor=(left / width, top / height),
        frameon=False,
        fontsize=SMALL_SIZE,
        title_fontsize=SMALL_SIZE,
        alignment="left",
        handlelength=2.4,
        borderpad=0.0,
        borderaxespad=0.0,
    )
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)


def _inches(text: str) -> float:
    return min(text_inches(printable(text), SMALL_SIZE), LONGEST)


def _with_unit(metric: str) -> str:
    """The name of a metric with its unit."""
    name = metric.rpartition("/")[2]
    if name in ("elbo", "log_likelihood", "iwae_bound", "objective") or "kl_" in name:
        return f"{metric} (nats per image)"
    for ending, unit in (("_deg", "degrees"), ("_px", "px"), ("seconds", "s")):
        if name.endswith(ending):
            return f"{metric} ({unit})"
    return metric
