"""The learned manifold: what is generated all over the space of z, pose removed."""

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.special import ndtri

from svae.checks import at_least, positive
from svae.figures.mosaic import Array, display_range, mosaic, mosaic_axes, to_images
from svae.figures.style import decimal

__all__ = ["manifold_figure", "manifold_z"]

# Up to here every tile has a tick; beyond, a few do.
ALL_TICKS = 10


def manifold_z(z_dim: int, n: int, std: float = 1.0) -> Tensor:
    r"""Latent values equally spaced through the inverse normal CDF (spatial-VAE figure 3).

    Along a component :math:`z_k = s \Phi^{-1}((i + 1/2) / n)`: the middles of n parts of the
    prior that are equally probable. From the second component on, the first two vary and the
    others are 0.

    Arguments:
        z_dim: The number of latent components.
        n: The number of values along a component.
        std: The prior's standard deviation s.

    Returns:
        The latent values in reading order for `manifold_figure`, with shape (n*n, z_dim), or
        (n, 1) for one component: z0 grows along a row, z1 falls from row to row.
    """
    at_least("z_dim", z_dim, 1)
    values = _quantiles(n, std).float()
    if z_dim == 1:
        return values.unsqueeze(-1)
    z1, z0 = torch.meshgrid(values.flip(0), values, indexing="ij")
    z = torch.zeros(n * n, z_dim)
    z[:, 0], z[:, 1] = z0.flatten(), z1.flatten()
    return z


def manifold_figure(
    images: Array, n_columns: int, *, title: str | None = None, std: float = 1.0
) -> Figure:
    """The images generated at `manifold_z`, edge to edge: z0 to the right, z1 upwards.

    Arguments:
        images: What is generated, in the order of `manifold_z`, with shape (n*n, C, H, W), or
            (n, C, H, W) for one latent component; C 1 or 3.
        n_columns: The number n of values along a component.
        title: Instead of 'Images generated over the content z, pose removed'.
        std: The prior's standard deviation, as in `manifold_z`.
    """
    at_least("n_columns", n_columns, 1)
    pictures = to_images("images", images)
    if len(pictures) not in (n_columns, n_columns**2):
        raise ValueError(
            f"images: expected n_columns={n_columns} of them or n_columns**2={n_columns**2}, "
            f"got {len(pictures)}"
        )
    rows = len(pictures) // n_columns
    height, width = pictures.shape[-2:]
    plane = rows > 1
    grey = display_range(pictures)
    figure, axes = mosaic_axes(
        mosaic(pictures, n_columns, grey),
        6.1 if plane else min(8.6, 1.6 + 0.7 * n_columns),
        "Images generated over the content z, pose removed" if title is None else title,
        grey,
        left=0.82 if plane else 0.25,
        bottom=0.52,
    )

    ticks = _tick_tiles(n_columns)
    labels = [decimal(value, 2) for value in _quantiles(n_columns, std)[ticks].tolist()]
    axes.set_xticks((ticks * width + (width - 1) / 2).tolist(), labels=labels)
    axes.set_xlabel("$z_0$ (at equally probable values)", fontsize=10, labelpad=3)
    if plane:
        from_top = rows - 1 - ticks
        axes.set_yticks((from_top * height + (height - 1) / 2).tolist(), labels=labels)
        axes.set_ylabel("$z_1$ (at equally probable values)", fontsize=10, labelpad=3)
    else:
        axes.set_yticks([])
    axes.tick_params(length=3, width=0.6)
    return figure


def _quantiles(n: int, std: float) -> Tensor:
    at_least("n", n, 1)
    return positive("std", std) * ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)


def _tick_tiles(n: int) -> Tensor:
    """Tiles that carry a tick: the first, the last, and some between, symmetric like the prior."""
    if n <= ALL_TICKS:
        return torch.arange(n)
    # An odd number includes the middle tile, where there is one.
    count = 5 if n % 2 else 6
    lower = torch.linspace(0, n - 1, count).round().long()[: (count + 1) // 2]
    return torch.cat((lower, n - 1 - lower)).unique()
