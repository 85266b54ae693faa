"""The images that a model explains worst."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from svae.figures.mosaic import (
    BAR_INCHES,
    HEADER_LINE,
    Array,
    DisplayRange,
    bar_beside,
    display_range,
    label_rows,
    mosaic,
    mosaic_axes,
    tile_inches,
    to_images,
    to_images_like,
    write_above,
)
from svae.figures.reconstructions import LEFT_INCHES, MAX_EXAMPLES, check_names, short_names
from svae.figures.style import DIFFERENCE, decimal

__all__ = ["worst_figure"]

# Part of the differences that may be beyond the scale, at both ends together.
CLIPPED = 1e-3


def worst_figure(
    images: Array,
    reconstructions: Array,
    log_likelihood: Array,
    names: Sequence[str] | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """Input, reconstruction and their difference, from the lowest log-likelihood up, 12 at most.

    Grey inputs and reconstructions share one scale. The difference of RGB images is the mean over
    their channels.

    Arguments:
        images: The inputs, with shape (B, C, H, W), C 1 or 3.
        reconstructions: What the model makes of them, with shape (B, C, H, W).
        log_likelihood: Of each image, in nats, with shape (B,).
        names: File names or labels, B of them.
        title: Instead of 'Images reconstructed worst, with their log-likelihood in nats'.
    """
    inputs = to_images("images", images)
    rebuilt = to_images_like("reconstructions", reconstructions, "images", inputs)
    nats = torch.as_tensor(log_likelihood).detach().cpu().double()
    if nats.shape != (len(inputs),):
        raise ValueError(
            f"log_likelihood: expected shape ({len(inputs)},), got {tuple(nats.shape)}"
        )
    # What is not a number is the worst of all.
    order = nats.nan_to_num(nan=-torch.inf).argsort(stable=True)[:MAX_EXAMPLES]
    inputs, rebuilt, nats = inputs[order], rebuilt[order], nats[order]
    shown, (height, width) = len(order), inputs.shape[-2:]
    tile = tile_inches(shown, 3, height / width)
    header = {"nats": [decimal(value, 1) for value in nats.tolist()]}
    if names is not None:
        checked = check_names(names, len(images))
        header = {"": short_names([checked[i] for i in order.tolist()], tile)} | header

    grey = display_range(torch.cat((inputs, rebuilt)))
    gap = max(1, round(0.06 * width))
    difference, largest, extend = _coloured((inputs - rebuilt).mean(dim=1))
    upper = mosaic(torch.cat((inputs, rebuilt)), shown, grey, gap)
    lower = mosaic(difference, shown, DisplayRange(0.0, 1.0), gap)
    white = np.ones((gap, *upper.shape[1:]), upper.dtype)
    picture = np.concatenate((upper, white, lower))
    figure, axes = mosaic_axes(
        picture,
        shown * tile,
        "Images reconstructed worst, with their log-likelihood in nats"
        if title is None
        else title,
        grey,
        bar=False,
        left=LEFT_INCHES,
        right=BAR_INCHES,
        top=HEADER_LINE * len(header),
    )
    subtracted = "input −\nreconstruction" + ("" if grey.grey else "\n(mean of RGB)")
    label_rows(axes, ["input", "reconstruction", subtracted], height, gap)
    axes.set_xticks([])
    write_above(axes, header, [(width - 1) / 2 + i * (width + gap) for i in range(shown)])

    rows = len(picture)
    if grey.grey:
        span = (1 - len(upper) / rows, 1.0)
        bar_beside(axes, span, "pixel value", grey.black, grey.white, "gray", grey.extend)
    span = (0.0, len(lower) / rows)
    bar_beside(axes, span, "difference", -largest, largest, DIFFERENCE, extend)
    return figure


def _coloured(difference: Tensor) -> tuple[Tensor, float, str]:
    """Differences (B, H, W) as RGB images, blue below zero; the largest drawn, what is beyond."""
    finite = difference.isfinite()
    values = difference[finite].abs().numpy()
    largest = float(np.quantile(values, 1 - CLIPPED)) if values.size else 0.0
    # Differences that are all the same as zero have no scale.
    largest = largest if largest > 0 else 1.0
    scaled = (difference.nan_to_num() / largest).clamp(-1, 1) / 2 + 0.5
    colours = matplotlib.colormaps[DIFFERENCE](scaled.numpy())[..., :3]
    images = torch.from_numpy(colours).float().movedim(-1, 1)
    # The mosaic shows what is not finite in its own colour.
    images = torch.where(finite.unsqueeze(1), images, torch.nan)
    beyond = values.size and values.max() > largest
    return images, largest, "both" if beyond else "neither"
