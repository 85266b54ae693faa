r"""Real-valued pixels.

.. math:: \log p(y) = -\frac{(y - \mu)^2}{2 \sigma^2} - \log\sigma - \frac{1}{2} \log 2\pi

The published code leaves the constant out (and with a fitted noise mixes up means and variances);
numbers here are log-densities.

References:
    Explicitly disentangling image content from translation and rotation with spatial-VAE
    (Bepler et al., 2019), sections 2.1, 4.1 and 4.4 (the non-negative mean).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from svae.checks import positive
from svae.likelihoods.additive import AdditiveNoise

__all__ = ["Gaussian", "PerPixelGaussian"]


def _log_normal(target: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    standard = (target - mean) * torch.exp(-log_std)
    return (-0.5 * (standard**2 + math.log(2 * math.pi)) - log_std).sum(-1)


class Gaussian(AdditiveNoise):
    """Normal noise of one standard deviation for all pixels.

    Arguments:
        image_shape: As in `Likelihood`.
        std: The standard deviation, in the units of the pixel values.
        learn_std: Whether it is trained, starting there.
        nonnegative_mean: As in `AdditiveNoise`.
        mask_radius_px: As in `Likelihood`.
        object_radius_px: As in `AdditiveNoise`.
        object_edge_px: As in `AdditiveNoise`.
        ctf_padding: As in `AdditiveNoise`.
    """

    params_per_channel = 1

    def __init__(
        self,
        image_shape: Sequence[int],
        std: float = 1.0,
        learn_std: bool = False,
        nonnegative_mean: bool = False,
        mask_radius_px: float | None = None,
        object_radius_px: float | None = None,
        object_edge_px: float = 5.0,
        ctf_padding: int = 1,
    ) -> None:
        super().__init__(
            image_shape,
            nonnegative_mean,
            mask_radius_px,
            object_radius_px,
            object_edge_px,
            ctf_padding,
        )
        self.log_std = nn.Parameter(torch.tensor(math.log(positive("std", std))), learn_std)

    def log_prob(self, params: Tensor, target: Tensor, mean: Tensor | None = None) -> Tensor:
        return _log_normal(target, self.mean(params) if mean is None else mean, self.log_std)

    def stddev(self, params: Tensor) -> Tensor:
        return self.log_std.exp().expand(*params.shape[:-1], self.channels)


class PerPixelGaussian(AdditiveNoise):
    """Normal noise whose standard deviation the generator gives for every pixel.

    Arguments:
        image_shape: As in `Likelihood`.
        min_std: What is added to each standard deviation: without it, a single pixel that is
            reproduced exactly would make the likelihood infinite.
        nonnegative_mean: As in `AdditiveNoise`.
        mask_radius_px: As in `Likelihood`.
        object_radius_px: As in `AdditiveNoise`.
        object_edge_px: As in `AdditiveNoise`.
        ctf_padding: As in `AdditiveNoise`.
    """

    params_per_channel = 2

    def __init__(
        self,
        image_shape: Sequence[int],
        min_std: float = 0.01,
        nonnegative_mean: bool = False,
        mask_radius_px: float | None = None,
        object_radius_px: float | None = None,
        object_edge_px: float = 5.0,
        ctf_padding: int = 1,
    ) -> None:
        super().__init__(
            image_shape,
            nonnegative_mean,
            mask_radius_px,
            object_radius_px,
            object_edge_px,
            ctf_padding,
        )
        self.min_std = positive("min_std", min_std)

    def log_prob(self, params: Tensor, target: Tensor, mean: Tensor | None = None) -> Tensor:
        log_std = self.stddev(params).log()
        return _log_normal(target, self.mean(params) if mean is None else mean, log_std)

    def stddev(self, params: Tensor) -> Tensor:
        raw = params.to(torch.promote_types(params.dtype, torch.float32))
        return softplus(raw[..., self.channels :]) + self.min_std
