"""Where an attention posterior looks for the object, and at which angles."""

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.projections.polar import PolarAxes

from svae.figures.found_pose import (
    ARROW,
    INFERRED,
    LEGEND_INCHES,
    LINE_WIDTHS,
    TRUE,
    Pose,
    add_pose_legend,
    check_pose,
    draw_pose,
    outline,
    pose_title,
)
from svae.figures.mosaic import Array, display_range, mosaic, to_images
from svae.figures.style import CLASS_COLOURS, MARGIN, SMALL_SIZE, axes_at, new_page
from svae.lattice import Lattice

__all__ = ["MOST_ATTENTION", "attention_figure"]

MOST_ATTENTION = 8
# In inches: the side of a panel, what is between panels and between images, and the line above.
SIDE, GAP, BETWEEN, ABOVE = 1.4, 0.1, 0.35, 0.25
# Dark, on what is left of the image: a light one of low contrast.
ATTENTION, FAINT = CLASS_COLOURS[0], 0.2
# The diameters, in points, of rings about a position, inside of which the attention is seen.
RINGS = {INFERRED: 13.0, TRUE: 10.0}
# Where the marks of angles begin and end, and the panel's edge, in largest probabilities.
MARKS, EDGE = (1.03, 1.22), 1.28

# Left, right, bottom and top, in px from the middle of the image, y up.
Extent = tuple[float, float, float, float]


def attention_figure(
    images: Array,
    weights: Array,
    lattice: Lattice,
    pose: Pose,
    true_pose: Pose = (None, None),
    *,
    pixel_size: float,
    title: str | None = None,
) -> Figure:
    """Images, and beside each its attention over positions and that over angles.

    The attention over positions is summed over angles. It lies on the faint image, with a dotted
    line about the lattice, in the same frame as the image beside it. That over angles is summed
    over positions and runs counter-clockwise from the right. Each has a scale of its own, from
    zero to the peak that stands above it. Of a lattice with a single position or angle, that panel
    is left out. The first 8 images are drawn.

    Arguments:
        images: The images, with shape (B, C, H, W), C 1 or 3.
        weights: The probability of each position and angle, with shape (B, P, R).
        lattice: The P positions and R angles.
        pose: What was inferred.
        true_pose: The truth, its angles turned by the one that no model can know
            (`svae.metrics.angle_offset`).
        pixel_size: Grid units per pixel.
        title: Instead of 'Attention over position and angle'.
    """
    inputs = to_images("images", images)
    shape = (len(inputs), len(lattice.shifts), len(lattice.angles))
    attention = torch.as_tensor(weights).detach().cpu().double()
    if attention.shape != shape:
        raise ValueError(f"weights: expected shape {shape}, got {tuple(attention.shape)}")
    if shape[1:] == (1, 1):
        raise ValueError("lattice: expected more than one position or angle to draw, got one")
    poses = {
        INFERRED: check_pose("pose", pose, len(inputs), pixel_size),
        TRUE: check_pose("true_pose", true_pose, len(inputs), pixel_size),
    }
    inputs = inputs[:MOST_ATTENTION]
    cells = _extent(lattice, pixel_size)
    frame = _frame(cells, *inputs.shape[-2:])
    side = SIDE * frame[1] / frame[0]
    panels = 1 + (shape[1] > 1) + (shape[2] > 1)
    group, row = panels * (SIDE + GAP) - GAP, side + ABOVE
    columns = min(len(inputs), 2)
    rows = -(-len(inputs) // columns)
    foot = MARGIN + LEGEND_INCHES
    figure = new_page(
        2 * MARGIN + columns * (group + BETWEEN) - BETWEEN,
        foot + rows * row,
        pose_title("Attention over position and angle" if title is None else title, true_pose),
    )
    shown = display_range(inputs)
    for number in range(len(inputs)):
        left = MARGIN + (number % columns) * (group + BETWEEN)
        bottom = foot + (rows - 1 - number // columns) * row
        places = iter(
            [(left + panel * (SIDE + GAP), bottom, SIDE, side) for panel in range(panels)]
        )
        picture = mosaic(inputs[number, None], 1, shown)
        axes = axes_at(figure, *next(places))
        _draw_image(axes, picture, frame)
        for colour, found in poses.items():
            draw_pose(axes, found, number, ARROW * min(picture.shape[:2]), colour, axes.patch)
        if shape[1] > 1:
            axes = axes_at(figure, *next(places))
            _draw_image(axes, 1 - FAINT * (1 - picture), frame)
            _draw_positions(axes, attention[number].sum(1).reshape(lattice.shape).numpy(), cells)
            for colour, (_, shift) in poses.items():
                if shift is not None:
                    _ring(axes, shift[number].tolist(), colour)
        if shape[2] > 1:
            axes = axes_at(figure, *next(places), projection="polar")
            _draw_angles(axes, attention[number].sum(0).numpy(), lattice.angles.cpu().numpy())
            for colour, (theta, _) in poses.items():
                if theta is not None:
                    _mark_angle(axes, theta[number].item(), colour)
    add_pose_legend(figure, known=poses[TRUE] != (None, None))
    return figure


def _extent(lattice: Lattice, pixel_size: float) -> Extent:
    """The outer edges of the cells about the lattice's positions."""
    shifts = lattice.shifts.detach().cpu() / pixel_size
    low, high = shifts.amin(0).tolist(), shifts.amax(0).tolist()
    # The spacing is the same along both axes; one of them may have a single position.
    half = max(high[0] - low[0], high[1] - low[1]) / max(*(n - 1 for n in lattice.shape), 1) / 2
    return low[0] - half, high[0] + half, low[1] - half, high[1] + half


def _frame(cells: Extent, height: int, width: int) -> tuple[float, float]:
    """Width and height of what holds the image and the lattice about the same middle, in px."""
    reach = [2 * max(abs(low), abs(high)) for low, high in (cells[:2], cells[2:])]
    # A little more: a line about it must not be cut.
    return 1.02 * max(width, reach[0]), 1.02 * max(height, reach[1])


def _draw_image(axes: Axes, picture: np.ndarray, frame: tuple[float, float]) -> None:
    height, width = picture.shape[:2]
    extent = (-width / 2, width / 2, -height / 2, height / 2)
    axes.imshow(picture, extent=extent, interpolation="nearest")
    axes.set(xlim=(-frame[0] / 2, frame[0] / 2), ylim=(-frame[1] / 2, frame[1] / 2))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    _draw_border(axes, extent, "0.4", "-")


def _draw_border(axes: Axes, extent: Extent, colour: str, style: str) -> None:
    left, right, bottom, top = extent
    border = Rectangle((left, bottom), right - left, top - bottom, fill=False, lw=0.7)
    border.set(edgecolor=colour, linestyle=style)
    axes.add_patch(border)


def _draw_positions(axes: Axes, attention: np.ndarray, cells: Extent) -> None:
    peak = attention.max()
    layer = np.empty((*attention.shape, 4))
    layer[..., :3], layer[..., 3] = to_rgb(ATTENTION), attention / peak
    axes.imshow(layer, extent=cells, interpolation="nearest")
    _draw_border(axes, cells, ATTENTION, ":")
    _write_peak(axes, "position", peak)


def _ring(axes: Axes, place: list[float], colour: str) -> None:
    x, y = place
    axes.plot([x], [y], "o", ms=RINGS[colour], mfc="none", mec=colour, mew=1.3)


def _draw_angles(axes: Axes, attention: np.ndarray, angles: np.ndarray) -> None:
    assert isinstance(axes, PolarAxes)
    peak, width = attention.max(), 2 * math.pi / len(angles)
    axes.bar(angles, attention / peak, width, color=ATTENTION, edgecolor="white", linewidth=0.4)
    axes.set(theta_zero_location="E", theta_direction=1, ylim=(0, EDGE))  # counter-clockwise
    axes.set_thetagrids([])
    axes.set_rgrids([0.5, 1.0], ["", ""])
    axes.grid(linewidth=0.5, color="0.8")
    axes.spines[:].set_visible(False)
    _write_peak(axes, "angle", peak)


def _mark_angle(axes: Axes, theta: float, colour: str) -> None:
    line = LINE_WIDTHS[colour]
    axes.plot([theta, theta], MARKS, color=colour, lw=line, path_effects=outline(line))


def _write_peak(axes: Axes, name: str, peak: float) -> None:
    percent = f"{100 * peak:.0f}" if peak >= 0.1 else f"{100 * peak:.2g}"
    axes.set_title(f"{name}: peak {percent} %", fontsize=SMALL_SIZE - 0.5, pad=3)
