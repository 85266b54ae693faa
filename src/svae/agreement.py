"""Which of several inferences of one pose to believe, where they differ by how pixels fell.

An object that looks much the same in two turns has two angles with nearly the same posterior. An
encoder that is equivariant but for the interpolation of pixels prefers now the one and now the
other. Images in poses between the points of its lattice see the interpolation in other ways: what
most of them agree on depends on it less, and their mean is nearer to the truth than any of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svae.geometry import rotate, wrap_angle
from svae.latents import Latents
from svae.lattice import Lattice

__all__ = ["Agreement", "most_agreed", "poses_between"]

# Of the additive recurrence that fills a cube evenly (Roberts, 2018): powers of the inverse of the
# root of x^4 = x + 1.
_STEPS = (0.8191725134, 0.6710436067, 0.5497004779)

# Positions are points of a lattice that turned and moved with the image: the nearest ones of two
# such are up to this far apart, in spacings.
_NEAR = 1.5


def poses_between(lattice: Lattice, count: int) -> tuple[Tensor, Tensor]:
    """Turns (count,) and shifts (count, 2) that fill a cell of the lattice; the first is none."""
    steps = torch.tensor(_STEPS, dtype=torch.float64)
    cell = (torch.arange(count, dtype=torch.float64).unsqueeze(-1) * steps) % 1.0
    return cell[:, 0] * lattice.turn, cell[:, 1:] * lattice.spacing


@dataclass(frozen=True)
class Agreement:
    """What most inferences of B images agree on: one of them, and the way from it to their mean.

    Arguments:
        number: Which inference is in the middle, with shape (B,).
        turn: From its angle to the mean, in radians, with shape (B,).
        move: From its position, once it is turned by that about the image's centre, to the mean,
            in grid units, with shape (B, 2).
        z: From its z to the mean, with shape (B, z_dim).
        log_scale: From its logarithm of the size to the mean, with shape (B,).
    """

    number: Tensor
    turn: Tensor
    move: Tensor
    z: Tensor
    log_scale: Tensor


def most_agreed(
    modes: Latents, spreads: Sequence[tuple[Tensor, Tensor]], lattice: Lattice
) -> Agreement:
    """Which inference is in the middle of those that most agree, and what their mean is.

    First the angle within a quarter turn of which the posteriors have most, in the sum of their
    log-probabilities; then, of the poses within a quarter turn of it, the one nearest to their
    mean. What is given as the mean is of those that are within 1.5 steps of the lattice from that
    one in position, and in angle within one step or a quarter turn: of everything together,
    as the content of each was inferred with its own pose.

    Arguments:
        modes: The latents that each inference finds most probable, with shape (K, B, ...).
        spreads: How the angle of each is spread: probabilities and angles, with shape (B, m) each.
        lattice: Its cells are the units in which angles and shifts compare.
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
    number = distance.masked_fill(~near, torch.inf).argmin(0)

    middle = modes[number, torch.arange(len(number), device=number.device)]
    turns = wrap_angle(modes.theta - middle.theta)
    same = turns.abs() <= min(lattice.turn, math.pi / 2)
    same &= (modes.shift - middle.shift).norm(dim=-1) <= lattice.spacing * _NEAR

    def mean(value: Tensor) -> Tensor:
        rows = same if value.ndim == 2 else same.unsqueeze(-1)
        return torch.where(rows, value, 0.0).sum(0) / rows.sum(0)

    turn = mean(turns)
    move = mean(modes.shift) - rotate(middle.shift, turn)
    z, log_scale = mean(modes.z) - middle.z, mean(modes.log_scale) - middle.log_scale
    return Agreement(number, turn, move, z, log_scale)
