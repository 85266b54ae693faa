"""Objects turned by the model."""

import torch
from matplotlib.figure import Figure

from svae.figures.mosaic import (
    Array,
    display_range,
    label_columns,
    mosaic,
    mosaic_axes,
    tile_inches,
    to_images,
)
from svae.figures.style import decimal

__all__ = ["rotation_figure"]


def rotation_figure(images: Array, theta_deg: Array, *, title: str | None = None) -> Figure:
    """Rows of objects, columns of angles.

    Arguments:
        images: What is generated, with shape (R, A, C, H, W), C 1 or 3.
        theta_deg: The angles, counter-clockwise, with shape (A,).
        title: Instead of 'Generated objects, turned'.
    """
    objects, angles = torch.as_tensor(images), torch.as_tensor(theta_deg).detach().cpu()
    if objects.ndim != 5 or angles.shape != objects.shape[1:2]:
        raise ValueError(
            "images, theta_deg: expected shapes (R, A, C, H, W) and (A,), got "
            f"{tuple(objects.shape)} and {tuple(angles.shape)}"
        )
    pictures = to_images("images", objects.flatten(0, 1))
    rows, columns = objects.shape[:2]
    height, width = pictures.shape[-2:]
    gap = max(1, round(0.03 * width))
    grey = display_range(pictures)
    tile = tile_inches(columns, rows, height / width, narrowest=0.42, widest=1.0)
    figure, axes = mosaic_axes(
        mosaic(pictures, columns, grey, gap),
        columns * tile,
        "Generated objects, turned" if title is None else title,
        grey,
        left=0.45,
        bottom=0.52,
    )
    digits = 0 if bool(((angles - angles.round()).abs() < 0.05).all()) else 1
    label_columns(axes, [f"{decimal(a, digits)}°" for a in angles.tolist()], width, gap)
    axes.set_yticks([])
    axes.set_xlabel("angle θ, counter-clockwise", labelpad=3)
    return figure
