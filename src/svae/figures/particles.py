"""Noisy particles: aligned, and averages of them beside what the model generates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from svae.figures.mosaic import (
    HEADER_LINE,
    Array,
    display_range,
    label_rows,
    mosaic,
    tile_inches,
    to_images,
    write_above,
)
from svae.figures.style import MARGIN, SMALL_SIZE, axes_at, decimal, new_page, signed, text_inches

__all__ = ["class_averages_figure", "particles_figure", "slices_figure"]

# Of a figure of classes: how many stand beside each other, and how many there are at most.
COLUMNS, MOST_CLASSES = 10, 50
# Between two blocks, in inches.
BLOCK_GAP = 0.14


@dataclass(frozen=True)
class Block:
    """Rows of images with lines of text above.

    Arguments:
        header: Lines of text, one for each column, by what is written on their left.
        rows: Images (S, C, H, W) by the name of their row.
    """

    header: Mapping[str, Sequence[str]]
    rows: Mapping[str, Tensor]


def particles_figure(
    particles: Array,
    aligned: Array,
    averages: Array,
    generated: Array,
    theta_deg: Array | None,
    shift_px: Array | None,
    classes: Array,
    *,
    title: str | None = None,
) -> Figure:
    """Particles, the same with their pose removed, what they are averaged to, and the model's.

    Particles have one grey scale, averages and what is generated another.

    Arguments:
        particles: With shape (B, 1, H, W), B at most 12.
        aligned: The same, moved and turned back, with shape (B, 1, H, W).
        averages: Of the class of each, with shape (B, 1, H, W).
        generated: What the model makes of the content of each, with shape (B, 1, H, W).
        theta_deg: Inferred angles, with shape (B,); None where none are inferred.
        shift_px: Inferred centres (x right, y up), with shape (B, 2), or None.
        classes: The numbers of the classes as they are written, with shape (B,).
        title: Instead of 'Particles with their pose removed'.
    """
    header = {}
    if theta_deg is not None:
        angles = torch.as_tensor(theta_deg).tolist()
        header["angle"] = [f"{decimal(angle, 0)}°" for angle in angles]
    if shift_px is not None:
        shifts = torch.as_tensor(shift_px).tolist()
        header["shift (px)"] = [f"{signed(x, 1)}, {signed(y, 1)}" for x, y in shifts]
    header["class"] = [str(number) for number in torch.as_tensor(classes).tolist()]
    block = Block(
        header,
        {
            "particle": to_images("particles", particles),
            "moved back": to_images("aligned", aligned),
            "class average": to_images("averages", averages),
            "generated": to_images("generated", generated),
        },
    )
    title = "Particles with their pose removed" if title is None else title
    return _figure([block], title, averaged=("class average", "generated"))


def class_averages_figure(
    averages: Array, generated: Array, counts: Array, *, title: str | None = None
) -> Figure:
    """The average of every class, above what the model generates from the class's mean content.

    The first 50 classes are drawn.

    Arguments:
        averages: With shape (K, 1, H, W).
        generated: With shape (K, 1, H, W).
        counts: The particles of each class, with shape (K,).
        title: Instead of 'Class averages of N particles'.
    """
    means, made = to_images("averages", averages), to_images("generated", generated)
    sizes = torch.as_tensor(counts).tolist()
    shown = min(len(sizes), MOST_CLASSES)
    blocks = []
    columns = -(-shown // -(-shown // COLUMNS))  # rows of nearly equal length
    for start in range(0, shown, columns):
        part = slice(start, min(start + columns, shown))
        header = {
            "class": [str(number + 1) for number in range(part.start, part.stop)],
            "particles": [f"{size:,}" for size in sizes[part]],
        }
        blocks.append(Block(header, {"average": means[part], "generated": made[part]}))
    if title is None:
        some = f"The first {shown} of {len(sizes)} class" if shown < len(sizes) else "Class"
        title = f"{some} averages of {sum(sizes):,} particles, their pose removed"
    return _figure(blocks, title, averaged=("average", "generated"))


def slices_figure(
    averages: Array,
    generated: Array,
    values: Array,
    axes: Sequence[int],
    count: int,
    *,
    title: str | None = None,
) -> Figure:
    """Along each component of z, averages of equally many particles above what is generated.

    Arguments:
        averages: With shape (A, S, 1, H, W), small values of the component first.
        generated: From the mean content of the same particles, with shape (A, S, 1, H, W).
        values: The mean value of the component, with shape (A, S).
        axes: The components, numbered from 0, A of them.
        count: The particles of a slice.
        title: Instead of a title that says this.
    """
    means, made = torch.as_tensor(averages), torch.as_tensor(generated)
    blocks = [
        Block(
            {f"mean z{axis}": [decimal(value, 2) for value in row]},
            {"average": to_images("averages", mean), "generated": to_images("generated", one)},
        )
        for axis, row, mean, one in zip(
            axes, torch.as_tensor(values).tolist(), means, made, strict=True
        )
    ]
    if title is None:
        title = f"Averages of {count:,} particles each along the axes of z, their pose removed"
    return _figure(blocks, title, averaged=("average", "generated"))


def _figure(blocks: Sequence[Block], title: str, averaged: Sequence[str]) -> Figure:
    """Blocks below each other; rows in `averaged` share one grey scale, the others another."""
    names = [name for block in blocks for name in block.rows]
    scales = {
        kind: display_range(torch.cat([b.rows[n] for b in blocks for n in b.rows if of(n)]))
        for kind, of in (
            (True, lambda name: name in averaged),
            (False, lambda name: name not in averaged),
        )
        if any(of(name) for name in names)
    }
    first = next(iter(blocks[0].rows.values()))
    columns = max(len(images) for block in blocks for images in block.rows.values())
    height, width = first.shape[-2:]
    gap = max(1, round(0.06 * width))
    count = sum(len(block.rows) for block in blocks)
    tile = tile_inches(columns, count, height / width, narrowest=0.62)
    pixel = tile / (width + gap)
    written = [*names, *(line for block in blocks for line in block.header)]
    left = MARGIN + 0.12 + max(text_inches(name, SMALL_SIZE) for name in written)
    heights = [len(block.rows) * (height + gap) * pixel - gap * pixel for block in blocks]
    headers = [HEADER_LINE * len(block.header) + BLOCK_GAP for block in blocks]
    page = left + columns * tile + MARGIN
    figure = new_page(page, sum(heights) + sum(headers) + MARGIN, title)
    bottom = sum(heights) + sum(headers) + MARGIN
    for block, tall, head in zip(blocks, heights, headers, strict=True):
        bottom -= tall + head
        shown = min(len(images) for images in block.rows.values())
        rows = [
            mosaic(images, len(images), scales[name in averaged], gap)
            for name, images in block.rows.items()
        ]
        white = np.ones((gap, rows[0].shape[1], 3), np.float32)
        picture = np.concatenate([part for row in rows for part in (row, white)][:-1])
        axes = axes_at(figure, left, bottom, picture.shape[1] * pixel, tall)
        axes.imshow(picture, aspect="auto")
        axes.spines[:].set_visible(False)
        axes.set_xticks([])
        label_rows(axes, list(block.rows), height, gap)
        axes.tick_params(axis="y", length=0, labelsize=SMALL_SIZE)
        centres = [(width - 1) / 2 + place * (width + gap) for place in range(shown)]
        write_above(axes, block.header, centres)
    return figure
