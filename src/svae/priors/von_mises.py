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
from svae.geometry import rotate
from svae.latents import Latents
from svae.priors.base import Prior, cut_at
from svae.priors.gaussian import angle_widths
from svae.von_mises import VonMises, concentration_of

__all__ = ["VonMisesAngle"]

# A vector of this length has no direction worth knowing, and square roots keep their gradient.
_SHORTEST = 1e-6
# More certain than a billionth of a radian.
_LONGEST = 40.0


class VonMisesAngle(Prior):
    r"""The angle has a von Mises density about zero, or is uniform on the circle.

    A network gives the posterior as a vector, whose direction is that of the angle and whose
    length r is the certainty, :math:`\kappa = e^r - 1`. So its outputs are continuous where the
    angle goes around the circle, where a number would have to jump; and a posterior that has
    become uniform, from which a width has no gradient back, still has one towards each direction.

    Arguments:
        std_deg: The circular standard deviation in degrees, that of a normal angle wrapped around
            the circle; uniform if null.
    """

    num_params = 2

    def __init__(self, std_deg: float | None = None) -> None:
        super().__init__()
        self.std = None if std_deg is None else math.radians(positive("std_deg", std_deg))
        #: The concentration of the prior.
        self.kappa = 0.0 if self.std is None else concentration_of(self.std)
        # A network's outputs near zero mean the prior, or about a radian (kappa = 1 is 1.3) where
        # that is wider, from which no angle can be learned (`GaussianAngle` has the same).
        self.start = math.log1p(max(self.kappa, 1.0))
        self.unit = 1.0 if self.std is None else min(self.std, 1.0)

    def extra_repr(self) -> str:
        return "uniform" if self.std is None else f"std={self.std:.4g}"

    def _at(self, value: Tensor) -> VonMises:
        """The prior, once for each of some values."""
        kappa = torch.full_like(value, self.kappa, dtype=torch.float64)
        return VonMises(torch.zeros_like(value), kappa)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._at(value).log_prob(value)

    def family(self, params: Tensor, around: Tensor | float = 0.0) -> VonMises:
        x, y = params.double().unbind(-1)
        x = x + self.start
        length = torch.sqrt(x**2 + y**2 + _SHORTEST**2)
        # The gradient of an angle is one over the length: none where there is no direction.
        nowhere = length < 2 * _SHORTEST
        loc = torch.atan2(torch.where(nowhere, 0.0, y), torch.where(nowhere, 1.0, x))
        return VonMises(loc.to(params) + around, torch.expm1(cut_at(length, _LONGEST)))

    def corrected(self, params: Tensor, correction: Tensor, pose: Latents) -> Tensor:
        return params + rotate(correction, pose.theta)  # of a vector in the angle's direction

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
            return log_weights, _deviation(math.pi / count)
        width, spread = angle_widths(self.std, count)
        log_scale = torch.full_like(points, math.log(spread))
        density = WrappedNormal(torch.zeros_like(points), log_scale).log_prob(points)
        return torch.log_softmax(density, dim=-1), _deviation(width)


def _deviation(std: float) -> VonMisesAngle:
    """The prior of the deviation from a point; a network's outputs near zero mean it."""
    prior = VonMisesAngle(math.degrees(std))
    prior.start = math.log1p(prior.kappa)
    return prior
