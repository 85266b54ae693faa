r"""Approximate posteriors of one latent variable.

A distribution here is a throw-away value that a network's output becomes: it samples from given
noise, scores values, and knows its mode and its standard deviation.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from svae.constants import Constant
from svae.geometry import rotate, wrap_angle
from svae.noise import Noise

__all__ = ["Distribution", "Exactly", "IsotropicNormal", "Normal", "WrappedNormal"]

_LOG_TWO_PI = math.log(2 * math.pi)


class Distribution(Protocol):
    """What a posterior asks of the distribution of one latent variable.

    Every method is that of `Normal`; only angles are turned.
    """

    @property
    def mode(self) -> Tensor: ...

    @property
    def stddev(self) -> Tensor: ...

    def rsample(self, count: int, noise: Noise, purpose: str) -> Tensor: ...

    def log_prob(self, value: Tensor) -> Tensor: ...

    def turned(self, angle: Tensor) -> "Distribution": ...

    def distance(self, value: Tensor, narrowest: float) -> Tensor: ...


class Normal:
    r"""Independent normal variables :math:`N(\mu, \sigma^2)`.

    Arguments:
        loc: The means, with shape (B, *event).
        log_scale: The logarithms of the standard deviations, with shape (B, *event).
        event_dims: How many trailing axes form one value: 0 for an angle, 1 for a vector.
    """

    def __init__(self, loc: Tensor, log_scale: Tensor, event_dims: int = 0) -> None:
        self.loc, self.log_scale, self.event_dims = loc, log_scale, event_dims

    @property
    def scale(self) -> Tensor:
        """The standard deviations, with shape (B, *event)."""
        return self.log_scale.exp()

    @property
    def mode(self) -> Tensor:
        """The most probable value, with shape (B, *event)."""
        return self.loc

    @property
    def stddev(self) -> Tensor:
        """The standard deviation of each component, with shape (B, *event)."""
        return self.scale

    def turned(self, angle: Tensor) -> "Normal":
        """The distribution of an angle turned by `angle` (B,), its mean wrapped to [-pi, pi)."""
        return type(self)(wrap_angle(self.loc + angle), self.log_scale, self.event_dims)

    def distance(self, value: Tensor, narrowest: float) -> Tensor:
        """The squared distance of a value from the mode in standard deviations, shape (B,).

        Arguments:
            value: With shape (B, *event).
            narrowest: What counts as a standard deviation at least; these have no gradient.
        """
        offset = self._offset(value, self.loc)
        return self.sum_event((offset / self.scale.detach().clamp(min=narrowest)) ** 2)

    @staticmethod
    def _offset(value: Tensor, loc: Tensor) -> Tensor:
        return value - loc

    def rsample(self, count: int, noise: Noise, purpose: str) -> Tensor:
        """Reparameterised samples, with shape (count, B, *event)."""
        standard = noise.normal(purpose, count, *self.loc.shape[1:]).to(self.loc)
        return self.loc + self.scale * standard.movedim(1, 0)

    def sum_event(self, value: Tensor) -> Tensor:
        """`value` summed over the axes of one value, with shape (..., B)."""
        return value.sum(tuple(range(-self.event_dims, 0))) if self.event_dims else value

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, with shape (..., B), of values with shape (..., B, *event)."""
        standard = (value - self.loc) * torch.exp(-self.log_scale)
        return self.sum_event(-0.5 * (standard**2 + _LOG_TWO_PI) - self.log_scale)


class IsotropicNormal(Normal):
    """A normal position, as wide in every direction: `log_scale` has the same in both."""

    def placed(self, angle: Tensor, place: Tensor) -> "IsotropicNormal":
        """Turned about the origin by `angle` (B,), then moved by `place` (B, 2)."""
        return IsotropicNormal(rotate(self.loc, angle) + place, self.log_scale, self.event_dims)


class Exactly:
    """A vector that is known exactly: a probability mass of one.

    Arguments:
        mode: The value, with shape (..., n).
    """

    #: How far from it a value counts as another, by rounding.
    _ROUNDING = 1e-4

    def __init__(self, mode: Tensor) -> None:
        self.mode = mode

    @property
    def stddev(self) -> Tensor:
        """Zeros, with the shape of the mode."""
        return torch.zeros_like(self.mode)

    def rsample(self, count: int, noise: Noise, purpose: str) -> Tensor:
        """The mode, `count` times."""
        return self.mode.expand(count, *self.mode.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-mass, with shape (...): zero, or minus infinity at other values (..., n)."""
        return self.log_prob_of(value - self.mode)

    @staticmethod
    def log_prob_of(offset: Tensor) -> Tensor:
        """Log-mass of values that are `offset` (..., n) from the mode."""
        elsewhere = offset.norm(dim=-1) > Exactly._ROUNDING
        return torch.zeros_like(offset[..., 0]).masked_fill(elsewhere, -torch.inf)

    def turned(self, angle: Tensor) -> "Exactly":
        raise TypeError("only angles are turned")

    def distance(self, value: Tensor, narrowest: float) -> Tensor:
        """The squared distance in units of `narrowest`."""
        return (value - self.mode).square().sum(-1) / narrowest**2


class WrappedNormal(Normal):
    r"""A normal angle on the circle.

    .. math:: p(\theta) = \sum_k N(\theta + 2 \pi k; \mu, \sigma^2)

    Samples are not wrapped: nothing that an angle is used for can tell.
    """

    # Beyond this standard deviation the entropy is that of the uniform to 2e-7.
    _WIDEST = 4.0
    _TURNS = 4

    @staticmethod
    def _offset(value: Tensor, loc: Tensor) -> Tensor:
        return wrap_angle(value - loc)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density on the circle in nats per radian, with shape (..., B)."""
        log_scale = self.log_scale.clamp(max=math.log(self._WIDEST))
        offset = self._offset(value, self.loc)
        turns = torch.arange(-self._TURNS, self._TURNS + 1, device=offset.device)
        distance = offset.unsqueeze(-1) + 2 * math.pi * turns.to(offset)
        standard = distance * torch.exp(-log_scale).unsqueeze(-1)
        return torch.logsumexp(-0.5 * (standard**2 + _LOG_TWO_PI), -1) - log_scale

    def entropy(self) -> Tensor:
        """Differential entropy on the circle in nats, with shape (B,).

        There is no closed form. A narrow density does not reach around the circle and has the
        entropy of the normal; otherwise that of a table.
        """
        narrow = 0.5 * (1 + _LOG_TWO_PI) + self.log_scale
        # Up to 0.5 rad the mass beyond half a turn is below 4e-10.
        return torch.where(self.log_scale < math.log(0.5), narrow, self._wide_entropy())

    def _wide_entropy(self) -> Tensor:
        """Cubic interpolation in a table: a lattice has a million of them."""
        nodes = _entropies(self.log_scale.dtype, self.log_scale.device)
        place = (self.log_scale - math.log(_NARROW)) / _NODE
        place = place.clamp(1, len(nodes) - 3)
        # Of NaN any, so that the entropy is NaN, too, and not an index out of range.
        first = place.detach().nan_to_num(1.0).floor().long().clamp(max=len(nodes) - 4)
        t = place - first
        before, a, b, after = (nodes[first + i] for i in (-1, 0, 1, 2))
        slope_a, slope_b = (b - before) / 2, (after - a) / 2
        cubic = 2 * (a - b) + slope_a + slope_b
        return a + t * (slope_a + t * (3 * (b - a) - 2 * slope_a - slope_b + t * cubic))


# The table begins at this standard deviation; the step of its logarithm.
_NARROW, _NODE = 0.4, 0.004


@Constant
def _entropies(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The entropy of wrapped normal angles from `_NARROW` to where they are uniform, by steps."""
    count = math.ceil(math.log(WrappedNormal._WIDEST / _NARROW) / _NODE) + 4
    log_scale = math.log(_NARROW) + _NODE * torch.arange(count, dtype=torch.float64)
    angles = (torch.arange(256, dtype=torch.float64) / 128 - 1) * math.pi
    wide = WrappedNormal(torch.zeros(count, 1, dtype=torch.float64), log_scale.unsqueeze(-1))
    log_density = wide.log_prob(angles.expand(count, -1))
    # The trapezoidal rule converges exponentially on a periodic function.
    entropies = -(log_density.exp() * log_density).mean(-1) * 2 * math.pi
    return entropies.to(device, dtype)
