"""The latent variables of an image: content, angle and position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from svae.geometry import rotate

__all__ = ["Latents"]


@dataclass(frozen=True)
class Latents:
    """Content `z`, angle `theta` and position `shift` of images.

    Arguments:
        z: Unstructured content, with shape (..., z_dim).
        theta: Angle in radians, counter-clockwise, with shape (...).
        shift: Object centre in the image frame, grid units, with shape (..., 2).
    """

    z: Tensor
    theta: Tensor
    shift: Tensor

    def __post_init__(self) -> None:
        batch = self.theta.shape
        if self.z.shape[:-1] != batch or self.shift.shape != (*batch, 2):
            raise ValueError(
                f"latents: expected z (..., z_dim), theta (...) and shift (..., 2), got "
                f"{tuple(self.z.shape)}, {tuple(batch)} and {tuple(self.shift.shape)}"
            )

    def __len__(self) -> int:
        return len(self.theta)

    def __getitem__(self, index: object) -> Latents:
        return self.map(lambda value: value[index])  # type: ignore[index]

    def map(self, function: Callable[[Tensor], Tensor]) -> Latents:
        """The latents with `function` applied to each of the three tensors."""
        return Latents(function(self.z), function(self.theta), function(self.shift))

    def isfinite(self) -> bool:
        """Whether every number is finite."""
        return all(value.isfinite().all() for value in (self.z, self.theta, self.shift))

    def turned(self, angle: Tensor) -> Latents:
        """The latents of the images turned counter-clockwise by `angle`: the shift turns too."""
        return Latents(self.z, self.theta + angle, rotate(self.shift, angle))

    def without_pose(self) -> Latents:
        """The same content upright and centred (theta = 0, shift = 0)."""
        return Latents(self.z, torch.zeros_like(self.theta), torch.zeros_like(self.shift))

    def without_content(self) -> Latents:
        """The same pose with z held at zero."""
        return Latents(torch.zeros_like(self.z), self.theta, self.shift)

    @staticmethod
    def stack(parts: list[Latents]) -> Latents:
        """Latents (K, ...) of K alternatives with shape (...)."""
        return _joined(torch.stack, parts)

    @staticmethod
    def cat(parts: list[Latents]) -> Latents:
        """Latents of several batches in a row."""
        return _joined(torch.cat, parts)


def _joined(join: Callable[[list[Tensor]], Tensor], parts: list[Latents]) -> Latents:
    names = ("z", "theta", "shift")
    return Latents(*(join([getattr(part, name) for part in parts]) for name in names))
