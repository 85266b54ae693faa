r"""The angle uniform on the circle.

Training minimises equation 3 of the paper, which does not penalise the mean:

.. math:: -\log\sigma + \log s + \frac{\sigma^2}{2 s^2} - \frac{1}{2}.

It is no divergence. What is reported is the exact one of the wrapped normal from the uniform,
:math:`\log 2\pi - H`. For small :math:`\sigma` and :math:`s = \pi`, equation 3 is larger by
:math:`\frac{1}{2}\log\frac{\pi}{2}` = 0.226 nat.

References:
    Explicitly disentangling image content from translation and rotation with spatial-VAE
    (Bepler et al., 2019), equation 3.
"""

import math

import torch
from torch import Tensor

from svae.checks import positive
from svae.distributions import Normal, WrappedNormal
from svae.priors.base import Prior
from svae.priors.gaussian import AngleFromPoint, GaussianAngle

__all__ = ["UniformAngle"]


class UniformAngle(GaussianAngle):
    """Every angle is as likely; the posterior is a wrapped normal.

    Arguments:
        std_deg: The standard deviation s of equation 3 in degrees (the paper: 180).
        start_deg: How wide the posterior of an untrained network is in degrees, and the unit of
            its outputs; a radian if null, as in the published code. Nothing holds the mean of a
            posterior under equation 3: where a step of the optimiser moves it by a radian, it can
            run off around the circle, and equation 3 then spreads the angle over it.
    """

    posterior = WrappedNormal

    def __init__(self, std_deg: float = 180.0, start_deg: float | None = None) -> None:
        super().__init__(std_deg)
        # However small s is: a mean may lie anywhere on the circle.
        self.unit = 1.0 if start_deg is None else math.radians(positive("start_deg", start_deg))

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.full_like(value, -math.log(2 * math.pi))

    def kl(self, q: Normal) -> Tensor:
        if not isinstance(q, WrappedNormal):
            raise TypeError(f"q: expected a WrappedNormal, got {type(q).__name__}")
        return math.log(2 * math.pi) - q.entropy()

    def optimised_kl(self, q: Normal) -> Tensor:
        """Equation 3 of the paper."""
        return self.spread_kl(q)

    def on_lattice(self, points: Tensor) -> tuple[Tensor, Prior | None]:
        """Equal weights, and deviations N(0, (pi/M)^2) from `points` (..., M): flat to 1.5 %."""
        count = points.shape[-1]
        return torch.full_like(points, -math.log(count)), AngleFromPoint(math.pi / count)
