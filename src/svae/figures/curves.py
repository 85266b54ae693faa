"""Training curves."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from svae.curves import LARGEST, LATENT_NAMES, robust_range
from svae.figures.style import (
    LINE_COLOURS,
    SMALL_SIZE,
    above,
    axes_at,
    decimal,
    few_ticks,
    legend_above,
    new_page,
    padded_limits,
)

__all__ = ["curves_figure"]

SPLITS = ("train", "val")
# Up to here every value has a dot.
MOST_DOTS = 40
# In inches; headings and legends are in the room above the axes.
LEFT, BOTTOM, WIDTH, HEIGHT, TOP = 0.75, 0.5, 3.1, 1.8, 0.5


@dataclass(frozen=True)
class Line:
    """A column of the table, and how it looks."""

    column: str
    name: str
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines that share axes."""

    heading: str
    unit: str
    lines: Sequence[Line]


def curves_figure(rows: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Figure:
    """ELBO, log-likelihood, the divergence of each latent, and the learning rate by epoch.

    What is missing, empty or not finite is left out, and so is a panel without any value, except
    that of the ELBO. A few extreme values, as of first epochs, may lie outside of the axes; the
    panel says how many. A star is at the best validation ELBO.

    Arguments:
        rows: The rows of `metrics.csv`, as numbers or text, in order.
        title: Instead of 'Training curves'.
    """
    epochs = np.array([_number(row.get("epoch"), i) for i, row in enumerate(rows)])
    values = {
        name: np.array([_number(row.get(name), math.nan) for row in rows])
        for name in dict.fromkeys(name for row in rows for name in row)
    }
    known = {name for name, column in values.items() if np.isfinite(column).any()}
    panels = []
    for panel in _panels(known):
        lines = [line for line in panel.lines if line.column in known]
        if lines or panel.heading == "ELBO":
            panels.append(Panel(panel.heading, panel.unit, lines))

    across = min(2, len(panels))
    down = -(-len(panels) // across)
    step_x, step_y = LEFT + WIDTH + 0.15, BOTTOM + HEIGHT + TOP
    figure = new_page(
        across * step_x, down * step_y, "Training curves" if title is None else title
    )
    for number, panel in enumerate(panels):
        left = LEFT + number % across * step_x
        bottom = BOTTOM + (down - 1 - number // across) * step_y
        _draw(axes_at(figure, left, bottom, WIDTH, HEIGHT), panel, epochs, values)
    return figure


def _panels(columns: Collection[str]) -> list[Panel]:
    latents = {name.partition("/")[2] for name in columns if name.startswith(_splits("kl_"))}
    order = [name for name in LATENT_NAMES if name in latents] + sorted(
        latents - set(LATENT_NAMES)
    )
    divergences = [
        Line(f"{split}/{name}", LATENT_NAMES.get(name, name[3:]), colour, split == "val")
        for name, colour in zip(order, cycle(LINE_COLOURS), strict=False)
        for split in SPLITS
    ]
    rate = Line("train/learning_rate", "", LINE_COLOURS[0])
    return [
        Panel("ELBO", "nats per image", _both("elbo")),
        Panel("Log-likelihood", "nats per image", _both("log_likelihood")),
        Panel("KL divergence (dashed: validation)", "nats per image", divergences),
        Panel("Learning rate", "learning rate", [rate]),
    ]


def _splits(name: str) -> tuple[str, ...]:
    return tuple(f"{split}/{name}" for split in SPLITS)


def _both(name: str) -> list[Line]:
    training, validation = _splits(name)
    return [
        Line(training, "training", LINE_COLOURS[0]),
        Line(validation, "validation", LINE_COLOURS[1], dashed=True),
    ]


def _draw(axes: Axes, panel: Panel, epochs: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
    above(axes, panel.heading, fontsize=SMALL_SIZE + 1)
    axes.set_xlabel("epoch")
    axes.set_ylabel(panel.unit)
    axes.spines[["top", "right"]].set_visible(False)
    if not panel.lines:
        axes.text(0.5, 0.5, "no finite value yet", transform=axes.transAxes, ha="center")
        axes.set(xticks=[], yticks=[])
        return
    named: dict[str, Artist] = {}
    for line in panel.lines:
        there = np.isfinite(values[line.column])
        (drawn,) = axes.plot(
            epochs[there],
            values[line.column][there],
            "--" if line.dashed else "-",
            color=line.colour,
            linewidth=1.2,
            marker="o" if there.sum() <= MOST_DOTS else "",
            markersize=2.5,
        )
        # Of two lines with one name, the first is solid.
        named.setdefault(line.name, drawn)
    marked = []
    if "val/elbo" in [line.column for line in panel.lines]:
        best = int(np.nanargmax(values["val/elbo"]))
        epoch, elbo = epochs[best], values["val/elbo"][best]
        (star,) = axes.plot(epoch, elbo, "k*", markersize=8, zorder=5, clip_on=False)
        named[f"best: {decimal(elbo, 1)} (epoch {epoch:.0f})"] = star
        marked.append(elbo)

    every = np.concatenate([values[line.column] for line in panel.lines])
    every = every[np.isfinite(every)]
    low, high = padded_limits(np.array(robust_range(every.tolist())))
    low, high = min([low, *marked]), max([high, *marked])
    axes.set(xlim=padded_limits(epochs), ylim=(low, high))
    axes.xaxis.set_major_locator(few_ticks(6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(few_ticks(5))
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    outside = int(((every < low) | (every > high)).sum())
    if outside:
        note = f"{outside} of {len(every)} values outside"
        above(axes, note, 1.0, ha="right", fontsize=SMALL_SIZE - 1, color="0.35")
    if any(named):
        legend_above(axes, named)


def _number(value: Any, otherwise: float) -> float:
    """A cell of the table as a finite number, else `otherwise`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return otherwise
    return number if abs(number) < LARGEST else otherwise
