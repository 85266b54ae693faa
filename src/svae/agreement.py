"""Which of several inferences of one pose to believe, where they differ by how pixels fell.

An object that looks much the same in two turns has two angles with nearly the same posterior. An
encoder that is equivariant but for the interpolation of pixels prefers now the one and now the
other. Images in poses between the points of its lattice see the interpolation in other ways: what
most of them agree on depends on it less.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from svae.geometry import wrap_angle
from svae.latents import Latents
from svae.lattice import Lattice

__all__ = ["most_agreed", "poses_between"]

# Of the additive recurrence that fills a cube evenly (Roberts, 2018): powers of the inverse of the
# root of x^4 = x + 1.
_STEPS = (0.8191725134, 0.6710436067, 0.5497004779)


def poses_between(lattice: Lattice, count: int) -> tuple[Tensor, Tensor]:
    """Turns (count,) and shifts (count, 2) that fill a cell of the lattice; the first is none."""
    steps = torch.tensor(_STEPS, dtype=torch.float64)
    cell = (torch.arange(count, dtype=torch.float64).unsqueeze(-1) * steps) % 1.0
    return cell[:, 0] * lattice.turn, cell[:, 1:] * lattice.spacing


def most_agreed(
    modes: Latents, spreads: Sequence[tuple[Tensor, Tensor]], lattice: Lattice
) -> Tensor:
    """The number of the inference in the middle of those that most agree.

    First the angle within a quarter turn of which the posteriors have most, in the sum of their
    log-probabilities; then, of the poses within a quarter turn of it, the one nearest to their
    mean.

    Arguments:
        modes: The pose that each inference finds most probable, with shape (K, B, ...).
        spreads: How the angle of each is spread: probabilities and angles, with shape (B, m) each.
        lattice: Its cells are the units in which angles and shifts compare.

    Returns:
        Numbers below K, with shape (B,).
    """
    agreement = torch.zeros_like(modes.theta)
    for weights, angles in spreads:
        near = torch.cos(angles - modes.theta.unsqueeze(-1)) > 0  # (K, B, m)
        agreement += (weights * near).sum(-1).clamp(min=1e-6).log()
    best = modes.theta.gather(0, agreement.argmax(0, keepdim=True))
    near = torch.cos(modes.theta - best) > 0
    share = near / near.sum(0)
    centre = (share.unsqueeze(-1) * modes.shift).sum(0)
    sine, cosine = ((share * f(modes.theta)).sum(0) for f in (torch.sin, torch.cos))
    turned = wrap_angle(modes.theta - torch.atan2(sine, cosine)) / lattice.turn
    moved = (modes.shift - centre) / (lattice.spacing or 1.0)
    distance = turned**2 + moved.square().sum(-1)
    return distance.masked_fill(~near, torch.inf).argmin(0)
