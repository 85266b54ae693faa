"""What a likelihood answers, and the mask that all of them share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from svae.checks import image_shape_of, positive
from svae.geometry import pixel_grid, pixel_size

__all__ = ["Likelihood"]


class Likelihood(nn.Module, ABC):
    """Independent pixels given their parameters (spatial-VAE eq. 1).

    Arguments:
        image_shape: The shape of the images, (C, H, W).
        mask_radius_px: Score only the pixels whose centre is within this radius of the image's
            centre, in pixels. With a mask the bound is that of the pixels inside it: compare
            only numbers of equal masks.
    """

    #: How many numbers a generator gives for each channel of a pixel.
    params_per_channel: int

    def __init__(self, image_shape: Sequence[int], mask_radius_px: float | None = None) -> None:
        super().__init__()
        self.channels, height, width = image_shape_of(image_shape)
        radius_px = pixel_grid(height, width).norm(dim=-1) / pixel_size(height, width)
        if mask_radius_px is None:
            scored = torch.arange(height * width)
        else:
            limit = positive("mask_radius_px", mask_radius_px)
            # A whole radius keeps the pixels that lie on it, whatever the rounding.
            scored = torch.nonzero(radius_px <= limit + 1e-6).squeeze(1)
            if not len(scored):
                raise ValueError(f"mask_radius_px: no pixel lies within {mask_radius_px} px")
        self.register_buffer("scored_pixels", scored, persistent=False)
        self.scored_pixels: Tensor

    @property
    def out_features(self) -> int:
        """How many numbers a generator gives for each pixel."""
        return self.channels * self.params_per_channel

    @abstractmethod
    def log_prob(self, params: Tensor, target: Tensor) -> Tensor:
        """Log-likelihood of each pixel in nats, summed over channels, constants included.

        Arguments:
            params: Pixel parameters, with shape (..., N, out_features).
            target: Pixel values, with shape (..., N, C).

        Returns:
            The log-likelihoods, with shape (..., N), at least float32.
        """

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """The expected pixel values (..., C), from parameters (..., out_features)."""

    @abstractmethod
    def stddev(self, params: Tensor) -> Tensor:
        """The standard deviation of pixel values (..., C), above 0; arguments as in `mean`."""

    def check(self, image: Tensor) -> None:
        """Raise ValueError if images (B, C, H, W) are outside of what the likelihood describes."""
        if not torch.isfinite(image).all():
            raise ValueError("images: expected finite pixel values, got NaN or infinity")
