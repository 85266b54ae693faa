"""The learned manifold: what is generated all over the space of z, pose removed."""

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.special import ndtri

from svae.checks import at_least
from svae.figures.mosaic import Array, display_range, mosaic, mosaic_axes, to_images

__all__ = ["manifold_figure", "manifold_z"]

# Up to here every tile has a tick; beyond, a few do.
ALL_TICKS = 10


def manifold_z(z_dim: int, n: int) -> Tensor:
    r"""Latent values equally spaced through the inverse normal CDF (spatial-VAE figure 3).

    Along a dimension :math:`z_i = \Phi^{-1}((i + 1/2) / n)`: the middles of n parts of the prior
    that are equally probable. From the second dimension on, the first two vary and the others are
    0.

    Arguments:
        z_dim: The number of latent dimensions.
        n: The number of values along a dimension.

    Returns:
        The latent values in reading order for `manifold_figure`, with shape (n*n, z_dim), or
        (n, 1) for one dimension: z1 grows along a row, z2 falls from row to row.
    """
    at_least("z_dim", z_dim, 1)
    values = _quantiles(n).float()
    if z_dim == 1:
        return values.unsqueeze(-1)
    z2, z1 = torch.meshgrid(values.flip(0), values, indexing="ij")
    z = torch.zeros(n * n, z_dim)
    z[:, 0], z[:, 1] = z1.flatten(), z2.flatten()
    return z


def manifold_figure(images: Array, n_columns: int) -> Figure:
    """The images generated at `manifold_z`, edge to edge: z1 to the right, z2 upwards.

    Arguments:
        images: What is generated, in the order of `manifold_z`, with shape (n*n, C, H, W), or
            (n, C, H, W) for one latent dimension; C 1 or 3.
        n_columns: The number n of values along a dimension.
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
    picture = mosaic(pictures, n_columns, *display_range(pictures))
    plane = rows > 1
    figure, axes = mosaic_axes(
        picture,
        7.0 if plane else min(9.0, 2.0 + 0.7 * n_columns),
        left=0.82 if plane else 0.2,
        right=0.12 if plane else 0.2,
        top=0.12,
        bottom=0.52,
    )

    ticks = _tick_tiles(n_columns)
    labels = [f"{z + 0.0:.2f}".replace("-", "−") for z in _quantiles(n_columns)[ticks].tolist()]
    axes.set_xticks((ticks * width + (width - 1) / 2).tolist(), labels=labels)
    axes.set_xlabel("$z_1$ (normal quantiles)", fontsize=11, labelpad=3)
    if plane:
        from_top = rows - 1 - ticks
        axes.set_yticks((from_top * height + (height - 1) / 2).tolist(), labels=labels)
        axes.set_ylabel("$z_2$ (normal quantiles)", fontsize=11, labelpad=3)
    else:
        axes.set_yticks([])
    axes.tick_params(length=3, width=0.6)
    return figure


def _quantiles(n: int) -> Tensor:
    at_least("n", n, 1)
    return ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)


def _tick_tiles(n: int) -> Tensor:
    """Tiles that carry a tick: the first, the last, and some between, symmetric like the prior."""
    if n <= ALL_TICKS:
        return torch.arange(n)
    # An odd number includes the middle tile, where there is one.
    count = 5 if n % 2 else 6
    lower = torch.linspace(0, n - 1, count).round().long()[: (count + 1) // 2]
    return torch.cat((lower, n - 1 - lower)).unique()
