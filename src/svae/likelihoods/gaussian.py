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
from svae.likelihoods.base import Likelihood

__all__ = ["Gaussian", "PerPixelGaussian"]


def _log_normal(target: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    standard = (target - mean) * torch.exp(-log_std)
    return (-0.5 * (standard**2 + math.log(2 * math.pi)) - log_std).sum(-1)


class Gaussian(Likelihood):
    """Normal noise of one standard deviation for all pixels.

    Arguments:
        image_shape: As in `Likelihood`.
        std: The standard deviation, in the units of the pixel values.
        learn_std: Whether it is trained, starting there.
        nonnegative_mean: Whether the mean goes through a softplus, which keeps the generator from
            modelling the background (section 4.4).
        mask_radius_px: As in `Likelihood`.
    """

    params_per_channel = 1

    def __init__(
        self,
        image_shape: Sequence[int],
        std: float = 1.0,
        learn_std: bool = False,
        nonnegative_mean: bool = False,
        mask_radius_px: float | None = None,
    ) -> None:
        super().__init__(image_shape, mask_radius_px)
        self.nonnegative_mean = nonnegative_mean
        self.log_std = nn.Parameter(torch.tensor(math.log(positive("std", std))), learn_std)

    def log_prob(self, params: Tensor, target: Tensor) -> Tensor:
        return _log_normal(target, self.mean(params), self.log_std)

    def mean(self, params: Tensor) -> Tensor:
        mean = params.to(torch.promote_types(params.dtype, torch.float32))
        return softplus(mean) if self.nonnegative_mean else mean


class PerPixelGaussian(Likelihood):
    """Normal noise whose standard deviation the generator gives for every pixel.

    Arguments:
        image_shape: As in `Likelihood`.
        min_std: What is added to each standard deviation: without it, a single pixel that is
            reproduced exactly would make the likelihood infinite.
        nonnegative_mean: As in `Gaussian`.
        mask_radius_px: As in `Likelihood`.
    """

    params_per_channel = 2

    def __init__(
        self,
        image_shape: Sequence[int],
        min_std: float = 0.01,
        nonnegative_mean: bool = False,
        mask_radius_px: float | None = None,
    ) -> None:
        super().__init__(image_shape, mask_radius_px)
        self.min_std = positive("min_std", min_std)
        self.nonnegative_mean = nonnegative_mean

    def log_prob(self, params: Tensor, target: Tensor) -> Tensor:
        raw = params.to(torch.promote_types(params.dtype, torch.float32))
        std = softplus(raw[..., self.channels :]) + self.min_std
        return _log_normal(target, self.mean(params), torch.log(std))

    def mean(self, params: Tensor) -> Tensor:
        mean = params[..., : self.channels]
        mean = mean.to(torch.promote_types(mean.dtype, torch.float32))
        return softplus(mean) if self.nonnegative_mean else mean
