"""What several inferences of one image agree on."""

import math

import pytest
import torch
from torch.testing import assert_close

from svae.agreement import most_agreed, poses_between
from svae.geometry import rotate, wrap_angle
from svae.latents import Latents
from svae.lattice import Lattice

DOUBLE = torch.float64
LATTICE = Lattice.centred(8, (5, 5), 0.1)


def certain(theta):
    """Spreads of posteriors (K, B) that are sure of their angle."""
    return [(torch.ones_like(angle)[:, None], angle[:, None]) for angle in theta]


def moved(latents, agreed):
    """What becomes of latents (B, ...) by the turn about the image's centre, the move and z."""
    theta = latents.theta + agreed.turn
    shift = rotate(latents.shift, agreed.turn) + agreed.move
    return latents.z + agreed.z, theta, shift


@pytest.fixture
def modes():
    """Five inferences of two images: four alike, across the cut of the circle, and a half turn."""
    generator = torch.Generator().manual_seed(3)
    theta = torch.tensor([[3.0, 3.1, 3.2, 3.3, 0.0], [0.0, 0.3, 0.1, math.pi, 0.2]], dtype=DOUBLE)
    shift = 0.02 * torch.randn(5, 2, 2, generator=generator, dtype=DOUBLE)
    z = torch.randn(5, 2, 3, generator=generator, dtype=DOUBLE)
    log_scale = torch.randn(5, 2, generator=generator, dtype=DOUBLE)
    return Latents(z, wrap_angle(theta.T), shift, log_scale)


def test_the_mean_is_of_pose_and_content_of_those_that_agree(modes):
    agreed = most_agreed(modes, certain(modes.theta), LATTICE)
    agreeing = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]])
    for i, rows in enumerate(agreeing):
        assert agreed.number[i] in rows
    middle = modes[agreed.number, torch.arange(2)]
    z, theta, shift = moved(middle, agreed)
    assert_close(wrap_angle(theta), wrap_angle(torch.tensor([3.15, 0.15], dtype=DOUBLE)))
    assert_close(z, torch.stack([modes.z[rows, i].mean(0) for i, rows in enumerate(agreeing)]))
    expected = torch.stack([modes.shift[rows, i].mean(0) for i, rows in enumerate(agreeing)])
    assert_close(shift, expected)
    sizes = torch.stack([modes.log_scale[rows, i].mean() for i, rows in enumerate(agreeing)])
    assert_close(middle.log_scale + agreed.log_scale, sizes)


def test_the_middle_is_the_one_nearest_to_the_mean(modes):
    modes.shift.zero_()
    modes.shift[:, 1, 0] = torch.tensor([0.1, 0.0, 0.0, 0.0, 0.0], dtype=DOUBLE)
    modes.theta[:, 1] = torch.tensor([0.2, 0.0, 0.21, 3.0, 0.4], dtype=DOUBLE)
    agreed = most_agreed(modes, certain(modes.theta), LATTICE)
    # The first has the mean angle, 0.2025, but lies a whole cell off.
    assert agreed.number[1] == 2


def test_confidence_outweighs_number():
    """Three that hardly prefer an angle, two that exclude it."""
    theta = torch.tensor([[0.0], [0.0], [0.0], [3.1], [3.1]], dtype=DOUBLE)
    modes = Latents(torch.zeros(5, 1, 0, dtype=DOUBLE), theta, torch.zeros(5, 1, 2, dtype=DOUBLE))
    angles = torch.tensor([[0.0, 3.1]], dtype=DOUBLE)
    unsure, sure = (torch.tensor([[p, 1 - p]], dtype=DOUBLE) for p in (0.55, 0.001))
    agreed = most_agreed(modes, [(unsure, angles)] * 3 + [(sure, angles)] * 2, LATTICE)
    assert agreed.number.item() in (3, 4)


def test_inferences_a_step_of_the_lattice_away_are_not_in_the_mean():
    """They are of another hypothesis, and content goes with its own angle."""
    theta = torch.tensor([[0.0], [0.1], [0.05], [1.2]], dtype=DOUBLE)
    z = torch.tensor([[[1.0]], [[2.0]], [[3.0]], [[50.0]]], dtype=DOUBLE)
    modes = Latents(z, theta, torch.zeros(4, 1, 2, dtype=DOUBLE))
    agreed = most_agreed(modes, certain(theta), LATTICE)
    z, theta, _ = moved(modes[agreed.number, torch.arange(1)], agreed)
    assert_close(theta, torch.tensor([0.05], dtype=DOUBLE))
    assert_close(z, torch.tensor([[2.0]], dtype=DOUBLE))


def test_the_mean_is_of_one_place():
    """Three candidates elsewhere at the same angle: nothing was found between the two places."""
    x = torch.tensor([0.30, 0.31, 0.29, 0.30, 0.30, -0.3, -0.3, -0.3], dtype=DOUBLE)
    shift = torch.stack((x, 0 * x), -1).unsqueeze(1)
    z = torch.where(x > 0, 1.0, -9.0).to(DOUBLE).reshape(8, 1, 1)
    modes = Latents(z, torch.zeros(8, 1, dtype=DOUBLE), shift)
    agreed = most_agreed(modes, certain(modes.theta), LATTICE)
    z, _, shift = moved(modes[agreed.number, torch.arange(1)], agreed)
    assert_close(shift, torch.tensor([[0.3, 0.0]], dtype=DOUBLE))
    assert_close(z, torch.ones(1, 1, dtype=DOUBLE))


def test_an_inference_that_is_not_finite_leaves_the_others_alone():
    theta = torch.tensor([[0.0], [0.1], [0.2], [math.nan]], dtype=DOUBLE)
    modes = Latents(theta.unsqueeze(-1).clone(), theta, 0 * theta.unsqueeze(-1).expand(4, 1, 2))
    agreed = most_agreed(modes, certain(theta), LATTICE)
    assert agreed.number.item() < 3


@pytest.mark.parametrize(("rotations", "agreeing"), [(1, 3), (2, 3), (8, 2)])
def test_no_more_than_a_quarter_turn_agrees(rotations, agreeing):
    """However far apart the rotations of the lattice are."""
    theta = torch.tensor([[0.0], [0.1], [1.0], [2.9]], dtype=DOUBLE)
    z = torch.tensor([[[0.0]], [[1.0]], [[5.0]], [[50.0]]], dtype=DOUBLE)
    modes = Latents(z, theta, torch.zeros(4, 1, 2, dtype=DOUBLE))
    agreed = most_agreed(modes, certain(theta), Lattice.centred(rotations, (1, 1), 0.0))
    assert agreed.number.item() == 1
    assert_close(z[1] + agreed.z, z[:agreeing].mean(0))


def test_poses_fill_a_cell_and_begin_with_none():
    turns, shifts = poses_between(LATTICE, 64)
    assert turns[0] == 0
    assert (shifts[0] == 0).all()
    assert ((turns >= 0) & (turns < LATTICE.turn)).all()
    assert ((shifts >= 0) & (shifts < LATTICE.spacing)).all()
    for values, width in ((turns, LATTICE.turn), (shifts[:, 0], 0.1), (shifts[:, 1], 0.1)):
        counts = torch.histc(values / width, 8, 0, 1)
        assert counts.min() >= 4
        assert counts.max() <= 12
