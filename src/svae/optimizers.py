"""Optimisers that PyTorch does not have in this form."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from svae.checks import at_least, positive
from svae.hardware import fast_precision

__all__ = ["Muon"]

#: The quintic whose iterates bring singular values near 1 in the fewest steps (Jordan, 2024).
_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Muon for the square matrices between hidden layers, Adam for everything else.

    Muon's update is the momentum with all of its singular values brought near 1, so that every
    direction of a layer is learned at the same speed. Where a matrix meets pixels, coordinates or
    latent variables that is no gain.

    PyTorch's own takes matrices alone, and always computes in bfloat16, which some processors
    only emulate.

    Arguments:
        params: The parameters.
        lr: The learning rate: by how much entries change at first, of matrices (the root of the
            mean square) as of everything else.
        momentum: What a step keeps of the momentum of the one before.
        iterations: How many times the singular values are brought nearer to 1.
        largest: Adam serves matrices with more rows: the time that Muon takes grows with the
            third power.

    References:
        Muon: an optimizer for hidden layers in neural networks (Jordan et al., 2024).
        Muon is scalable for LLM training (Liu et al., 2025), section 2.2: the scale of an update
        that goes with Adam's (theirs is 0.2 times as large).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 4e-3,
        momentum: float = 0.95,
        iterations: int = 3,
        largest: int = 1024,
    ) -> None:
        positive("lr", lr)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: expected a number from 0 to below 1, got {momentum!r}")
        at_least("iterations", iterations, 1)
        at_least("largest", largest, 0)

        def is_between_hidden(p: Tensor) -> bool:
            return p.ndim == 2 and p.shape[0] == p.shape[1] <= largest

        params = list(params)
        others = [p for p in params if not is_between_hidden(p)]
        # An optimiser needs a parameter, and Adam keeps what it needs in its group.
        fused = any(p.is_cuda for p in others) or None  # None: as torch chooses
        self._adam = Adam(others or [nn.Parameter(torch.zeros(0))], lr, fused=fused)
        group = {**self._adam.param_groups[0], "params": others}
        matrices = [p for p in params if is_between_hidden(p)]
        chosen = {"lr": lr, "momentum": momentum, "iterations": iterations}
        super().__init__([group, {"params": matrices, **chosen}], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; `closure`, where it is given, computes the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        others, matrices = self.param_groups
        # Loading a checkpoint makes these anew.
        self._adam.param_groups, self._adam.state = [others], self.state
        self._adam.step()
        for p in matrices["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            average = state["momentum"].lerp_(p.grad, 1 - matrices["momentum"])
            update = p.grad.lerp(average, matrices["momentum"])  # as Nesterov has it
            update = near_orthogonal(update, matrices["iterations"])
            p.sub_(update, alpha=matrices["lr"] * len(p) ** 0.5)
        return loss


def near_orthogonal(matrix: Tensor, iterations: int) -> Tensor:
    """A square matrix with its singular values brought near 1 (Newton and Schulz's iteration)."""
    a, b, c = _QUINTIC
    x = matrix
    if x.dtype == torch.float32 and fast_precision(x.device.type) == "bf16-mixed":
        x = x.bfloat16()
    x = x / x.norm().clamp(min=1e-20)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrix)
