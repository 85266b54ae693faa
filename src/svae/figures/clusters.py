"""What is in clusters of images: their means without the pose, and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from svae.figures.mosaic import (
    BAR_INCHES,
    HEADER_LINE,
    NARROWEST,
    Array,
    beside,
    display_range,
    label_rows,
    mosaic,
    mosaic_axes,
    tile_inches,
    to_images,
    write_above,
)
from svae.figures.style import (
    LINE_COLOURS,
    MARGIN,
    SMALL_SIZE,
    add_bar,
    axes_at,
    label_of,
    new_page,
    shortened,
    text_inches,
)
from svae.metrics.clustering import matching, whole_numbers

__all__ = ["Cluster", "aligned_figure", "clusters_of", "confusion_figure"]

SHARE = "Blues"
# In per cent; on darker cells, numbers are white.
DARK = 55.0
# In inches: the longest name of a label; a cell at most, and the least that holds its number, or
# can be named; the side of all cells.
NAME_INCHES = 1.0
CELL, WRITTEN_CELL, TICKED_CELL, SIDE = 0.42, 0.26, 0.13, 5.2
LEFT, BOTTOM, TOP, COUNTS = 0.35, 0.5, 0.2, 0.62


@dataclass(frozen=True)
class Cluster:
    """One cluster.

    Arguments:
        number: Its number.
        size: How many images are in it.
        label: The label that it is matched with, if there is one.
        share: The part of its images that have this label.
    """

    number: int
    size: int
    label: int | None = None
    share: float = 0.0


def clusters_of(clusters: Array, labels: Array | None = None) -> list[Cluster]:
    """The clusters (N,), in the order of the labels (N,) they are matched with, if there are any.

    Those without a match come last.
    """
    if labels is None:
        numbers, sizes = np.unique(whole_numbers("clusters", clusters), return_counts=True)
        return [Cluster(*pair) for pair in zip(numbers.tolist(), sizes.tolist(), strict=True)]
    found = matching(labels, clusters)
    sizes = found.counts.sum(axis=0).tolist()
    own = np.diagonal(found.counts).tolist()
    matched = min(found.counts.shape)
    return [
        Cluster(number, size, found.labels[i], own[i] / size)
        if i < matched
        else Cluster(number, size)
        for i, (number, size) in enumerate(zip(found.clusters, sizes, strict=True))
    ]


def aligned_figure(
    clusters: Sequence[Cluster],
    means: Array,
    members: Sequence[Array],
    label_names: Sequence[str] | None = None,
    *,
    total: int | None = None,
    title: str | None = None,
) -> Figure:
    """A row for each cluster: the mean of its images with their pose removed, then some of them.

    All images have one scale, and all means another; RGB is drawn as it is, clipped to [0, 1].

    Arguments:
        clusters: The clusters, K of them.
        means: Their means, with shape (K, C, H, W), C 1 or 3.
        members: Some images of each cluster, with shape (M, C, H, W); M may differ.
        label_names: The names of labels 0, 1, ...; others are shown as numbers.
        total: How many clusters there are, if these are only the first.
        title: Instead of 'Clusters of images with their pose removed'.
    """
    averages = to_images("means", means)
    rows = [to_images("members", images) for images in members]
    if not len(clusters) == len(averages) == len(rows):
        raise ValueError(
            f"clusters, means, members: expected as many of each, got {len(clusters)}, "
            f"{len(averages)} and {len(rows)}"
        )
    for images in rows:
        if images.shape[1:] != averages.shape[1:]:
            raise ValueError(
                f"members: expected images with shape {tuple(averages.shape[1:])} like the means, "
                f"got {tuple(images.shape[1:])}"
            )
    if title is None:
        some = total is not None and total > len(clusters)
        which = f"The first {len(clusters)} of {total:,} clusters" if some else "Clusters"
        title = f"{which} of images with their pose removed"
        if any(cluster.label is not None for cluster in clusters):
            title += ", and how many of each have the label it is matched with"
    height, width = averages.shape[-2:]
    columns, gap = max(len(images) for images in rows), max(1, round(0.06 * width))
    shown, shown_means = display_range(torch.cat(rows)), display_range(averages)
    strip = np.ones((gap, columns * (width + gap) - gap, 3), np.float32)
    stacked = [part for row in rows for part in (mosaic(row, columns, shown, gap), strip)][:-1]
    first = mosaic(averages, 1, shown_means, gap)
    begin = width + 3 * gap
    names = [_row_name(cluster, label_names) for cluster in clusters]
    tile = tile_inches(columns + 1, len(rows), height / width)
    picture = beside([first, np.concatenate(stacked)], begin - width)
    figure, axes = mosaic_axes(
        picture,
        tile * picture.shape[1] / (width + gap),
        title,
        shown,
        left=MARGIN + 0.15 + max(text_inches(text, SMALL_SIZE) for name in names for text in name),
        top=2 * HEADER_LINE,
    )
    axes.set_xticks([])
    label_rows(axes, ["\n".join(name) for name in names], height, gap)
    axes.tick_params(axis="y", labelsize=SMALL_SIZE)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    centres = [(width - 1) / 2, begin + (columns * (width + gap) - gap - 1) / 2]
    write_above(axes, {"": ["mean", ""], " ": ["(own scale)", "some of the images"]}, centres)
    return figure


def confusion_figure(
    labels: Array,
    clusters: Array,
    label_names: Sequence[str] | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """How the images of each label are spread over the clusters, in per cent of the label.

    Each label stands in the row whose cluster it is matched with, so that what agrees is on the
    diagonal, which is framed; labels or clusters that are left over come last.

    Arguments:
        labels: Whole numbers, with shape (N,).
        clusters: Whole numbers, with shape (N,).
        label_names: The names of labels 0, 1, ...; others are shown as numbers.
        title: Instead of 'Labels against clusters, ...', with the accuracy.
    """
    found = matching(labels, clusters)
    sizes = found.counts.sum(axis=1)
    percent = 100 * found.counts / sizes[:, None]
    if title is None:
        title = (
            f"Labels against clusters in %, {sizes.sum():,} images: accuracy {found.accuracy:.3f}"
        )
    rows, columns = percent.shape
    cell = min(CELL, SIDE / max(rows, columns))
    names = [_name(label, label_names) for label in found.labels]
    left = LEFT + max(text_inches(name, SMALL_SIZE) for name in names)
    width, height = columns * cell, rows * cell
    written = cell >= WRITTEN_CELL
    right_margin = COUNTS + (MARGIN if written else BAR_INCHES)
    figure = new_page(max(left + width + right_margin, NARROWEST), BOTTOM + height + TOP, title)
    axes = axes_at(figure, left, BOTTOM, width, height)
    axes.imshow(percent, cmap=SHARE, vmin=0, vmax=100, aspect="auto")
    axes.tick_params(length=0, pad=3)
    axes.set(xlabel="cluster", ylabel="label", xticks=[], yticks=[])
    if cell >= TICKED_CELL:
        axes.set_xticks(range(columns), labels=[str(number) for number in found.clusters])
        axes.set_yticks(range(rows), labels=names)
        for row, size in enumerate(sizes.tolist()):
            _write(axes, columns - 0.4, row, f"{size:,}", ha="left")
        _write(axes, columns - 0.4, -0.55, "images", ha="left", va="bottom")
    if written:
        for row, column in np.argwhere(percent >= 0.5).tolist():
            share = percent[row, column]
            colour = "white" if share > DARK else "black"
            _write(axes, column, row, f"{share:.0f}", ha="center", color=colour)
    else:
        bar = axes_at(figure, left + width + COUNTS, BOTTOM, 0.09, min(height, 2.4))
        add_bar(bar, "% of the label", 0, 100, SHARE)
    for place in range(min(rows, columns)):
        frame = Rectangle((place - 0.5, place - 0.5), 1, 1, fill=False, lw=1.0, clip_on=False)
        frame.set_edgecolor(LINE_COLOURS[1])
        axes.add_patch(frame)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    return figure


def _write(axes: Axes, x: float, y: float, text: str, **options: Any) -> None:
    axes.text(x, y, text, fontsize=SMALL_SIZE - 0.5, **({"va": "center"} | options))


def _row_name(cluster: Cluster, label_names: Sequence[str] | None) -> list[str]:
    if cluster.label is None:
        return [f"cluster {cluster.number}", f"{cluster.size:,} images"]
    name = _name(cluster.label, label_names)
    return [
        f"cluster {cluster.number}, label {name}",
        f"{100 * cluster.share:.0f} % of {cluster.size:,} images",
    ]


def _name(label: int, names: Sequence[str] | None) -> str:
    return shortened(label_of(label, names), NAME_INCHES, SMALL_SIZE)
