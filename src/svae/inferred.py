"""What was inferred from images, beside what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from svae.latents import Latents
from svae.model import SpatialVAE

__all__ = ["Inferred", "infer_batch"]

_TRUTH = ("label", "theta", "shift")
_PREFIX = "inferred_"


@dataclass(frozen=True)
class Inferred:
    """The latents of B images, and the truth where a data set knows it.

    Arguments:
        index: The images' index, with shape (B,).
        latents: The posterior's mode, with shape (B, ...).
        log_likelihood: Of each image, in nats, with shape (B,).
        label: With shape (B,).
        theta: The true angle in radians, with shape (B,).
        shift: The true centre in grid units, with shape (B, 2).
    """

    index: Tensor
    latents: Latents
    log_likelihood: Tensor
    label: Tensor | None = None
    theta: Tensor | None = None
    shift: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor | slice) -> Inferred:
        return Inferred.from_tensors({name: t[rows] for name, t in self.tensors().items()})

    @staticmethod
    def names_in(batch: Mapping[str, Tensor]) -> list[str]:
        """The names of `tensors` for batches with the keys of this one."""
        inferred = [f"{_PREFIX}{name}" for name in ("z", "theta", "shift")]
        return ["index", *inferred, "log_likelihood", *(n for n in _TRUTH if n in batch)]

    @staticmethod
    def from_batch(
        batch: Mapping[str, Tensor], latents: Latents, log_likelihood: Tensor
    ) -> Inferred:
        """What a batch says of its images, with what was inferred from them."""
        truth = {name: batch[name] for name in _TRUTH if name in batch}
        return Inferred(batch["index"], latents, log_likelihood, **truth)

    def tensors(self) -> dict[str, Tensor]:
        """All of it as named tensors with shape (B, ...)."""
        named = {"index": self.index, "log_likelihood": self.log_likelihood}
        named |= {f"{_PREFIX}{k}": getattr(self.latents, k) for k in ("z", "theta", "shift")}
        known = {name: getattr(self, name) for name in _TRUTH}
        return named | {name: value for name, value in known.items() if value is not None}

    @staticmethod
    def from_tensors(named: Mapping[str, Tensor]) -> Inferred:
        """From what `tensors` gave."""
        latents = Latents(*(named[f"{_PREFIX}{name}"] for name in ("z", "theta", "shift")))
        return Inferred.from_batch(named, latents, named["log_likelihood"])


@torch.no_grad()
def infer_batch(model: SpatialVAE, batch: Mapping[str, Tensor]) -> tuple[Inferred, Latents]:
    """The posterior's mode for every image of a batch, and its standard deviations.

    Arguments:
        model: The model.
        batch: `image` (B, C, H, W), `index` (B,) and what else is known; on any device.

    Returns:
        The mode with the log-likelihood there, and the standard deviations; both on the CPU.
    """
    image = batch["image"].to(model.grid)
    q = model.infer(image)
    mode, std = q.mode(), q.uncertainty()
    log_likelihood = model.log_likelihood(image, mode[None]).squeeze(0)
    found = Inferred.from_batch(batch, mode.map(Tensor.cpu), log_likelihood.cpu())
    return found, std.map(Tensor.cpu)
