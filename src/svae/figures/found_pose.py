"""Where a model finds the object in its image, and how it finds it turned."""

import math

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke
from torch import Tensor

from svae.checks import positive
from svae.figures.mosaic import (
    Array,
    display_range,
    mosaic,
    mosaic_axes,
    tile_inches,
    to_images,
)
from svae.figures.reconstructions import MAX_EXAMPLES
from svae.figures.style import LINE_COLOURS, MARGIN, SMALL_SIZE

__all__ = [
    "ARROW",
    "INFERRED",
    "LEGEND_INCHES",
    "LINE_WIDTHS",
    "TRUE",
    "Pose",
    "add_pose_legend",
    "check_pose",
    "draw_pose",
    "found_pose_figure",
    "outline",
    "pose_title",
]

#: Angles (B,) in radians and centres (B, 2) in grid units; None for what is not there.
Pose = tuple[Array | None, Array | None]

INFERRED, TRUE = LINE_COLOURS[5], LINE_COLOURS[4]
# In points. The truth is drawn on top, and thinner, so that both are seen where they agree.
LINE_WIDTHS = {INFERRED: 2.2, TRUE: 1.0}
COLUMNS = 6
# Of an arrow, in shorter sides of the image.
ARROW = 0.3
LEGEND_INCHES = 0.28
TRUE_ANGLES = " (true angles are turned by the one that no model can know)"


def found_pose_figure(
    images: Array,
    pose: Pose,
    true_pose: Pose = (None, None),
    *,
    pixel_size: float,
    title: str | None = None,
) -> Figure:
    """Images with a cross at the object's centre and an arrow along the object's own x axis.

    Without a shift the arrow begins in the middle of the image; without an angle there is the
    cross alone. What lies outside of its image is cut off. The first 12 images are drawn.

    Arguments:
        images: The images, with shape (B, C, H, W), C 1 or 3.
        pose: What was inferred.
        true_pose: The truth, its angles turned by the one that no model can know
            (`svae.metrics.angle_offset`).
        pixel_size: Grid units per pixel.
        title: Instead of 'Images with the pose found in them'.
    """
    inputs = to_images("images", images)
    poses = {
        INFERRED: check_pose("pose", pose, len(inputs), pixel_size),
        TRUE: check_pose("true_pose", true_pose, len(inputs), pixel_size),
    }
    if poses[INFERRED] == (None, None):
        raise ValueError("pose: expected angles or shifts to draw, got none")
    inputs = inputs[:MAX_EXAMPLES]
    count, (height, width) = len(inputs), inputs.shape[-2:]
    columns = min(count, COLUMNS)
    tile = tile_inches(columns, -(-count // columns), height / width, narrowest=1.2)
    shown, gap = display_range(inputs), max(1, round(0.04 * width))
    figure, axes = mosaic_axes(
        mosaic(inputs, columns, shown, gap),
        columns * tile,
        pose_title("Images with the pose found in them" if title is None else title, true_pose),
        shown,
        bottom=MARGIN + LEGEND_INCHES,
    )
    axes.set(xticks=[], yticks=[])
    for number in range(count):
        corner = (
            (number % columns) * (width + gap) - 0.5,
            (number // columns) * (height + gap) - 0.5,
        )
        box = Rectangle(corner, width, height, transform=axes.transData)
        middle = corner[0] + width / 2, corner[1] + height / 2
        for colour, found in poses.items():
            draw_pose(
                axes, found, number, ARROW * min(height, width), colour, box, middle, down=True
            )
    add_pose_legend(figure, known=poses[TRUE] != (None, None))
    return figure


def check_pose(
    name: str, pose: Pose, count: int, pixel_size: float
) -> tuple[Tensor | None, Tensor | None]:
    """Angles in radians and centres in px, on the CPU, if they are those of `count` images."""
    positive("pixel_size", pixel_size)
    theta, shift = (
        None if part is None else torch.as_tensor(part).detach().cpu() for part in pose
    )
    for kind, part, shape in (("angles", theta, (count,)), ("shifts", shift, (count, 2))):
        if part is not None and part.shape != shape:
            raise ValueError(
                f"{name}: expected {kind} with shape {shape}, got {tuple(part.shape)}"
            )
    return theta, None if shift is None else shift / pixel_size


def draw_pose(
    axes: Axes,
    pose: tuple[Tensor | None, Tensor | None],
    number: int,
    length: float,
    colour: str,
    clip: Patch,
    middle: tuple[float, float] = (0.0, 0.0),
    *,
    down: bool = False,
) -> None:
    """A cross at the centre of one object, and an arrow along its own x axis.

    Arguments:
        axes: Axes in which a pixel has length 1.
        pose: From `check_pose`.
        number: Which of the images it is.
        length: Of the arrow, in px.
        colour: `INFERRED` or `TRUE`.
        clip: What lies outside is not drawn.
        middle: Where the middle of the image is in the axes.
        down: Whether y of the axes runs downwards.
    """
    theta, shift = pose
    up, line = -1 if down else 1, LINE_WIDTHS[colour]
    x, y = middle
    marks: list[Line2D | FancyArrowPatch] = []
    if shift is not None:
        x, y = x + shift[number, 0].item(), y + up * shift[number, 1].item()
        marks.append(Line2D([x], [y], marker="+", ms=5 + 2 * line, mew=line, color=colour))
    if theta is not None:
        angle = theta[number].item()
        tip = x + length * math.cos(angle), y + up * length * math.sin(angle)
        marks.append(
            FancyArrowPatch(
                (x, y),
                tip,
                arrowstyle=f"-|>,head_length={2 + line},head_width={1 + line}",
                mutation_scale=1,
                shrinkA=0,
                shrinkB=0,
                color=colour,
                linewidth=line,
            )
        )
    for mark in marks:
        mark.set_path_effects(outline(line))
        axes.add_artist(mark)
        mark.set_clip_path(clip)


def pose_title(title: str, true_pose: Pose) -> str:
    """`title`, and what to know of true angles, where there are some."""
    return title + (TRUE_ANGLES if true_pose[0] is not None else "")


def outline(line: float) -> list[AbstractPathEffect]:
    """Black about a line of so many points, so that it is seen on bright images too."""
    return [withStroke(linewidth=line + 1.4, foreground="black")]


def add_pose_legend(figure: Figure, *, known: bool) -> None:
    """What the colours mean, at the bottom of the page.

    Arguments:
        figure: The figure.
        known: Whether the truth is drawn.
    """
    names = {INFERRED: "inferred"}
    if known:
        names[TRUE] = "true"
    handles = [
        Line2D([], [], color=colour, lw=LINE_WIDTHS[colour], label=name)
        for colour, name in names.items()
    ]
    for handle in handles:
        handle.set_path_effects(outline(handle.get_linewidth()))
    page_width, page_height = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(MARGIN / page_width, MARGIN / 2 / page_height),
        ncols=len(handles),
        frameon=False,
        fontsize=SMALL_SIZE,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.6,
    )
