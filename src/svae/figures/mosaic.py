"""Many images as one picture, and the figure that holds it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from svae.figures.style import MARGIN, add_bar, axes_at, new_page

__all__ = [
    "BAR_INCHES",
    "HEADER_LINE",
    "TEXT_SIZE",
    "Array",
    "DisplayRange",
    "bar_beside",
    "beside",
    "display_range",
    "label_columns",
    "label_rows",
    "mosaic",
    "mosaic_axes",
    "tile_inches",
    "to_images",
    "to_images_like",
    "write_above",
]

Array = Tensor | np.ndarray

# Part of the pixels that may be clipped at either end, so that a few hot ones do not darken all.
CLIPPED = 1e-3
# Images within [0, 1] are drawn from 0, or to 1, where their range ends nearer than this.
NEAR = 0.1
# What is not a picture: pixels that the likelihood does not score, and those that are no numbers.
UNSCORED = (0.80, 0.87, 0.95)
NOT_FINITE = (0.84, 0.37, 0.0)
# Of the lines above the images, in points.
TEXT_SIZE = 7.5
# In inches.
HEADER_LINE = 0.16
BAR_INCHES, BAR_GAP, BAR_WIDTH = 0.74, 0.1, 0.09
BAR_LEAST, BAR_SMALL, BAR_LARGE = 0.7, 1.1, 2.4
NARROWEST = 3.2


@dataclass(frozen=True)
class DisplayRange:
    """How pixel values are drawn.

    Arguments:
        black: The value drawn as black.
        white: The value drawn as white.
        grey: Whether the images are grey, so that a bar can tell their values.
        extend: Which ends have values beyond: `neither`, `min`, `max` or `both`.
        broken: Whether there are pixels that are not finite.
    """

    black: float
    white: float
    grey: bool = False
    extend: str = "neither"
    broken: bool = False


def to_images(name: str, images: Array) -> Tensor:
    """`images` as float32 on the CPU, if they have shape (B, C, H, W), C 1 or 3, B at least 1."""
    images = torch.as_tensor(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(
            f"{name}: expected shape (B, C, H, W) with C 1 or 3 and B at least 1, "
            f"got {tuple(images.shape)}"
        )
    return images.detach().cpu().float()


def to_images_like(name: str, images: Array, like: str, other: Tensor) -> Tensor:
    """`images` as `to_images` does, if they have the shape of `other`, which is called `like`."""
    images = to_images(name, images)
    if images.shape != other.shape:
        raise ValueError(
            f"{name}: expected shape {tuple(other.shape)} like {like}, got {tuple(images.shape)}"
        )
    return images


def display_range(images: Tensor) -> DisplayRange:
    """The range of all grey images together, what is not finite left out; [0, 1] for RGB."""
    finite = images.isfinite()
    broken = not bool(finite.all())
    values = images[finite].numpy()
    grey = images.shape[1] == 1
    if not grey or not values.size:
        return DisplayRange(0.0, 1.0, grey, broken=broken)
    # By numpy: `torch.quantile` takes no more than 2**24 values.
    low, high = (float(value) for value in np.quantile(values, [CLIPPED, 1 - CLIPPED]))
    least, most = float(values.min()), float(values.max())
    if least >= 0 and most <= 1:
        constant = low == high
        low = 0.0 if low <= NEAR or constant else low
        high = 1.0 if high >= 1 - NEAR or constant else high
    elif low == high:
        low, high = low - 0.5, low + 0.5
    ends = {(False, False): "neither", (True, False): "min", (False, True): "max"}
    return DisplayRange(low, high, grey, ends.get((least < low, most > high), "both"), broken)


def mosaic(
    images: Tensor,
    columns: int,
    shown: DisplayRange,
    gap: int = 0,
    unscored: Tensor | None = None,
) -> np.ndarray:
    """Images row by row from the top left, as one RGB picture in [0, 1].

    Values that are not finite are orange. Where the last row is not full, the rest is white.

    Arguments:
        images: The images, with shape (B, C, H, W).
        columns: The number of images in a row.
        shown: How pixel values are drawn.
        gap: White pixels between neighbours.
        unscored: Pixels that get a neutral tone, bool with shape (B, H, W).

    Returns:
        The picture, with shape (H', W', 3).
    """
    scaled = ((images - shown.black) / (shown.white - shown.black)).clamp(0, 1)
    scaled = scaled.expand(-1, 3, -1, -1)
    broken = ~images.isfinite().all(dim=1, keepdim=True)
    scaled = torch.where(broken, torch.tensor(NOT_FINITE).reshape(3, 1, 1), scaled)
    if unscored is not None:
        tone = torch.tensor(UNSCORED).reshape(3, 1, 1)
        scaled = torch.where(unscored.unsqueeze(1), tone, scaled)
    count, _, height, width = scaled.shape
    rows = -(-count // columns)
    padded = torch.ones(rows * columns, 3, height + gap, width + gap)
    padded[:count, :, :height, :width] = scaled
    tiles = padded.unflatten(0, (rows, columns))  # (rows, columns, 3, H, W)
    picture = tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return picture[: len(picture) - gap, : picture.shape[1] - gap].numpy()


def beside(pictures: Sequence[np.ndarray], gap: int) -> np.ndarray:
    """Pictures from left to right on white, `gap` pixels between them, their tops in line."""
    height = max(len(picture) for picture in pictures)
    width = sum(picture.shape[1] + gap for picture in pictures) - gap
    page, left = np.ones((height, width, 3), np.float32), 0
    for picture in pictures:
        page[: len(picture), left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return page


def tile_inches(
    columns: int, rows: int, aspect: float, narrowest: float = 0.72, widest: float = 1.4
) -> float:
    """The width of a tile that suits a page 8.6 inches wide and 9 high, above all the width.

    Arguments:
        columns: The number of tiles in a row.
        rows: The number of rows.
        aspect: Height over width of a tile.
        narrowest: The smallest width, whatever the page says.
        widest: The largest.
    """
    return max(narrowest, min(widest, 8.64 / columns, 9.0 / (rows * aspect)))


def mosaic_axes(
    picture: np.ndarray,
    width: float,
    title: str,
    shown: DisplayRange,
    *,
    bar: bool = True,
    left: float = MARGIN,
    right: float = MARGIN,
    top: float = 0.0,
    bottom: float = MARGIN,
) -> tuple[Figure, Axes]:
    """A figure with one picture that keeps its proportions, and a bar of its values if it is grey.

    Arguments:
        picture: The picture, with shape (H', W', 3).
        width: Its width in inches.
        title: What stands above.
        shown: How pixel values are drawn.
        bar: Whether there is a bar, if the images are grey.
        left: Margin in inches.
        right: Margin in inches, on the right of the bar.
        top: Margin in inches, below the title.
        bottom: Margin in inches.
    """
    height = width * picture.shape[0] / picture.shape[1]
    if bar and shown.grey:
        right += BAR_INCHES
        # A bar may be higher than the picture.
        excess = max(0.0, (BAR_LEAST - height) / 2)
        bottom, top = max(bottom, excess + MARGIN), max(top, excess + MARGIN)
    page_width = max(left + width + right, NARROWEST)
    if shown.broken:
        title += " (orange: not finite)"
    figure = new_page(page_width, bottom + height + top, title)
    axes = axes_at(figure, left, bottom, width, height)
    axes.imshow(picture, aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, pad=4)
    if bar and shown.grey:
        bar_beside(axes, (0.0, 1.0), "pixel value", shown.black, shown.white, "gray", shown.extend)
    return figure, axes


def bar_beside(
    axes: Axes,
    span: tuple[float, float],
    label: str,
    low: float,
    high: float,
    colours: str,
    extend: str = "neither",
) -> None:
    """A colour bar within the `BAR_INCHES` on the right of a mosaic.

    Arguments:
        axes: The axes of the mosaic.
        span: Which part of their height the bar is for, from the bottom 0 to the top 1.
        label: What the values are, with their unit.
        low: The value of the first colour.
        high: The value of the last colour.
        colours: The name of the colour map.
        extend: Which ends have values beyond.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    page_width, page_height = figure.get_size_inches()
    box = axes.get_position()
    least = page_height * (box.y0 + span[0] * box.height)
    room = page_height * (span[1] - span[0]) * box.height
    # A small bar suffices for the values between 0 and 1 that everybody expects.
    most = BAR_SMALL if low >= 0 and high <= 1 else BAR_LARGE
    height = max(BAR_LEAST, min(room, most))
    place = (page_width * box.x1 + BAR_GAP, least + (room - height) / 2, BAR_WIDTH, height)
    add_bar(axes_at(figure, *place), label, low, high, colours, extend=extend)


def label_rows(axes: Axes, labels: Sequence[str], height: int, gap: int) -> None:
    """Name the rows of a mosaic of images that are `height` pixels high."""
    centres = [(height - 1) / 2 + row * (height + gap) for row in range(len(labels))]
    axes.set_yticks(centres, labels=labels)


def label_columns(axes: Axes, labels: Sequence[str], width: int, gap: int, begin: int = 0) -> None:
    """Name the columns of images that are `width` pixels wide, the first at pixel `begin`."""
    centres = [begin + (width - 1) / 2 + i * (width + gap) for i in range(len(labels))]
    axes.set_xticks(centres, labels=labels)
    axes.tick_params(axis="x", length=3, width=0.6, labelsize=8)


def write_above(
    axes: Axes,
    lines: Mapping[str, Sequence[str]],
    centres: Sequence[float],
    size: float = TEXT_SIZE,
) -> None:
    """Lines of text above a mosaic, each `HEADER_LINE` inches high.

    Arguments:
        axes: The axes of the mosaic.
        lines: From the name of a line, on the left, to its text for each column.
        centres: Where the columns are, in pixels of the picture.
        size: The size of the texts in points.
    """
    for line, (label, texts) in enumerate(reversed(list(lines.items()))):
        # In points above the picture, whatever its height is.
        rise = 4 + 72 * HEADER_LINE * line
        note = partial(axes.annotate, textcoords="offset points", va="baseline", parse_math=False)
        note(label, (0, 1), (-4, rise), xycoords="axes fraction", ha="right", fontsize=8)
        for centre, text in zip(centres, texts, strict=True):
            anchor, where = (centre, 1), ("data", "axes fraction")
            note(text, anchor, (0, rise), xycoords=where, ha="center", fontsize=size)
