"""The latent variables of an image: content, angle, position and size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from svae.geometry import rotate

__all__ = ["Latents"]


@dataclass(frozen=True)
class Latents:
    """Content `z`, angle `theta`, position `shift` and size of images.

    Arguments:
        z: Unstructured content, with shape (..., z_dim).
        theta: Angle in radians, counter-clockwise, with shape (...).
        shift: Object centre in the image frame, grid units, with shape (..., 2).
        log_scale: Logarithm of the object's size relative to the model's own, with shape (...);
            by default zeros, the model's own size.
    """

    z: Tensor
    theta: Tensor
    shift: Tensor
    log_scale: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.log_scale is None:
            object.__setattr__(self, "log_scale", torch.zeros_like(self.theta))
        batch = self.theta.shape
        found = [tuple(value.shape) for value in self.tensors()]
        if self.z.shape[:-1] != batch or found[2:] != [(*batch, 2), tuple(batch)]:
            raise ValueError(
                "latents: expected z (..., z_dim), theta (...), shift (..., 2) and log_scale "
                f"(...), got {', '.join(map(str, found))}"
            )

    @staticmethod
    def of(values: Mapping[str, Tensor]) -> Latents:
        """Latents from the values of variables by the names of their priors; zeros elsewhere.

        Arguments:
            values: As `values` gives them, `z` among them.
        """
        z = values["z"]
        theta = values.get("theta", z.new_zeros(z.shape[:-1]))
        shift = values.get("shift", z.new_zeros(*z.shape[:-1], 2))
        return Latents(z, theta, shift, values.get("scale"))  # type: ignore[arg-type]

    def values(self) -> dict[str, Tensor]:
        """What each prior has a density of, by its name: `scale` is on the logarithm."""
        return dict(zip(("z", "theta", "shift", "scale"), self.tensors(), strict=True))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fields in their order, from which `Latents` makes the same."""
        return self.z, self.theta, self.shift, self.log_scale

    @property
    def pose(self) -> tuple[Tensor, Tensor, Tensor]:
        """Angle, position and size, as the functions of `svae.geometry` take them."""
        return self.theta, self.shift, self.log_scale

    @property
    def scale(self) -> Tensor:
        """The object's size as a factor, with shape (...)."""
        return self.log_scale.exp()

    def __len__(self) -> int:
        return len(self.theta)

    def __getitem__(self, index: object) -> Latents:
        return self.map(lambda value: value[index])  # type: ignore[index]

    def map(self, function: Callable[[Tensor], Tensor]) -> Latents:
        """The latents with `function` applied to each of the tensors."""
        return Latents(*map(function, self.tensors()))

    def isfinite(self) -> bool:
        """Whether every number is finite."""
        return all(value.isfinite().all() for value in self.tensors())

    def turned(self, angle: Tensor) -> Latents:
        """The latents of the images turned counter-clockwise by `angle`: the shift turns too."""
        return Latents(self.z, self.theta + angle, rotate(self.shift, angle), self.log_scale)

    def without_pose(self) -> Latents:
        """The same content upright, centred and in the model's own size: all three are zero."""
        return Latents(self.z, torch.zeros_like(self.theta), torch.zeros_like(self.shift))

    def without_content(self) -> Latents:
        """The same pose with z held at zero."""
        return Latents(torch.zeros_like(self.z), *self.pose)

    @staticmethod
    def stack(parts: list[Latents]) -> Latents:
        """Latents (K, ...) of K alternatives with shape (...)."""
        return _joined(torch.stack, parts)

    @staticmethod
    def cat(parts: list[Latents]) -> Latents:
        """Latents of several batches in a row."""
        return _joined(torch.cat, parts)


def _joined(join: Callable[[list[Tensor]], Tensor], parts: list[Latents]) -> Latents:
    tensors = zip(*(part.tensors() for part in parts), strict=True)
    return Latents(*(join(list(of_parts)) for of_parts in tensors))
