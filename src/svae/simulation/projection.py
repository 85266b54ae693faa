r"""Projections of atoms, each a Gaussian blob.

The density :math:`\rho(r) = \sum_a w_a (2 \pi \sigma^2)^{-3/2} e^{-|r - r_a|^2 / 2 \sigma^2}`
summed along z is the same sum of Gaussians in two dimensions, exactly, and each of those is a
product of one in x and one in y: an image is a product of two matrices, drawn in its pose and
interpolated nowhere.

Reference:
    The width is that of `molmap` in UCSF Chimera (Goddard, Huang and Ferrin, 2007).
"""

import math

import torch
from torch import Tensor

from svae.geometry import pixel_grid, pixel_size

__all__ = ["project", "resolution_std"]

#: How many values of one-dimensional Gaussians are held at once, for the memory.
_VALUES = 2**24


def resolution_std(resolution: float) -> float:
    """The standard deviation of blobs whose Fourier transform is 1/e at 1 / `resolution`."""
    return resolution / (math.pi * math.sqrt(2))


def project(points: Tensor, weights: Tensor, std: float, height: int, width: int) -> Tensor:
    """Projections along z at the pixel centres, in weight per square unit of length.

    Arguments:
        points: The atoms (x, y) in pixels from the middle of the image, x to the right and y up,
            with shape (B, A, 2).
        weights: With shape (A,).
        std: The standard deviation of the blobs in pixels.
        height: Pixels.
        width: Pixels.

    Returns:
        The images, with shape (B, height, width), float32.
    """
    grid = pixel_grid(height, width) / pixel_size(height, width)
    grid = grid.unflatten(0, (height, width))
    columns, rows = grid[0, :, 0].float(), grid[:, 0, 1].float()
    points, weights = points.float(), weights.float() / (2 * math.pi * std**2)
    images = torch.empty(len(points), height, width)
    at_once = max(1, _VALUES // (len(weights) * (height + width)))
    for part in torch.arange(len(points)).split(at_once):
        x, y = points[part].unsqueeze(-1).unbind(2)  # (b, A, 1)
        across = _gaussian(columns - x, std) * weights.unsqueeze(-1)
        images[part] = _gaussian(rows - y, std).transpose(1, 2) @ across
    return images


def _gaussian(distance: Tensor, std: float) -> Tensor:
    # exp is slow where its result is no normal number; exp(-40) is 4e-18.
    return (distance.square_() * (-0.5 / std**2)).clamp_(min=-40).exp_()
