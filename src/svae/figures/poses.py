"""Inferred angles and positions: against the truth, or by themselves."""

import math
from itertools import cycle

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import MultipleLocator
from torch import Tensor

from svae.checks import positive
from svae.figures.mosaic import Array
from svae.figures.style import (
    DENSITY,
    LINE_COLOURS,
    MARGIN,
    MOST_POINTS,
    SMALL_SIZE,
    add_bar,
    axes_at,
    decimal,
    few_ticks,
    new_page,
    padded_limits,
    point_look,
    signed,
    some_of,
)
from svae.geometry import wrap_angle
from svae.metrics import angle_offsets, comparable_angles, pose_metrics

__all__ = ["pose_figure", "pose_histogram_figure"]

# In inches.
LEFT, BOTTOM, SIDE, TOP = 0.68, 0.52, 2.5, 0.42
LEGEND_LINE = 0.17


def pose_figure(
    theta: Array | None,
    true_theta: Array | None,
    shift: Array | None,
    true_shift: Array | None,
    pixel_size: float,
    symmetry: Array | None = None,
    reference_theta: Array | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """Inferred against true angles and shifts, one point for each image.

    It shows what `svae.metrics.pose_metrics` measures. The angle that no model can know
    (`svae.metrics.angle_offsets`) is taken from the inferred angles, and the figure says how large
    it is; where angles were inferred from the same objects upright, another panel has the
    inferred angles less those. Of the angles at which an object looks the same, the true one is
    that nearest to what was inferred; colours are orders of symmetry. Dashed lines are angles
    wrong by half a turn. What lacks its truth or its inference has no panel. Images with a pose
    that is not finite are left out.

    Arguments:
        theta: Inferred angles in radians, with shape (N,), or None.
        true_theta: True angles in radians, with shape (N,), or None.
        shift: Inferred object centres in grid units, with shape (N, 2), or None.
        true_shift: True object centres in grid units, with shape (N, 2), or None.
        pixel_size: Grid units per pixel.
        symmetry: The order of each object's rotational symmetry, with shape (N,); None where no
            object has one.
        reference_theta: Angles in radians inferred from the same objects upright and centred,
            with shape (N,), or None.
        title: Instead of 'Inferred against true pose, N images'.
    """
    if theta is None or true_theta is None:
        theta = true_theta = symmetry = reference_theta = None
    if shift is None or true_shift is None:
        shift = true_shift = None
    given = {
        "theta": theta,
        "true_theta": true_theta,
        "shift": shift,
        "true_shift": true_shift,
        "symmetry": symmetry,
        "reference_theta": reference_theta,
    }
    poses, count = _finite(given)
    shown = len(next(iter(poses.values())))
    metrics = pose_metrics(
        poses.get("theta"),
        poses.get("shift"),
        poses.get("true_theta"),
        poses.get("true_shift"),
        pixel_size,
        poses.get("symmetry"),
        poses.get("reference_theta"),
    )
    kinds = poses.get("symmetry", torch.ones(shown, dtype=torch.int64))
    offsets = angle_offsets(poses["theta"], poses["true_theta"], kinds) if "theta" in poses else {}
    symmetric = any(order > 1 for order in offsets)
    panels = ("theta" in poses) + ("reference_theta" in poses) + 2 * ("shift" in poses)
    columns = 2 if panels == 4 else panels
    rows = panels // columns
    if title is None:
        title = _counted("Inferred against true pose", shown, count)
        title += f", {MOST_POINTS:,} drawn" if shown > MOST_POINTS else ""
    below = LEGEND_LINE * -(-len(offsets) // columns) + MARGIN if symmetric else 0.0
    width, height = LEFT + SIDE + 0.2, BOTTOM + SIDE + TOP
    figure = new_page(columns * width, rows * height + below, title)
    places = iter(
        axes_at(figure, LEFT + column * width, BOTTOM + row * height + below, SIDE, SIDE)
        for row in reversed(range(rows))
        for column in range(columns)
    )
    if "theta" in poses:
        _angle_panel(next(places), poses, kinds, offsets, metrics)
    if "reference_theta" in poses:
        _relative_panel(next(places), poses, kinds, metrics)
    if symmetric:
        _add_symmetry_legend(figure, offsets, columns)
    if "shift" in poses:
        shifts = (poses["shift"] / pixel_size, poses["true_shift"] / pixel_size)
        for axis, name in enumerate("xy"):
            inferred, true = (value[:, axis].numpy() for value in shifts)
            correlation = metrics[f"shift_{name}_correlation"]
            _shift_panel(next(places), name, inferred, true, kinds, correlation)
    return figure


def pose_histogram_figure(
    theta: Array | None, shift: Array | None, pixel_size: float, *, title: str | None = None
) -> Figure:
    """How often each angle and each position was inferred.

    Angles run counter-clockwise from 0 on the right, x is to the right and y up, as in the image.
    Images with a pose that is not finite are left out.

    Arguments:
        theta: Inferred angles in radians, with shape (N,), or None.
        shift: Inferred object centres in grid units, with shape (N, 2), or None.
        pixel_size: Grid units per pixel.
        title: Instead of 'Inferred pose, N images'.
    """
    positive("pixel_size", pixel_size)
    poses, count = _finite({"theta": theta, "shift": shift})
    shown = len(next(iter(poses.values())))
    wide = {"theta": SIDE + 0.9, "shift": LEFT + SIDE + 0.85}
    figure = new_page(
        sum(wide[name] for name in poses),
        BOTTOM + SIDE + TOP,
        _counted("Inferred pose", shown, count) if title is None else title,
    )
    if "theta" in poses:
        _angle_histogram(figure, poses["theta"])
    if "shift" in poses:
        left = LEFT + (wide["theta"] if "theta" in poses else 0.0)
        _shift_histogram(figure, left, (poses["shift"] / pixel_size).numpy())
    return figure


def _angle_histogram(figure: Figure, theta: Tensor) -> None:
    bins = int(np.clip(4 * round(math.sqrt(len(theta)) / 2), 12, 72))
    axes = axes_at(figure, 0.45, 0.4, SIDE, SIDE, projection="polar")
    assert isinstance(axes, PolarAxes)
    counts, edges = np.histogram(wrap_angle(theta), bins, (-math.pi, math.pi))
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=LINE_COLOURS[0], alpha=0.85)
    axes.set(theta_zero_location="E", theta_direction=1)  # counter-clockwise
    degrees = (0, 45, 90, 135, 180, -135, -90, -45)
    axes.set_thetagrids(range(0, 360, 45), [f"{decimal(angle, 0)}°" for angle in degrees])
    axes.yaxis.set_major_locator(few_ticks(3, integer=True, prune="lower"))
    axes.set_rlabel_position(22.5)
    axes.tick_params(axis="x", pad=1)
    axes.tick_params(axis="y", labelsize=SMALL_SIZE - 1)
    axes.grid(linewidth=0.5, alpha=0.6)
    axes.set_title("angle θ (radius: images per bin)", fontsize=SMALL_SIZE + 0.5, pad=10)


def _shift_histogram(figure: Figure, left: float, shift: np.ndarray) -> None:
    bins = int(np.clip(2 * np.cbrt(len(shift)), 11, 61))
    axes = axes_at(figure, left, BOTTOM, SIDE, SIDE)
    reach = max(float(np.abs(shift).max()) * 1.02, 1.0)
    # An odd number, so that the middle bin has zero in its middle.
    edges = np.linspace(-reach, reach, (bins | 1) + 1)
    counts, _, _ = np.histogram2d(shift[:, 0], shift[:, 1], bins=(edges, edges))
    shown = np.ma.masked_equal(counts.T, 0)
    axes.pcolormesh(edges, edges, shown, cmap=DENSITY, vmin=0, vmax=counts.max(), rasterized=True)
    for line in (axes.axhline, axes.axvline):
        line(0, color="0.7", linewidth=0.6, zorder=0)
    axes.set_xlabel("shift x (px), to the right")
    axes.set_ylabel("shift y (px), up")
    axes.set_title("object centre", fontsize=SMALL_SIZE + 0.5)
    bar = axes_at(figure, left + SIDE + 0.1, BOTTOM, 0.1, SIDE)
    add_bar(bar, "images per bin", 0, counts.max(), DENSITY, whole=True)


def _angle_panel(
    axes: Axes,
    poses: dict[str, Tensor],
    kinds: Tensor,
    offsets: dict[int, float],
    metrics: dict[str, float],
) -> None:
    _angles(axes, *comparable_angles(poses["theta"], poses["true_theta"], kinds, offsets), kinds)
    removed = _degrees(offsets[1]) if offsets.keys() == {1} else "offsets"
    axes.set_ylabel(f"inferred angle (°), {removed} removed", labelpad=1)
    _heading(
        axes,
        f"angle: circular correlation {signed(metrics['theta_circular_correlation'], 2)}\n"
        f"plain {signed(metrics['theta_circular_correlation_plain'], 2)}, "
        f"median error {metrics['theta_error_deg']:.1f}°",
    )


def _relative_panel(
    axes: Axes, poses: dict[str, Tensor], kinds: Tensor, metrics: dict[str, float]
) -> None:
    relative = poses["theta"] - poses["reference_theta"]
    _angles(axes, *comparable_angles(relative, poses["true_theta"], kinds, {}), kinds)
    axes.set_ylabel("inferred angle (°) relative to upright", labelpad=1)
    _heading(
        axes,
        "relative angle: "
        f"circular correlation {signed(metrics['theta_relative_correlation'], 2)}\n"
        f"plain {signed(metrics['theta_relative_correlation_plain'], 2)}, "
        f"median error {metrics['theta_relative_error_deg']:.1f}°",
    )


def _angles(axes: Axes, inferred: Tensor, true: Tensor, kinds: Tensor) -> None:
    """Angles (N,) as of `comparable_angles`, of objects with the given orders of symmetry."""
    _lines(axes, -180, 180)
    if (kinds == 1).any():
        for turn in (-180, 180):
            axes.axline((0, turn), slope=1, color="0.45", linewidth=0.8, dashes=(4, 3), zorder=1)
    x, y = (torch.rad2deg(wrap_angle(angle)).numpy() for angle in (true, inferred))
    _points(axes, x, y, kinds)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(90))
    nearest = ", nearest equivalent" if (kinds > 1).any() else ""
    axes.set_xlabel(f"true angle (°){nearest}")


def _add_symmetry_legend(figure: Figure, offsets: dict[int, float], columns: int) -> None:
    """Below all panels, what the colours mean and what was taken from angles."""
    width, height = figure.get_size_inches()
    figure.legend(
        handles=[
            Line2D(
                [],
                [],
                color=colour,
                linestyle="",
                marker="o",
                markersize=4,
                label=f"{_symmetry(order)}: {_degrees(offset)} removed",
            )
            for (order, offset), colour in zip(offsets.items(), cycle(LINE_COLOURS))
        ],
        loc="lower left",
        bbox_to_anchor=(LEFT / width, MARGIN / height),
        ncols=columns,
        frameon=False,
        fontsize=SMALL_SIZE,
        borderpad=0,
        borderaxespad=0,
        handletextpad=0.2,
    )


def _symmetry(order: int) -> str:
    return f"symmetry of order {order}" if order > 1 else "no symmetry"


def _degrees(angle: float) -> str:
    return f"{signed(math.degrees(angle), 1)}°"


def _shift_panel(
    axes: Axes,
    name: str,
    inferred: np.ndarray,
    true: np.ndarray,
    kinds: Tensor,
    correlation: float,
) -> None:
    _lines(axes, *padded_limits(np.concatenate((inferred, true))))
    _points(axes, true, inferred, kinds)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(few_ticks(5))
    axes.set_xlabel(f"true shift {name} (px)")
    axes.set_ylabel(f"inferred shift {name} (px)", labelpad=1)
    _heading(axes, f"shift {name}: correlation {signed(correlation, 2)}")


def _lines(axes: Axes, low: float, high: float) -> None:
    """Square axes with the line on which both are the same."""
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.axline((0, 0), slope=1, color="0.45", linewidth=0.8, zorder=1)


def _points(axes: Axes, x: np.ndarray, y: np.ndarray, kinds: Tensor) -> None:
    """Points, a colour for each kind of them."""
    drawn = some_of(len(x))
    number = kinds.unique(return_inverse=True)[1].numpy()[drawn]
    colours = np.array(LINE_COLOURS)[number % len(LINE_COLOURS)]
    axes.scatter(x[drawn], y[drawn], color=colours, **point_look(len(drawn), SIDE))


def _heading(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=SMALL_SIZE + 0.5, loc="left", pad=4)


def _counted(title: str, shown: int, count: int) -> str:
    images = f"{shown:,} image{'s' if shown != 1 else ''}"
    return f"{title}, {images}" + (f" ({count - shown:,} not finite)" if shown < count else "")


def _finite(given: dict[str, Array | None]) -> tuple[dict[str, Tensor], int]:
    """What is there in float64, of the images whose pose is finite, and the number of all."""
    poses = {
        name: torch.as_tensor(value).detach().cpu()
        for name, value in given.items()
        if value is not None
    }
    if not poses:
        raise ValueError(f"{', '.join(given)}: expected angles or shifts to draw, got none")
    count = next(iter(poses.values())).shape[:1].numel()
    finite = torch.ones(count, dtype=torch.bool)
    for name, value in poses.items():
        expected = (count, 2) if name.endswith("shift") else (count,)
        if value.shape != expected:
            raise ValueError(f"{name}: expected shape {expected}, got {tuple(value.shape)}")
        finite &= value.isfinite().reshape(count, -1).all(dim=1)
    if not finite.any():
        raise ValueError(f"{', '.join(poses)}: expected finite values, got none in {count} images")
    kept = {name: value[finite] for name, value in poses.items()}
    # Orders of symmetry stay whole numbers.
    return {k: v if k == "symmetry" else v.double() for k, v in kept.items()}, count
