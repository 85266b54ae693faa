import math

import pytest
import torch
from torch.testing import assert_close

from svae.lattice import Lattice

SHAPES = [(1, 1), (1, 4), (3, 2), (4, 5), (39, 39)]


@pytest.mark.parametrize("shape", SHAPES)
def test_positions_are_symmetric_about_the_centre(shape):
    shifts = Lattice.centred(4, shape, 0.3).shifts
    assert len(shifts) == shape[0] * shape[1]
    assert torch.equal(shifts, -shifts.flip(0))
    assert_close(shifts.mean(0), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
def test_positions_run_row_by_row_from_the_top_left(shape):
    height, width = shape
    shifts = Lattice.centred(1, shape, 0.3).shifts.reshape(height, width, 2)
    # x grows along a row, y falls from row to row, each by the spacing and nothing else.
    right = torch.tensor([0.3, 0.0], dtype=torch.float64)
    down = torch.tensor([0.0, -0.3], dtype=torch.float64)
    assert_close(shifts.diff(dim=1), right.expand(height, width - 1, 2))
    assert_close(shifts.diff(dim=0), down.expand(height - 1, width, 2))


@pytest.mark.parametrize("rotations", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16])
def test_angles_are_equal_parts_of_the_circle(rotations):
    angles = Lattice.centred(rotations, (1, 1), 1.0).angles
    assert angles[0] == 0
    assert ((angles >= -math.pi) & (angles < math.pi)).all()
    numbers = torch.arange(rotations, dtype=torch.float64)
    expected = torch.exp(2j * math.pi * numbers / rotations)
    assert_close(torch.exp(1j * angles), expected, atol=1e-12, rtol=0)


def test_its_points_are_a_position_and_a_rotation_each():
    assert len(Lattice.centred(8, (3, 5), 0.1)) == 120
