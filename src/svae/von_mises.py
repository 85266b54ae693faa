r"""The von Mises distribution: a concentrated angle on the circle.

.. math:: p(\theta) = \frac{\exp(\kappa \cos(\theta - \mu))}{2 \pi I_0(\kappa)}

Everything is computed in float64, from a uniform angle (:math:`\kappa = 0`) to
:math:`\kappa = 10^{12}`, a standard deviation of a millionth of a radian.

Samples are the quantiles of uniform noise, found by Newton's method on the distribution function

.. math:: F(\theta) = \frac{1}{2} + \frac{1}{2 \pi I_0(\kappa) e^{-\kappa}}
          \int_0^\theta e^{-2 \kappa \sin^2(t / 2)} dt,

and so follow the concentration smoothly: their derivative is exact, by implicit differentiation
(Implicit reparameterization gradients, Figurnov et al., 2018),

.. math:: \frac{d \theta}{d \kappa} = -\frac{\partial F / \partial \kappa}{p(\theta)}
          = -\int_0^\theta \frac{p(t)}{p(\theta)} (\cos t - A(\kappa)) dt,
          \qquad A(\kappa) = \frac{I_1(\kappa)}{I_0(\kappa)}.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from svae.constants import Constant
from svae.geometry import wrap_angle
from svae.noise import Noise

__all__ = [
    "VonMises",
    "concentration_of",
    "excess_resultant",
    "log_scaled_i0",
    "quantile",
]

# From here on asymptotic series are exact to 1e-13 and better, and Bessel functions cancel.
_LARGE = 50.0
# What lies further from the centre than this many standard deviations has no mass in float64.
_FAR = 9.0
# Of Gauss and Legendre's rule: exact to 1e-14 for a normal density up to nine deviations.
_NODES = 40
# Newton's method on a concave function from below it: with six, nothing changes beyond 1e-12.
_STEPS = 8


def log_scaled_i0(kappa: Tensor) -> Tensor:
    r""":math:`\log (I_0(\kappa) e^{-\kappa})`, differentiable, for float64 of at least 0."""
    safe = kappa.clamp(min=_LARGE)
    series = _polynomial(1 / safe, _I0) - 0.5 * torch.log(2 * math.pi * safe)
    few = kappa.clamp(max=_LARGE)
    return torch.where(kappa > _LARGE, series, torch.special.i0e(few).log())


def excess_resultant(kappa: Tensor) -> Tensor:
    r""":math:`1 - A(\kappa)`, differentiable, for float64 of at least 0.

    A is the mean resultant length; its distance from 1 is what has digits left for large kappa.
    """
    safe = kappa.clamp(min=_LARGE)
    series = _polynomial(1 / safe, _A)
    few = kappa.clamp(max=_LARGE)
    return torch.where(kappa > _LARGE, series, 1 - torch.special.i1e(few) / torch.special.i0e(few))


# log(I0(k) e^-k sqrt(2 pi k)) and 1 - I1(k) / I0(k) in powers 1, 2, ... of 1 / k, from the
# asymptotic series of both functions (Abramowitz and Stegun, 9.7.1).
def _series() -> tuple[list[float], list[float]]:
    order = 10
    i0, i1 = [1.0], [1.0]
    for n in range(1, order + 1):
        i0.append(i0[-1] * (2 * n - 1) ** 2 / (8 * n))
        i1.append(-i1[-1] * (4 - (2 * n - 1) ** 2) / (8 * n))
    ratio, log = [1.0], [0.0]
    for n in range(1, order + 1):
        ratio.append(i1[n] - sum(ratio[j] * i0[n - j] for j in range(n)))
        log.append(i0[n] - sum(j * log[j] * i0[n - j] for j in range(1, n)) / n)
    return log[1:], [-value for value in ratio[1:]]


_I0, _A = _series()


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    """The sum of `coefficients[n] x^(n + 1)`."""
    total = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = (total + coefficient) * x
    return total


@lru_cache
def concentration_of(std: float) -> float:
    r"""The kappa of a circular standard deviation, :math:`A(\kappa) = e^{-std^2 / 2}`.

    Arguments:
        std: In radians, above 0; a normal angle wrapped around the circle has this std.
    """
    # In terms of log(1 - A), which has digits left at both ends.
    wanted = math.log(-math.expm1(-0.5 * std**2))
    low, high = math.log(1e-12), math.log(1e12)
    for _ in range(80):
        middle = (low + high) / 2
        kappa = torch.tensor(math.exp(middle), dtype=torch.float64)
        wider = excess_resultant(kappa).log().item() > wanted
        low, high = (middle, high) if wider else (low, middle)
    return math.exp(high)


@Constant
def _rule(device: torch.device) -> tuple[Tensor, Tensor]:
    """Places in (0, 1) and weights of Gauss and Legendre's rule."""
    places, weights = np.polynomial.legendre.leggauss(_NODES)
    rule = torch.from_numpy((places + 1) / 2), torch.from_numpy(weights / 2)
    return rule[0].to(device), rule[1].to(device)


def _integral(low: Tensor, high: Tensor, kappa: Tensor, moment: bool) -> Tensor:
    r"""Of :math:`e^{-2 \kappa (\sin^2(t / 2) - \sin^2(low / 2))}` from `low` to `high`.

    Arguments:
        moment: Whether times :math:`\cos t - A(\kappa)`.
    """
    places, weights = _rule(kappa.device)
    width = (high - low).unsqueeze(-1)
    t = low.unsqueeze(-1) + width * places
    kappa = kappa.unsqueeze(-1)
    squared = torch.sin(t / 2) ** 2
    value = torch.exp(-2 * kappa * (squared - torch.sin(low / 2).unsqueeze(-1) ** 2))
    if moment:
        value = value * (excess_resultant(kappa) - 2 * squared)
    return (value * weights).sum(-1) * width.squeeze(-1)


def _limit(kappa: Tensor, near: Tensor, deviations: float) -> Tensor:
    """The angle up to pi beyond which nothing is left of a density that is 1 at `near`."""
    squared = torch.sin(near / 2) ** 2 + deviations**2 / (4 * kappa.clamp(min=1e-300))
    return 2 * torch.asin(squared.clamp(max=1.0).sqrt())


def quantile(u: Tensor, kappa: Tensor) -> Tensor:
    """The angles in [-pi, pi] below which a mass `u` lies, around zero; differentiable in kappa.

    Arguments:
        u: In (0, 1), float64.
        kappa: At least 0, float64, of a shape that broadcasts with that of `u`.
    """
    u, kappa = torch.broadcast_tensors(u, kappa)
    with torch.no_grad():
        k = kappa.detach()
        half = (u - 0.5).abs()
        scale = 2 * math.pi * torch.exp(log_scaled_i0(k))
        far = _limit(k, torch.zeros_like(k), _FAR)
        # The density in s = sin(theta / 2) is that of a normal variable on [-1, 1], nearly.
        spread = torch.sqrt(2 * k.clamp(min=1e-8))
        s = torch.erfinv((2 * half * torch.erf(spread)).clamp(max=1 - 1e-16)) / spread
        angle = torch.minimum(2 * torch.asin(s.clamp(max=1.0)), far)
        zero = torch.zeros_like(angle)
        for _ in range(_STEPS):
            missing = half * scale - _integral(zero, angle, k, moment=False)
            angle = angle + missing * torch.exp(2 * k * torch.sin(angle / 2) ** 2)
            angle = torch.minimum(angle.clamp(min=0.0), far)
    theta = angle * torch.sign(u - 0.5)
    if not kappa.requires_grad:
        return theta
    # Zero in value, with the derivative.
    return theta + (kappa - k) * (_slope(angle, k) * torch.sign(u - 0.5))


@torch.no_grad()
def _slope(angle: Tensor, kappa: Tensor) -> Tensor:
    """How the quantile at angles in [0, pi] moves with kappa."""
    # The integrand changes its sign once, and over [0, pi] the integral is zero: on the side of
    # the angle where it does not change, nothing cancels.
    zero = torch.zeros_like(angle)
    inner = 2 * torch.sin(angle / 2) ** 2 < excess_resultant(kappa)
    at_angle = torch.exp(2 * kappa * torch.sin(angle / 2) ** 2)
    below = -_integral(zero, angle, kappa, moment=True) * torch.where(inner, at_angle, 0.0)
    above = _integral(angle, _limit(kappa, angle, _FAR), kappa, moment=True)
    return torch.where(inner, below, above)


class VonMises:
    r"""A von Mises angle for each of B images.

    Arguments:
        loc: The directions in radians, with shape (B, ...).
        kappa: The concentrations, at least 0, with shape (B, ...). Where they are large, the
            standard deviation is :math:`1 / \sqrt{\kappa}`.
    """

    def __init__(self, loc: Tensor, kappa: Tensor) -> None:
        self.loc, self.kappa = loc, kappa.double()

    @property
    def mode(self) -> Tensor:
        """The most probable angle, with shape (B, ...)."""
        return self.loc

    @property
    def stddev(self) -> Tensor:
        r"""The circular standard deviation :math:`\sqrt{-2 \log A(\kappa)}`, shape (B, ...)."""
        resultant = (1 - excess_resultant(self.kappa)).clamp(min=1e-12)
        return torch.sqrt(-2 * resultant.log()).to(self.loc)

    def turned(self, angle: Tensor) -> "VonMises":
        """The distribution of the angle turned by `angle`, its mode wrapped to [-pi, pi)."""
        return VonMises(wrap_angle(self.loc + angle), self.kappa)

    def distance(self, value: Tensor, narrowest: float) -> Tensor:
        r"""The squared distance of a value from the mode in standard deviations, shape (B,).

        Of the circle's chord, :math:`4 \kappa \sin^2(\Delta / 2)`, which the density falls with.
        Arguments as those of `Normal.distance`.
        """
        kappa = self.kappa.detach().clamp(max=narrowest**-2).to(value)
        return 4 * kappa * torch.sin((value - self.loc) / 2) ** 2

    def rsample(self, count: int, noise: Noise, purpose: str) -> Tensor:
        """Reparameterised samples, with shape (count, B, ...); they are not wrapped."""
        u = noise.uniform(purpose, count, *self.loc.shape[1:]).to(self.loc.device)
        return self.loc + quantile(u.movedim(1, 0), self.kappa).to(self.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density on the circle in nats per radian, with shape (..., B)."""
        kappa = self.kappa
        squared = torch.sin((value - self.loc).double() / 2) ** 2
        log_prob = -2 * kappa * squared - log_scaled_i0(kappa) - math.log(2 * math.pi)
        return log_prob.to(self.loc)

    def kl(self, other: "VonMises") -> Tensor:
        r"""KL(self || other) in nats, in closed form, with shape (B, ...).

        .. math:: \kappa A(\kappa) - \kappa' A(\kappa) \cos(\mu - \mu')
                  + \log I_0(\kappa') - \log I_0(\kappa)
        """
        kappa, theirs = self.kappa, other.kappa
        excess = excess_resultant(kappa)
        squared = torch.sin((self.loc - other.loc).double() / 2) ** 2
        # 1 - A cos, without the difference of numbers near 1.
        apart = excess + 2 * (1 - excess) * squared
        kl = theirs * apart - kappa * excess + log_scaled_i0(theirs) - log_scaled_i0(kappa)
        return kl.to(self.loc)
