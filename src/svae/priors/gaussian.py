r"""Gaussian priors with Gaussian posteriors.

.. math:: KL(N(\mu, \sigma^2) || N(m, s^2)) =
          -\log\sigma + \log s + \frac{\sigma^2 + (\mu - m)^2}{2 s^2} - \frac{1}{2}

References:
    Explicitly disentangling image content from translation and rotation with spatial-VAE
    (Bepler et al., 2019), section 2.2.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from svae.checks import at_least, image_shape_of, positive
from svae.distributions import Normal
from svae.geometry import pixel_size, wrap_angle
from svae.priors.base import Prior

__all__ = ["Gaussian", "GaussianAngle", "GaussianShift"]


class Gaussian(Prior):
    """Independent normal components with mean zero: the prior of the content z.

    Arguments:
        dims: The number of components of one value, with shape (..., dims).
        std: The standard deviation of each component.
    """

    event_dims = 1

    def __init__(self, dims: int, std: float = 1.0) -> None:
        super().__init__()
        self.dims = at_least("dims", dims, 0)
        self.std = positive("std", std)
        self.num_params = 2 * dims
        self.loc: Tensor | float = 0.0
        #: The unit of a posterior's parameters: a network's outputs near zero mean the prior.
        self.unit = self.std

    def extra_repr(self) -> str:
        return f"dims={self.dims}, std={self.std:.4g}"

    def log_prob(self, value: Tensor) -> Tensor:
        loc = torch.zeros_like(value) + self.loc
        return Normal(loc, torch.full_like(loc, math.log(self.std)), self.event_dims).log_prob(
            value
        )

    def family(self, params: Tensor, around: Tensor | float = 0.0) -> Normal:
        loc, log_scale = params.chunk(2, dim=-1)
        return Normal(self.unit * loc + around, log_scale + math.log(self.unit), event_dims=1)

    def kl(self, q: Normal) -> Tensor:
        return self.spread_kl(q) + q.sum_event((q.loc - self.loc) ** 2) / (2 * self.std**2)

    def spread_kl(self, q: Normal) -> Tensor:
        """The divergence without the penalty on the mean (spatial-VAE eq. 3), shape (...)."""
        ratio = q.log_scale - math.log(self.std)
        return q.sum_event(0.5 * torch.exp(2 * ratio) - ratio - 0.5)

    def on_lattice(self, points: Tensor) -> tuple[Tensor, Prior | None]:
        """The density at `points` (M, dims), normalised: the variable lies on the points."""
        return torch.log_softmax(self.log_prob(points), dim=0), None


class GaussianAngle(Gaussian):
    """A normal angle with mean zero on the line, wrapped only where it is used (section 2.2).

    Arguments:
        std_deg: The standard deviation in degrees.
    """

    event_dims = 0

    def __init__(self, std_deg: float) -> None:
        super().__init__(dims=1, std=math.radians(positive("std_deg", std_deg)))

    def family(self, params: Tensor, around: Tensor | float = 0.0) -> Normal:
        loc, log_scale = params.unbind(-1)
        return Normal(self.unit * loc + around, log_scale + math.log(self.unit))

    def on_lattice(self, points: Tensor) -> tuple[Tensor, Prior | None]:
        """Normal conditionals around equally spaced `points` (M,), in radians.

        Around each point lies N(point, c^2) with c half the spacing (TARGET-VAE's pi/R); the
        weights are those of N(0, s^2 - c^2), so that the marginal is the prior that was asked
        for, N(0, s^2): within 5 % where s is the spacing, 1.5 % where it is wide. A narrower one
        takes c = s / sqrt(2) at most and is matched only in its variance.
        """
        width = min(math.pi / len(points), self.std / math.sqrt(2))
        weights = Normal(
            torch.zeros_like(points),
            torch.full_like(points, 0.5 * math.log(self.std**2 - width**2)),
        ).log_prob(wrap_angle(points))
        around = GaussianAngle(math.degrees(width))
        around.loc = points
        return torch.log_softmax(weights, dim=0), around


class GaussianShift(Gaussian):
    """A normal position with mean zero in the image frame.

    Arguments:
        std_px: The standard deviation in pixels along each axis.
        image_shape: The shape of the images, (C, H, W): how large a pixel is.
    """

    def __init__(self, std_px: float, image_shape: Sequence[int]) -> None:
        _, height, width = image_shape_of(image_shape)
        super().__init__(dims=2, std=positive("std_px", std_px) * pixel_size(height, width))
