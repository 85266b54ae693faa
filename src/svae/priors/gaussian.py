r"""Gaussian priors with Gaussian posteriors.

.. math:: KL(N(\mu, \sigma^2) || N(m, s^2)) =
          -\log\sigma + \log s + \frac{\sigma^2 + (\mu - m)^2}{2 s^2} - \frac{1}{2}

References:
    Explicitly disentangling image content from translation and rotation with spatial-VAE
    (Bepler et al., 2019), section 2.2.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from svae.checks import at_least, image_shape_of, positive
from svae.distributions import IsotropicNormal, Normal, WrappedNormal
from svae.geometry import pixel_size, rotate, wrap_angle
from svae.latents import Latents
from svae.priors.base import Prior, cut_at

__all__ = [
    "AngleFromPoint",
    "Gaussian",
    "GaussianAngle",
    "GaussianLogScale",
    "GaussianShift",
    "TargetVAEAngle",
    "angle_widths",
]

# Weights as wide as this are equal to 3e-4; so many turns hold all of them.
_WIDEST, _TURNS = 4.0, 4

#: How many times as wide as its prior a posterior may be.
_WIDER = 10.0


class Gaussian(Prior):
    """Independent normal components with mean zero: the prior of the content z.

    Arguments:
        dims: The number of components of one value, with shape (..., dims).
        std: The standard deviation of each component.
    """

    #: 1: a value is a vector; 0: one number, with shape (...).
    event_dims = 1
    #: The family of the posterior.
    posterior: type[Normal] = Normal

    def __init__(self, dims: int, std: float = 1.0) -> None:
        super().__init__()
        self.dims = at_least("dims", dims, 0)
        self.std = positive("std", std)
        self.num_params = 2 * dims
        self.unit = self.width = self.std

    def extra_repr(self) -> str:
        return f"dims={self.dims}, std={self.std:.4g}"

    def log_prob(self, value: Tensor) -> Tensor:
        log_scale = torch.full_like(value, math.log(self.std))
        return Normal(torch.zeros_like(value), log_scale, self.event_dims).log_prob(value)

    def family(self, params: Tensor, around: Tensor | float = 0.0) -> Normal:
        loc, log_scale = params.chunk(2, dim=-1) if self.event_dims else params.unbind(-1)
        loc = self.unit * loc + around
        return self.posterior(loc, self._log_scale(log_scale), self.event_dims)

    def _log_scale(self, output: Tensor) -> Tensor:
        """The logarithmic width that an output of the network means.

        For an image unlike all others it may be so large that what is sampled is infinite. It is
        cut there.
        """
        return cut_at(output, math.log(_WIDER * self.std / self.unit)) + math.log(self.unit)

    def kl(self, q: Normal) -> Tensor:
        return self.spread_kl(q) + q.sum_event(q.loc**2) / (2 * self.std**2)

    def spread_kl(self, q: Normal) -> Tensor:
        """The divergence without the penalty on the mean (spatial-VAE eq. 3), shape (...)."""
        ratio = q.log_scale - math.log(self.std)
        return q.sum_event(0.5 * torch.exp(2 * ratio) - ratio - 0.5)

    def on_lattice(self, points: Tensor) -> tuple[Tensor, Prior | None]:
        """The density at `points` (..., M, dims), normalised: the variable lies on the points."""
        return torch.log_softmax(self.log_prob(points), dim=-1), None


class GaussianAngle(Gaussian):
    """A normal angle with mean zero on the line, wrapped only where it is used (section 2.2).

    Arguments:
        std_deg: The standard deviation in degrees.
    """

    event_dims = 0

    def __init__(self, std_deg: float) -> None:
        super().__init__(dims=1, std=math.radians(positive("std_deg", std_deg)))
        # At most a radian, as in the published code: sampled over the whole circle, the angle of
        # an untrained network would hide what there is to learn, and its width has no way back.
        self.unit = self.width = min(self.std, 1.0)

    def on_lattice(self, points: Tensor) -> tuple[Tensor, Prior | None]:
        """Normal deviations from equally spaced `points` (..., M), in radians.

        From each point the angle deviates by N(0, c^2), c being half the spacing (TARGET-VAE's
        pi/R), or s / sqrt(2) if that is less. The weights are those of a normal density wrapped
        around the circle, as wide as it takes for the marginal to have the mean direction and
        spread (the first trigonometric moment) of the prior that was asked for, N(0, s^2). Its
        density is that within 5 % where s is the spacing or more; a narrower prior has the same
        spread, but stands on separate points.
        """
        width, spread = angle_widths(self.std, points.shape[-1])
        log_scale = torch.full_like(points, math.log(spread))
        density = WrappedNormal(torch.zeros_like(points), log_scale).log_prob(points)
        return torch.log_softmax(density, dim=-1), AngleFromPoint(width)


class AngleFromPoint(GaussianAngle):
    """The normal deviation of an angle from a point of a lattice.

    The divergence is that of normal variables on the line; densities are on the circle, where
    the ends of neighbouring points meet.

    Arguments:
        std: The standard deviation in radians.
    """

    posterior = WrappedNormal

    def __init__(self, std: float) -> None:
        super().__init__(math.degrees(std))
        self.unit = self.width = self.std

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density on the circle in nats per radian; shapes as in `Prior`."""
        log_scale = torch.full_like(value, math.log(self.std))
        return WrappedNormal(torch.zeros_like(value), log_scale).log_prob(value)


class TargetVAEAngle(GaussianAngle):
    """A normal angle that becomes, on a lattice, what TARGET-VAE has.

    Its weights are the density N(0, s^2) at the points, the deviation from each is N(0, (pi/R)^2),
    so that the marginal is wider than N(0, s^2). Without a lattice, as `GaussianAngle`.

    References:
        Unsupervised object representation learning using translation and rotation group
        equivariant VAE (Nasiri and Bepler, 2022), its published code.

    Arguments:
        std_deg: The standard deviation s in degrees.
    """

    def on_lattice(self, points: Tensor) -> tuple[Tensor, Prior | None]:
        """The density at `points` (..., M), normalised; half the spacing for the deviation."""
        log_weights = torch.log_softmax(self.log_prob(wrap_angle(points)), dim=-1)
        return log_weights, AngleFromPoint(math.pi / points.shape[-1])


@lru_cache
def angle_widths(std: float, count: int) -> tuple[float, float]:
    """How wide the deviations from `count` points of a circle are, and the weights of the points.

    Together they have the resultant length exp(-std^2 / 2) of a wrapped normal angle.
    """
    width = min(math.pi / count, std / math.sqrt(2))
    wanted = math.exp(-0.5 * (std**2 - width**2))
    angles = [2 * math.pi * i / count for i in range(count)]

    def resultant(spread: float) -> float:
        turns = range(-_TURNS, _TURNS + 1)
        weights = [
            sum(math.exp(-0.5 * ((a + 2 * math.pi * k) / spread) ** 2) for k in turns)
            for a in angles
        ]
        return sum(w * math.cos(a) for w, a in zip(weights, angles, strict=True)) / sum(weights)

    low, high = 0.02 * width, _WIDEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if resultant(middle) > wanted else (low, middle)
    return width, high


def _as_seen(place: Tensor, pose: Latents) -> Tensor:
    """What lies at `place` (..., 2) from an object's origin in its frame, from it in the image."""
    return rotate(place, pose.theta) * pose.scale.unsqueeze(-1)


class GaussianShift(Gaussian):
    """A normal position with mean zero in the image frame.

    Arguments:
        std_px: The standard deviation in pixels along each axis.
        image_shape: The shape of the images, (C, H, W): how large a pixel is.
        start_fraction: The posterior of an untrained network is as wide as the prior, but at most
            this part of the longer side, which is the unit of its outputs as well; as wide as the
            prior if null, as in the published code. Sampled all over the image, the position of
            an untrained network hides what there is to learn.
    """

    def __init__(
        self, std_px: float, image_shape: Sequence[int], start_fraction: float | None = None
    ) -> None:
        _, height, width = image_shape_of(image_shape)
        pixel = pixel_size(height, width)
        super().__init__(dims=2, std=positive("std_px", std_px) * pixel)
        if start_fraction is not None:
            widest_px = positive("start_fraction", start_fraction) * max(height, width)
            self.unit = min(std_px, widest_px) * pixel

    def between(self, spacing: float) -> "PositionFromPoint":
        """Normal deviations of half the spacing, or s / sqrt(2) if that is less.

        The weights of the points are those of a normal density that is narrower by as much, so
        that the marginal is N(0, s^2), cut where the lattice ends: its density is that to 3 %
        where s is some spacings, and to 10 % where it is one. A narrower prior stands on separate
        points, and is as wide as these are: with a point in the middle less than s, without one
        more.
        """
        width = min(spacing / 2, self.std / math.sqrt(2))
        return PositionFromPoint(width, math.sqrt(self.std**2 - width**2))

    def corrected(self, params: Tensor, correction: Tensor, pose: Latents) -> Tensor:
        place, log_scale = correction.chunk(2, dim=-1)
        place = _as_seen(place, pose)
        # Widths are along the image's axes: what is found along others goes to both.
        log_scale = log_scale.mean(-1, keepdim=True).expand_as(log_scale)
        return params + torch.cat((place, log_scale), dim=-1)


class PositionFromPoint(Gaussian):
    """The normal deviation of a position from a point of a lattice; its posterior is isotropic.

    Arguments:
        std: The standard deviation of the deviation along each axis, in grid units.
        points_std: That of the normal density whose values at the points are their weights.
    """

    def __init__(self, std: float, points_std: float) -> None:
        super().__init__(2, std)
        self.num_params = 3
        self.points_std = points_std

    def log_weights(self, points: Tensor) -> Tensor:
        """Log-probabilities, with shape (..., M), of the points (..., M, 2)."""
        return torch.log_softmax(-0.5 * (points / self.points_std).square().sum(-1), dim=-1)

    def family(self, params: Tensor, around: Tensor | float = 0.0) -> IsotropicNormal:
        loc, log_scale = params.split((2, 1), dim=-1)
        loc = self.unit * loc + around
        return IsotropicNormal(loc, self._log_scale(log_scale).expand_as(loc), 1)

    def corrected(self, params: Tensor, correction: Tensor, pose: Latents) -> Tensor:
        place, log_scale = correction.split((2, 1), dim=-1)
        return params + torch.cat((_as_seen(place, pose), log_scale), dim=-1)


class GaussianLogScale(Gaussian):
    """A normal logarithm of the object's size, with mean zero: the model's own size.

    Arguments:
        std: The standard deviation of the logarithm; 0.2 is sizes that differ by about 20 %.
    """

    event_dims = 0

    def __init__(self, std: float = 0.2) -> None:
        super().__init__(dims=1, std=std)
