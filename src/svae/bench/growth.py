"""How the time of a step grows with the size of the images, the width and the batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from svae.bench.measure import Work
from svae.figures.style import LINE_COLOURS, SMALL_SIZE, above, axes_at, legend_above, new_page

__all__ = ["AXES", "GROWN", "Axis", "grown", "growth_figure"]

#: The workload that is made larger and smaller.
GROWN = "spatial_vae"
# In inches; headings and legends are in the room above the axes.
LEFT, BOTTOM, WIDTH, HEIGHT, TOP, GAP = 0.68, 0.5, 2.45, 1.9, 0.48, 0.28


@dataclass(frozen=True)
class Axis:
    """What grows.

    Arguments:
        name: Its key in `bench.json`.
        values: Those that are measured.
        heading: What is above the axes.
        label: What is below them.
        power: With which power of it the operations grow.
        law: That in words.
    """

    name: str
    values: tuple[int, ...]
    heading: str
    label: str
    power: int
    law: str


AXES = (
    Axis(
        *("image_side_px", (28, 50, 100, 128), "Image area", "pixels of an image"),
        *(2, "in proportion to area"),
    ),
    Axis(
        *("width", (125, 250, 500, 1000), "Width of the networks", "units in a layer"),
        *(2, "in proportion to width²"),
    ),
    Axis(
        *("batch_size", (25, 50, 100, 200), "Batch", "images in a step"),
        *(1, "in proportion to batch"),
    ),
)


def grown(work: Work, axis: Axis, value: int) -> Work:
    """The same training with another value of what grows."""
    if axis.name == "image_side_px":
        return replace(work, image_shape=(work.image_shape[0], value, value))
    if axis.name == "batch_size":
        return replace(work, batch_size=value)
    widths = (f"model.{part}.hidden={value}" for part in ("encoder", "generator"))
    return replace(work, overrides=(*work.overrides, *widths))


def growth_figure(measured: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str) -> Figure:
    """Seconds per step against each of `AXES`, and what proportion to the last would be.

    Arguments:
        measured: The rows of each axis, by its name; those without a time are left out.
        title: On top.
    """
    points = {
        axis.name: np.array(
            [
                (row[axis.name], row["seconds_per_step"])
                for row in measured[axis.name]
                if "seconds_per_step" in row
            ]
        ).reshape(-1, 2)
        for axis in AXES
    }
    laws = {axis.name: _law(points[axis.name], axis.power) for axis in AXES}
    every = np.concatenate([*(p[:, 1] for p in points.values()), *laws.values()])
    low, high = (every.min() / 1.25, every.max() * 1.25) if len(every) else (0.1, 1.0)

    width = LEFT + len(AXES) * (WIDTH + GAP)
    figure = new_page(width, BOTTOM + HEIGHT + TOP, title)
    for number, axis in enumerate(AXES):
        axes = axes_at(figure, LEFT + number * (WIDTH + GAP), BOTTOM, WIDTH, HEIGHT)
        _draw(axes, axis, points[axis.name], laws[axis.name])
        axes.set_ylim(low, high)
        if number == 0:
            axes.set_ylabel("seconds per step")
        else:
            axes.yaxis.set_major_formatter(NullFormatter())
    return figure


def _law(points: np.ndarray, power: int) -> np.ndarray:
    """What growth with that power gives at the points, through the last of them."""
    if not len(points):
        return np.empty(0)
    x, y = points.T
    result: np.ndarray = y[-1] * (x / x[-1]) ** power
    return result


def _draw(axes: Axes, axis: Axis, points: np.ndarray, law: np.ndarray) -> None:
    above(axes, axis.heading, fontsize=SMALL_SIZE + 1)
    axes.set(xscale="log", yscale="log", xlabel=axis.label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    area = axis.name == "image_side_px"
    ticks = np.array(axis.values, dtype=float) ** (2 if area else 1)
    axes.set_xlim(ticks[0] / 1.2, ticks[-1] * 1.2)
    axes.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    labels = [f"{value}²" if area else str(value) for value in axis.values]
    axes.xaxis.set_major_formatter(FuncFormatter(lambda _, place: labels[place or 0]))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    if not len(points):
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center")
        return
    x = points[:, 0] ** (2 if area else 1)
    (line,) = axes.plot(x, law, "--", color="0.55", linewidth=1.0)
    (dots,) = axes.plot(x, points[:, 1], "o", color=LINE_COLOURS[0], markersize=4.5, zorder=3)
    legend_above(axes, {"measured": dots, axis.law: line})
