"""Attention posteriors written out point by point from their definition, in `torch`'s own terms.

Nothing of the package's distributions, priors or lattices is used: positions and angles are given
as numbers.
"""

import math
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from svae.lattice import Lattice
from svae.posteriors import Attention
from svae.posteriors.sampling import Soft
from svae.priors import (
    Gaussian,
    GaussianAngle,
    GaussianLogScale,
    GaussianShift,
    TargetVAEAngle,
    UniformAngle,
)

DOUBLE = torch.float64
SPACING = 0.25
SIZE_STD = 0.3
IMAGE_SHAPE = (1, 9, 9)  # a pixel is the lattice's spacing
TURNS = 2 * math.pi * torch.arange(-15, 16, dtype=DOUBLE)

ANGLES = {
    "uniform": lambda std: UniformAngle(std),
    "gaussian": lambda std: GaussianAngle(std),
    "published": lambda std: TargetVAEAngle(std),
}


@dataclass(frozen=True)
class Case:
    """A posterior to write out.

    Arguments:
        angle: The kind of the prior on the angle; None where it is not inferred.
        rotations: R.
        shape: Rows and columns of positions; (1, 1) where the shift is not inferred.
        offsets: Whether the angle deviates from that of a rotation.
        std_deg: The width of the prior on the angle.
        z_dim: The length of the content.
        sized: Whether the size is inferred.
    """

    angle: str | None
    rotations: int
    shape: tuple[int, int] = (2, 3)
    offsets: bool = True
    std_deg: float = 50.0
    z_dim: int = 2
    sized: bool = False

    @property
    def deviates(self) -> bool:
        return self.offsets and self.rotations > 1

    @property
    def std(self) -> float:
        return math.radians(self.std_deg)

    @property
    def on_the_line(self) -> bool:
        """Whether densities of the angle are those of a normal that is not wrapped."""
        return self.angle in ("gaussian", "published") and not self.deviates

    @property
    def turns(self) -> Tensor:
        """The angles, within [-pi, pi)."""
        turns = torch.arange(self.rotations, dtype=DOUBLE) * 2 * math.pi / self.rotations
        return torch.where(turns >= math.pi - 1e-9, turns - 2 * math.pi, turns)

    @property
    def positions(self) -> Tensor:
        height, width = self.shape
        return torch.tensor(
            [
                (SPACING * (column - (width - 1) / 2), SPACING * ((height - 1) / 2 - row))
                for row in range(height)
                for column in range(width)
            ],
            dtype=DOUBLE,
        )

    def priors(self):
        found = {"z": Gaussian(self.z_dim)}
        if self.angle is not None:
            found["theta"] = ANGLES[self.angle](self.std_deg)
        if self.shape != (1, 1):
            found["shift"] = GaussianShift(1.5, IMAGE_SHAPE)
        if self.sized:
            found["scale"] = GaussianLogScale(SIZE_STD)
        return found

    def head(self, sampling=None):
        lattice = Lattice.centred(self.rotations, self.shape, SPACING)
        head = Attention(4, self.priors(), lattice, sampling or Soft(), self.offsets).double()
        # Angles exactly, not as rounded to single precision.
        head.angles = lattice.angles
        head.shifts = lattice.shifts
        head.offsets = lattice.angles * self.deviates
        return head

    def params(self, batch=3, spread=0.7):
        """Parameters of every point: logits, then means and log-scales."""
        numbers = 1 + 2 * self.z_dim + 2 * (self.angle is not None) + 2 * self.sized
        shape = batch, len(self.positions), self.rotations, numbers
        # No angle so wide that it is uniform but for rounding, none too narrow for quadrature.
        return (spread * torch.randn(shape, dtype=DOUBLE)).clamp(-2 * spread, 2 * spread)

    def by_hand(self, params, frame=None, centre=None, best=None):
        return ByHand(self, params, frame, centre, best)


class ByHand:
    """The factors of a posterior and of its prior, with shapes (B, P, R, ...).

    Arguments:
        case: What is written out.
        params: The parameters of every point, with shape (B, P, R, n).
        frame: The angle (B,) by which the lattice is turned.
        centre: Where the lattice's centre (B, 2) is before it is turned.
        best: How many of the best points are kept.
    """

    def __init__(self, case, params, frame=None, centre=None, best=None):
        self.case = case
        batch, dims = len(params), case.z_dim
        self.frame = torch.zeros(batch, dtype=DOUBLE) if frame is None else frame
        centre = torch.zeros(batch, 2, dtype=DOUBLE) if centre is None else centre
        self.places = case.positions + centre.unsqueeze(1)  # (B, P, 2)
        upright, _ = self.rotation_prior(torch.zeros(batch, dtype=DOUBLE))
        rotations, width = self.rotation_prior(self.frame)
        at_home = self.position_prior(case.positions.unsqueeze(0))
        self.log_p = self.position_prior(self.places).unsqueeze(2) + rotations.unsqueeze(1)
        logits = params[..., 0] + at_home.unsqueeze(2) + upright.unsqueeze(1)
        if best is not None:
            flat = logits.flatten(1)
            lowest = flat.sort(1, descending=True).values[:, best - 1]
            logits = torch.where(logits >= lowest[:, None, None], logits, -torch.inf)
        self.log_q = logits - logits.logsumexp((1, 2), keepdim=True)
        self.z = Normal(params[..., 1 : 1 + dims], params[..., 1 + dims : 1 + 2 * dims].exp())
        self.size = None
        if case.sized:
            loc, log_scale = params[..., -2], params[..., -1]
            self.size = Normal(SIZE_STD * loc, SIZE_STD * log_scale.exp())
            params = params[..., :-2]
        self.theta = None
        if case.angle is not None:
            loc, log_scale = params[..., -2], params[..., -1]
            unit = 1.0 if case.angle == "uniform" and not case.deviates else width
            centres = case.turns if case.deviates else 0 * case.turns
            self.theta = Normal(centres + unit * loc, unit * log_scale.exp())
            self.theta_prior = Normal(centres.expand_as(loc), width)

    def position_prior(self, places):
        """Log-probabilities (B, P) of positions (B, P, 2)."""
        if self.case.shape == (1, 1):
            return 0 * places.sum(-1)
        return (-(places**2).sum(-1) / (2 * (1.5 * SPACING) ** 2)).log_softmax(1)

    def rotation_prior(self, frame):
        """Log-probabilities (B, R) of the turned rotations, and the width of the deviations."""
        case = self.case
        flat = torch.full((len(frame), case.rotations), -math.log(case.rotations), dtype=DOUBLE)
        if not case.deviates:
            return flat, case.std
        half = math.pi / case.rotations
        if case.angle == "uniform":
            return flat, half
        # The angles nearest to zero that mean the same.
        turned = torch.exp(1j * (case.turns + frame[:, None])).angle()
        if case.angle == "published":
            return (-(turned**2) / (2 * case.std**2)).log_softmax(1), half
        width = min(half, case.std / math.sqrt(2))

        def log_weights(angles, std):
            every = angles.unsqueeze(-1) + TURNS
            return (-(every**2) / (2 * std**2)).logsumexp(-1).log_softmax(-1)

        def too_narrow(std):
            """By how much the mean cosine is above that of the prior."""
            mean = (log_weights(case.turns, std).exp() * case.turns.cos()).sum().item()
            return mean * math.exp(-(width**2) / 2) - math.exp(-(case.std**2) / 2)

        return log_weights(turned, brentq(too_narrow, 0.05 * width, 4.0, xtol=1e-14)), width

    def average(self, value):
        """The expectation (B,) of what is (B, P, R), zero where there is no probability."""
        weights = self.log_q.exp()
        return torch.where(weights > 0, weights * value, 0.0).sum((1, 2))

    def kl(self):
        terms = {
            "lattice": self.average(self.log_q - self.log_p),
            "z": self.average(kl_divergence(self.z, Normal(0.0, 1.0)).sum(-1)),
        }
        if self.case.angle == "uniform" and not self.case.deviates:
            # The entropy on the circle by the midpoint rule.
            grid = (torch.arange(2000, dtype=DOUBLE) + 0.5) / 2000 * 2 * math.pi
            log_density = self._wrapped(self.theta, grid.reshape(-1, 1, 1, 1))
            entropy = -(log_density.exp() * log_density).mean(0) * 2 * math.pi
            terms["theta"] = self.average(math.log(2 * math.pi) - entropy)
        elif self.theta is not None:
            terms["theta"] = self.average(kl_divergence(self.theta, self.theta_prior))
        if self.size is not None:
            terms["scale"] = self.average(kl_divergence(self.size, Normal(0.0, SIZE_STD)))
        return terms

    @staticmethod
    def _wrapped(normal, value):
        """Log-density on the circle at `value`, broadcast against the normal's."""
        turned = value.unsqueeze(-1) + TURNS
        wide = Normal(normal.loc.unsqueeze(-1), normal.scale.unsqueeze(-1))
        return wide.log_prob(turned).logsumexp(-1)

    def position_of(self, latents):
        """The number (S, B) of the position, and whether (S, B) it is one."""
        shift = torch.complex(latents.shift[..., 0], latents.shift[..., 1])
        shift = shift * torch.exp(-1j * self.frame)
        places = torch.complex(*self.places.unbind(-1))
        distance = (shift.unsqueeze(-1) - places).abs()
        return distance.argmin(-1), distance.min(-1).values < 1e-6

    def _angle_terms(self, normal, prior, theta):
        """Log-densities of angles (S, B, R) at each rotation, of q or of p."""
        if prior and self.case.angle == "uniform" and not self.case.deviates:
            return torch.full_like(theta, -math.log(2 * math.pi))
        return normal.log_prob(theta) if self.case.on_the_line else self._wrapped(normal, theta)

    def log_prob(self, latents, of_prior=False):
        """Log-density (S, B), summed over the rotations, of the posterior or its prior."""
        position, found = self.position_of(latents)
        images = torch.arange(len(self.log_q))
        terms = (self.log_p if of_prior else self.log_q)[images, position]  # (S, B, R)
        z = latents.z.unsqueeze(2)
        if of_prior:
            terms = terms + Normal(0.0, 1.0).log_prob(z).sum(-1)
        else:
            normal = Normal(self.z.loc[images, position], self.z.scale[images, position])
            terms = terms + normal.log_prob(z).sum(-1)
        if self.size is not None:
            size = latents.log_scale.unsqueeze(2)
            normal = Normal(self.size.loc[images, position], self.size.scale[images, position])
            normal = Normal(0.0, SIZE_STD) if of_prior else normal
            terms = terms + normal.log_prob(size)
        if self.theta is not None:
            factor = self.theta_prior if of_prior else self.theta
            normal = Normal(factor.loc[images, position], factor.scale[images, position])
            theta = (latents.theta - self.frame).unsqueeze(-1).expand_as(normal.loc)
            terms = terms + self._angle_terms(normal, of_prior, theta)
        return torch.where(found, terms.logsumexp(-1), -torch.inf)

    def log_ratio(self, latents, rotation):
        """log q - log p (S, B) with the rotation (S, B) kept, angles on the line."""
        position, _ = self.position_of(latents)
        images = torch.arange(len(self.log_q))

        def at(value):
            return value[images, position, rotation]

        ratio = at(self.log_q) - at(self.log_p)
        z = Normal(at(self.z.loc), at(self.z.scale))
        ratio = ratio + (z.log_prob(latents.z) - Normal(0.0, 1.0).log_prob(latents.z)).sum(-1)
        if self.size is not None:
            size, prior = Normal(at(self.size.loc), at(self.size.scale)), Normal(0.0, SIZE_STD)
            ratio = ratio + size.log_prob(latents.log_scale) - prior.log_prob(latents.log_scale)
        if self.theta is not None:
            theta = latents.theta - self.frame
            q = Normal(at(self.theta.loc), at(self.theta.scale))
            if self.case.angle == "uniform" and not self.case.deviates:
                ratio = ratio + self._wrapped(q, theta) + math.log(2 * math.pi)
            else:
                p = Normal(at(self.theta_prior.loc), self.theta_prior.scale.flatten()[0])
                ratio = ratio + q.log_prob(theta) - p.log_prob(theta)
        return ratio
