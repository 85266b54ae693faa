"""Likelihoods whose noise is added to the mean, so that something can be made of it before.

References:
    Explicitly disentangling image content from translation and rotation with spatial-VAE
    (Bepler et al., 2019), section 4.4 (the non-negative mean).
"""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from svae.checks import at_least, positive
from svae.geometry import pixel_size
from svae.likelihoods.base import Likelihood

__all__ = ["AdditiveNoise"]


class AdditiveNoise(Likelihood):
    """Pixels with a mean that is given by the first parameters, one for each channel.

    The mask around the object belongs to the mean and not to what is scored: were the pixels that
    are scored to depend on the pose, there would be no bound.

    Arguments:
        image_shape: As in `Likelihood`.
        nonnegative_mean: Whether the mean goes through a softplus, which keeps the generator from
            modelling the background (section 4.4).
        mask_radius_px: As in `Likelihood`.
        object_radius_px: The mean is zero, the background, outside of this radius around the
            object's own centre, wherever the object lies; in pixels of its own size 1, where
            sizes are inferred. Null for no such mask.
        object_edge_px: The width of the mask's soft edge, half a period of a cosine that begins
            at the radius and ends so much further out; in pixels.
        ctf_padding: Where images come with a CTF, as `padding` in `svae.ctf.CTF.filtered`.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        nonnegative_mean: bool,
        mask_radius_px: float | None,
        object_radius_px: float | None,
        object_edge_px: float,
        ctf_padding: int,
    ) -> None:
        super().__init__(image_shape, mask_radius_px)
        self.nonnegative_mean = nonnegative_mean
        self.pixel_size = pixel_size(*image_shape[1:])
        if object_radius_px is not None:
            positive("object_radius_px", object_radius_px)
        self.object_radius_px = object_radius_px
        self.object_edge_px = positive("object_edge_px", object_edge_px)
        self.ctf_padding = at_least("ctf_padding", ctf_padding, 1)

    @abstractmethod
    def log_prob(self, params: Tensor, target: Tensor, mean: Tensor | None = None) -> Tensor:
        """As in `Likelihood`.

        Arguments:
            params: Pixel parameters, with shape (..., N, out_features).
            target: Pixel values, with shape (..., N, C).
            mean: The mean (..., N, C) in the place of what `mean` makes of the parameters.
        """

    def mean(self, params: Tensor, coords: Tensor | None = None) -> Tensor:
        """As in `Likelihood`; with the mask around the object where coordinates are given.

        Arguments:
            params: Pixel parameters, with shape (..., out_features).
            coords: Where the pixels lie in the object frame, with shape (..., 2).
        """
        mean = params[..., : self.channels]
        mean = mean.to(torch.promote_types(mean.dtype, torch.float32))
        mean = softplus(mean) if self.nonnegative_mean else mean
        if coords is None or self.object_radius_px is None:
            return mean
        outside_px = coords.norm(dim=-1, keepdim=True) / self.pixel_size - self.object_radius_px
        part = (outside_px / self.object_edge_px).clamp(0, 1)
        return mean * (1 + torch.cos(math.pi * part)) / 2
