r"""A von Mises angle: prior and posterior on the circle itself.

The paper calls it the ideal choice, and uses a normal angle because sampling and divergence
"stand in the way"; `svae.von_mises` has both exactly.

References:
    Explicitly disentangling image content from translation and rotation with spatial-VAE
    (Bepler et al., 2019), section 2.2.
"""

import math

import torch
from torch import Tensor

from svae.checks import positive
from svae.distributions import WrappedNormal
from svae.priors.base import Prior
from svae.priors.gaussian import angle_widths
from svae.von_mises import VonMises, concentration_of

__all__ = ["VonMisesAngle"]

# A posterior wider than this (in radians) is uniform, one narrower a point.
_WIDEST, _NARROWEST = 1e3, 1e-6


class VonMisesAngle(Prior):
    r"""The angle has a von Mises density about zero, or is uniform on the circle.

    A network gives the posterior's direction as a vector :math:`(1 + a, b)`, so that its outputs
    are continuous where the angle goes around the circle; a number would have to jump.

    Arguments:
        std_deg: The circular standard deviation in degrees, that of a normal angle wrapped around
            the circle; uniform if null.
    """

    num_params = 3

    def __init__(self, std_deg: float | None = None) -> None:
        super().__init__()
        self.std = None if std_deg is None else math.radians(positive("std_deg", std_deg))
        kappa = 0.0 if self.std is None else concentration_of(self.std)
        #: Of the prior: infinite if uniform.
        self.log_scale = -0.5 * math.log(kappa) if kappa else math.inf
        # Of a posterior's parameters, as `UniformAngle` has it where the prior is uniform.
        self.log_unit = self.log_scale if kappa else 0.0

    def extra_repr(self) -> str:
        return "uniform" if self.std is None else f"std={self.std:.4g}"

    def _at(self, value: Tensor) -> VonMises:
        """The prior with one mode for each of some values."""
        return VonMises(torch.zeros_like(value), torch.full_like(value, self.log_scale))

    def log_prob(self, value: Tensor) -> Tensor:
        return self._at(value).log_prob(value)

    def family(self, params: Tensor, around: Tensor | float = 0.0) -> VonMises:
        a, b, log_scale = params.unbind(-1)
        log_scale = (log_scale + self.log_unit).clamp(math.log(_NARROWEST), math.log(_WIDEST))
        return VonMises(_direction(1 + a, b) + around, log_scale)

    def kl(self, q: VonMises) -> Tensor:
        return q.kl(self._at(q.loc))

    def on_lattice(self, points: Tensor) -> tuple[Tensor, Prior | None]:
        """Von Mises deviations from equally spaced `points` (..., M), in radians.

        As wide as those of `GaussianAngle` and `UniformAngle`, and with the same weights: the
        marginal has the mean direction and spread of the prior that was asked for. Of a uniform
        prior it is flat to 9 % with two points, 2.5 % with eight, 1.7 % with sixteen.
        """
        count = points.shape[-1]
        if self.std is None:
            log_weights = torch.full_like(points, -math.log(count))
            return log_weights, VonMisesAngle(math.degrees(math.pi / count))
        width, spread = angle_widths(self.std, count)
        log_scale = torch.full_like(points, math.log(spread))
        density = WrappedNormal(torch.zeros_like(points), log_scale).log_prob(points)
        return torch.log_softmax(density, dim=-1), VonMisesAngle(math.degrees(width))


def _direction(x: Tensor, y: Tensor) -> Tensor:
    """The angle of vectors; where they vanish there is none, and no gradient."""
    nowhere = (x == 0) & (y == 0)
    return torch.atan2(y, torch.where(nowhere, 1.0, x))
