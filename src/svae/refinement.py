r"""Latents nearer to the most probable ones: what amortised inference leaves undone.

An encoder gives in one pass what is about the best for every image. From there, a few steps climb

.. math:: f(u) = \log p(y | u) + \sum_k \log p_k(u_k)

over all latents u of an image. Each solves a linear system for the move d, with the gradient g and
the Fisher information of the pixels and the priors in the place of the Hessian (Gauss-Newton):

.. math:: (F + \lambda \, \mathrm{diag} F) \, d = g, \qquad F = 1 + \sum_i \frac{J_i^T J_i}
          {\sigma_i^2}

in units of the priors' widths; J are the derivatives of the expected pixels, :math:`\sigma_i`
their noise. A move that does not raise f is not made, and :math:`\lambda` grows for the next
(Levenberg-Marquardt). So F decides only how soon the top is reached, and not where it is: finite
differences and a part of the pixels are good enough for it.

References:
    An algorithm for least-squares estimation of nonlinear parameters (Marquardt, 1963).
    Iterative amortized inference (Marino et al., 2018): what the encoder's own answer lacks.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from svae.latents import Latents

__all__ = ["refine"]

#: The most that one step changes a variable: an angle in radians, a shift in grid units, any
#: other in the width of its prior. Farther away begins another basin, or what J knows nothing of.
_FARTHEST = {"theta": math.pi / 16, "shift": 0.1}

# The length of a finite difference, in units.
_DIFFERENCE = 0.01

# The damping after the first step that failed, and what it grows and shrinks by.
_DAMPING, _FACTOR = 1.0, 10.0


def refine(
    start: Latents,
    units: Mapping[str, float],
    log_joint: Callable[[Latents], Tensor],
    pixels: Callable[[Latents], tuple[Tensor, Tensor]],
    steps: int,
) -> Latents:
    """Latents at which `log_joint` is at least what it is at the start, image by image.

    Arguments:
        start: Where to begin, with shape (B, ...).
        units: The variables to move, by the names of their priors, and the units of these.
        log_joint: From latents to what is to be made large, with shape (B,), in nats;
            differentiable. No image may have a part in another's.
        pixels: From latents to the mean and the standard deviation of (some) pixels, both with
            shape (B, M).
        steps: How many moves are tried. An image for which `log_joint` or a move is not finite
            stays where it is.

    Returns:
        The latents, with shape (B, ...); what `units` does not name is as it was.
    """
    origin = start.values()
    shapes = {name: origin[name].shape for name in units}
    sizes = [math.prod(shape[1:]) for shape in shapes.values()]
    if not steps or not sum(sizes):
        return start

    def each(numbers: Iterable[float]) -> Tensor:
        """A number of each variable, for all of its components: (K,)."""
        pairs = zip(numbers, sizes, strict=True)
        return torch.cat([start.theta.new_full((size,), number) for number, size in pairs])

    unit = each(units.values())
    farthest = each(_FARTHEST.get(name, width) for name, width in units.items()) / unit

    def at(moved: Tensor) -> Latents:
        """The latents that are `moved` (B, K) units from the start."""
        parts = zip(shapes.items(), (moved * unit).split(sizes, -1), strict=True)
        moves = {name: origin[name] + part.reshape(shape) for (name, shape), part in parts}
        return Latents.of(origin | moves)

    def valued(moved: Tensor) -> tuple[Tensor, Tensor]:
        moved = moved.detach().requires_grad_()
        with torch.enable_grad():
            value = log_joint(at(moved))
            (gradient,) = torch.autograd.grad(value.sum(), moved)
        return value.detach(), gradient

    def information(moved: Tensor) -> Tensor:
        mean, std = pixels(at(moved))
        each_alone = torch.eye(sum(sizes)).to(moved)
        changed = [pixels(at(moved + _DIFFERENCE * alone))[0] for alone in each_alone]
        jacobian = torch.stack([(new - mean) / (_DIFFERENCE * std) for new in changed], -1)
        return jacobian.mT @ jacobian + each_alone

    best = torch.zeros_like(start.theta).unsqueeze(-1).repeat(1, sum(sizes))
    value, gradient = valued(best)
    damping = torch.zeros_like(value)
    with torch.no_grad():
        fisher = information(best)
        for left in reversed(range(steps)):
            ridge = torch.diag_embed(damping.unsqueeze(-1) * fisher.diagonal(dim1=-2, dim2=-1))
            move = torch.linalg.solve_ex(fisher + ridge, gradient.unsqueeze(-1)).result.squeeze(-1)
            # Shorter as a whole, so that it still leads upwards.
            move = move / (move.abs() / farthest).amax(-1, keepdim=True).clamp(min=1)
            trial = best + move
            if left:
                new_value, new_gradient = valued(trial)
            else:
                new_value, new_gradient = log_joint(at(trial)), gradient
            # Not where either is NaN.
            higher = new_value > value
            best = torch.where(higher.unsqueeze(-1), trial, best)
            value = torch.where(higher, new_value, value)
            gradient = torch.where(higher.unsqueeze(-1), new_gradient, gradient)
            damping = torch.where(
                higher, damping / _FACTOR, (damping * _FACTOR).clamp(min=_DAMPING)
            )
            if left:
                fisher = information(best)
    return at(best)
