"""A lattice of poses: what an attention posterior chooses from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from svae.geometry import wrap_angle

__all__ = ["Lattice"]


@dataclass(frozen=True)
class Lattice:
    """Angles and positions; a point is one of each, ordered (position, rotation).

    Arguments:
        angles: In radians, in [-pi, pi), with shape (R,).
        shifts: In grid units, x to the right and y up, with shape (P, 2), row by row from the top
            left.
        shape: How many rows and columns the P positions form, (H, W).
    """

    angles: Tensor
    shifts: Tensor
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.angles) * len(self.shifts)

    @property
    def turn(self) -> float:
        """The angle between neighbouring rotations in radians."""
        return 2 * math.pi / len(self.angles)

    @property
    def spacing(self) -> float:
        """The distance of neighbouring positions in grid units; 0 where there is one only."""
        steps = self.shifts.diff(dim=0).norm(dim=1)
        return steps.min().item() if len(steps) else 0.0

    @staticmethod
    def centred(rotations: int, shape: tuple[int, int], spacing: float) -> Lattice:
        """Equal parts of the circle, and positions on a square lattice about the image's centre.

        Arguments:
            rotations: The number of angles R; the first is 0.
            shape: The number of rows and columns.
            spacing: The distance of neighbouring positions in grid units.
        """
        height, width = shape
        # By count and never by step, so that the lattice is symmetric for every size.
        x = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2) * spacing
        y = ((height - 1) / 2 - torch.arange(height, dtype=torch.float64)) * spacing
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        angles = torch.arange(rotations, dtype=torch.float64) * (2 * math.pi / rotations)
        return Lattice(wrap_angle(angles), torch.stack((columns, rows), -1).flatten(0, 1), shape)
