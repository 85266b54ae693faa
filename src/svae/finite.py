"""Losses and gradients that are not finite: which step, which images."""

from typing import NamedTuple

import torch
from torch import Tensor

from svae.errors import UserError

__all__ = ["FiniteCheck", "NotFinite", "Suspect"]


class NotFinite(UserError):
    """A loss or a gradient is NaN or infinite, and the training cannot go on."""

    exit_status = 1


class Suspect(NamedTuple):
    """A training step whose loss or gradient is not finite.

    Arguments:
        step: Its number, from 0.
        of_loss: The indices of the images whose loss is not finite; none where only the gradient
            is not.
        of_batch: The indices of all its images.
    """

    step: int
    of_loss: list[int]
    of_batch: list[int]


class _Step(NamedTuple):
    number: int
    batches: list[tuple[Tensor, Tensor]]
    norm: Tensor


class FiniteCheck:
    """Keeps the losses and gradient norms of the newest steps, where they are.

    Keeping costs nothing; only `first` waits for the device. There are a few numbers for each
    image.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._steps: list[_Step] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add_loss(self, index: Tensor, loss: Tensor) -> None:
        """Keep the loss of every image of a batch, by its index, both with shape (B,)."""
        self._batches.append((index, loss.detach()))

    def add_step(self, number: int, norm: Tensor) -> None:
        """Keep a step on the batches so far, with the norm of its gradient."""
        self._steps.append(_Step(number, self._batches, norm))
        self._batches = []

    def first(self) -> Suspect | None:
        """The first step kept that is not finite, if there is one; forgets all of them."""
        steps, self._steps = self._steps, []
        if not steps:
            return None
        sums = [sum((loss.sum() for _, loss in s.batches), start=s.norm) for s in steps]
        finite = torch.stack(sums).isfinite().tolist()
        if all(finite):
            return None
        step = steps[finite.index(False)]
        index = torch.cat([index for index, _ in step.batches])
        bad = ~torch.cat([loss for _, loss in step.batches]).isfinite()
        return Suspect(step.number, index[bad].tolist(), index.tolist())
