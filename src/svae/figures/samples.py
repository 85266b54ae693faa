"""What a model makes up: samples from the prior, and ways between two images."""

import math
from functools import partial

import torch
from matplotlib.figure import Figure

from svae.figures.mosaic import (
    HEADER_LINE,
    Array,
    beside,
    display_range,
    label_columns,
    mosaic,
    mosaic_axes,
    tile_inches,
    to_images,
    to_images_like,
    write_above,
)
from svae.figures.style import decimal

__all__ = ["interpolation_figure", "samples_figure"]


def samples_figure(
    images: Array, *, examples: Array | None = None, title: str | None = None
) -> Figure:
    """A square of generated samples, with real images on its left (spatial-VAE figure 5).

    Arguments:
        images: Samples, from z of the prior without a pose, with shape (B, C, H, W), C 1 or 3.
        examples: Real images, with shape (N, C, H, W); they get as many rows as the samples.
        title: Instead of 'Samples from the prior, pose removed'.
    """
    samples = to_images("images", images)
    real = samples[:0] if examples is None else to_images("examples", examples)
    if real.shape[1:] != samples.shape[1:]:
        raise ValueError(
            f"examples: expected shape (N, *{tuple(samples.shape[1:])}) like images, "
            f"got {tuple(real.shape)}"
        )
    height, width = samples.shape[-2:]
    columns = math.ceil(math.sqrt(len(samples)))
    rows = math.ceil(len(samples) / columns)
    real_columns = math.ceil(len(real) / rows)
    gap, wide = max(1, round(0.03 * width)), max(2, round(0.5 * width))
    grey = display_range(torch.cat((real, samples)))

    parts, centres, headers = [], [], []
    if len(real):
        parts.append(mosaic(real, real_columns, grey, gap))
        centres.append((parts[0].shape[1] - 1) / 2)
        headers.append("data")
    parts.append(mosaic(samples, columns, grey, gap))
    picture = beside(parts, wide)
    centres.append(picture.shape[1] - 1 - (parts[-1].shape[1] - 1) / 2)
    headers.append("samples")
    tile = tile_inches(columns + real_columns, rows, height / width, narrowest=0.2, widest=1.0)
    figure, axes = mosaic_axes(
        picture,
        tile * picture.shape[1] / (width + gap),
        "Samples from the prior, pose removed" if title is None else title,
        grey,
        top=HEADER_LINE if len(real) else 0.0,
    )
    axes.set_xticks([])
    axes.set_yticks([])
    if len(real):
        write_above(axes, {"": headers}, centres, size=9)
    return figure


def interpolation_figure(
    start: Array, end: Array, frames: Array, *, title: str | None = None
) -> Figure:
    """Rows of pairs; between the two images what is generated on the way (spatial-VAE figure 6).

    Arguments:
        start: Images as observed, on the left, with shape (P, C, H, W), C 1 or 3.
        end: Images as observed, on the right, with shape (P, C, H, W).
        frames: What is generated, without a pose, at equally spaced z between the two, with shape
            (P, S, C, H, W).
        title: Instead of 'From one image to another, pose removed between them'.
    """
    first = to_images("start", start)
    last = to_images_like("end", end, "start", first)
    way = torch.as_tensor(frames)
    pairs, *shape = first.shape
    if way.ndim != 5 or (way.shape[0], *way.shape[2:]) != (pairs, *shape) or not way.shape[1]:
        raise ValueError(
            f"frames: expected shape ({pairs}, S, {', '.join(map(str, shape))}) like start, "
            f"S at least 1, got {tuple(way.shape)}"
        )
    steps = way.shape[1]
    between = to_images("frames", way.flatten(0, 1))
    height, width = shape[-2:]
    gap, wide = max(1, round(0.03 * width)), max(2, round(0.35 * width))
    grey = display_range(torch.cat((first, last, between)))
    tiled = partial(mosaic, shown=grey, gap=gap)
    parts = [tiled(first, 1), tiled(between, steps), tiled(last, 1)]
    picture = beside(parts, wide)
    tile = tile_inches(steps + 2, pairs, height / width, narrowest=0.42, widest=1.0)
    figure, axes = mosaic_axes(
        picture,
        tile * picture.shape[1] / (width + gap),
        "From one image to another, pose removed between them" if title is None else title,
        grey,
        left=0.25,
        top=HEADER_LINE,
        bottom=0.5,
    )
    axes.set_yticks([])
    centre, begin = (width - 1) / 2, width + wide
    fractions = torch.linspace(0, 1, steps).tolist()
    label_columns(axes, [decimal(f, 2) for f in fractions], width, gap, begin)
    middle = begin + (parts[1].shape[1] - 1) / 2
    axes.set_xlabel("position on the way from start to end in z", labelpad=3)
    centres = [centre, middle, picture.shape[1] - 1 - centre]
    write_above(axes, {"": ["start", "generated", "end"]}, centres, size=9)
    return figure
