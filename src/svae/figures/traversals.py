"""One component of z at a time, which shows what each of many does."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.special import ndtri

from svae.checks import at_least, positive
from svae.figures.mosaic import (
    Array,
    display_range,
    label_columns,
    label_rows,
    mosaic,
    mosaic_axes,
    tile_inches,
    to_images,
)
from svae.figures.style import decimal

__all__ = ["traversal_figure", "traversal_z"]

MAX_ROWS = 16
# The prior's quantiles between which a component moves: the values of 24 images in 25.
FROM, TO = 0.02, 0.98


def traversal_z(
    z_dim: int,
    steps: int,
    around: Tensor | None = None,
    dims: Sequence[int] | None = None,
    std: float = 1.0,
) -> tuple[Tensor, Tensor]:
    r"""Latent values in which one component moves through the prior and the others rest.

    The values :math:`s \Phi^{-1}(p)` are at probabilities p equally spaced from 0.02 to 0.98.

    Arguments:
        z_dim: The number of latent components.
        steps: The number of values; of a single one, the median.
        around: Where the others rest, with shape (z_dim,); at 0 if None.
        dims: The components that move, numbered from 0; all if None.
        std: The prior's standard deviation s.

    Returns:
        The latent values, with shape (len(dims) * steps, z_dim), one component after the other,
        and the values of the component that moves, with shape (steps,).
    """
    at_least("z_dim", z_dim, 1)
    at_least("steps", steps, 1)
    chosen = list(range(z_dim)) if dims is None else list(dims)
    if not chosen or not all(0 <= dim < z_dim for dim in chosen):
        raise ValueError(f"dims: expected numbers from 0 to {z_dim - 1}, got {chosen}")
    rest = torch.zeros(z_dim) if around is None else around.detach().cpu().float()
    if rest.shape != (z_dim,):
        raise ValueError(f"around: expected shape {(z_dim,)}, got {tuple(rest.shape)}")
    ends = (FROM, TO) if steps > 1 else (0.5, 0.5)
    probability = torch.linspace(*ends, steps, dtype=torch.float64)
    values = (positive("std", std) * ndtri(probability)).float()
    z = rest.repeat(len(chosen), steps, 1)
    for row, dim in enumerate(chosen):
        z[row, :, dim] = values
    return z.flatten(0, 1), values


def traversal_figure(
    images: Array, dims: Sequence[int], values: Array, *, title: str | None = None
) -> Figure:
    """The images generated at `traversal_z`: a row for each component, values to the right.

    Arguments:
        images: What is generated, in the order of `traversal_z`, with shape
            (len(dims) * steps, C, H, W), C 1 or 3.
        dims: The components that move, at most 16, numbered from 0.
        values: The values they take, with shape (steps,).
        title: Instead of 'One component of z at a time, pose removed'.
    """
    pictures = to_images("images", images)
    value = torch.as_tensor(values).detach().cpu()
    if not 1 <= len(dims) <= MAX_ROWS:
        raise ValueError(f"dims: expected 1 to {MAX_ROWS} components, got {len(dims)}")
    if value.ndim != 1 or len(pictures) != len(dims) * len(value):
        raise ValueError(
            f"images: expected one for each of {len(dims)} components and of values "
            f"{tuple(value.shape)}, got {len(pictures)}"
        )
    height, width = pictures.shape[-2:]
    gap = max(1, round(0.03 * width))
    grey = display_range(pictures)
    steps = len(value)
    tile = tile_inches(steps, len(dims), height / width, narrowest=0.42, widest=1.0)
    figure, axes = mosaic_axes(
        mosaic(pictures, steps, grey, gap),
        steps * tile,
        "One component of z at a time, pose removed" if title is None else title,
        grey,
        left=0.45,
        bottom=0.52,
    )
    label_rows(axes, [f"$z_{{{dim}}}$" for dim in dims], height, gap)
    axes.tick_params(axis="y", labelsize=11)
    label_columns(axes, [decimal(v, 2) for v in value.tolist()], width, gap)
    axes.set_xlabel("value, the others fixed", labelpad=3)
    return figure
