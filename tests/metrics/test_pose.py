"""Pose metrics: what no model can know is removed exactly, everything else counts."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from svae.geometry import pixel_grid, pixel_size, rotate, to_object_frame, wrap_angle
from svae.metrics import angle_offset, pose_metrics

SIZE = 33
PIXEL = pixel_size(SIZE, SIZE)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


@pytest.fixture
def truth(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    theta = 2 * math.pi * torch.rand(200, generator=generator, dtype=torch.float64)
    shift = 0.2 * torch.randn(200, 2, generator=generator, dtype=torch.float64)
    return theta, shift


def equivalent(theta: Tensor, shift: Tensor, turn: float, c: Tensor) -> tuple[Tensor, Tensor]:
    """Poses of the model object M(u) = O(R(turn)(u - c)) that give the same images."""
    inferred = theta + turn
    return inferred, shift - rotate(c.expand_as(shift), inferred)


def three_blobs(points: Tensor) -> Tensor:
    """An object without symmetry, known at every point."""
    centres = points.new_tensor([[0.3, 0.1], [-0.2, 0.3], [-0.1, -0.4]])
    weights = points.new_tensor([1.0, 0.6, 0.3])
    distance = (points.unsqueeze(-2) - centres).square().sum(dim=-1)
    return (weights * torch.exp(-distance / 0.02)).sum(dim=-1)


def test_the_true_poses_are_perfect(truth: tuple[Tensor, Tensor]) -> None:
    metrics = pose_metrics(*truth, *truth, PIXEL)
    assert list(metrics) == [
        "theta_circular_correlation",
        "theta_circular_correlation_plain",
        "theta_error_deg",
        "shift_x_correlation",
        "shift_y_correlation",
        "shift_rmse_px",
    ]
    assert metrics["theta_circular_correlation"] > 0.8  # not 1: 200 draws are not quite uniform
    assert metrics["theta_circular_correlation_plain"] == pytest.approx(1)
    assert metrics["theta_error_deg"] == pytest.approx(0, abs=1e-9)
    assert metrics["shift_x_correlation"] == pytest.approx(1)
    assert metrics["shift_y_correlation"] == pytest.approx(1)
    assert metrics["shift_rmse_px"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("turn", [0.0, 0.4, math.pi, -2.0])
def test_a_model_that_draws_the_same_images_has_no_error(
    truth: tuple[Tensor, Tensor], turn: float
) -> None:
    theta, shift = truth
    c = torch.tensor([0.15, -0.3], dtype=torch.float64)
    inferred_theta, inferred_shift = equivalent(theta, shift, turn, c)

    # The model's object at the inferred poses is the true object at the true poses.
    grid = pixel_grid(SIZE, SIZE)
    images = three_blobs(to_object_frame(grid, theta, shift))
    in_model_frame = to_object_frame(grid, inferred_theta, inferred_shift)
    drawn = three_blobs(rotate(in_model_frame - c, torch.tensor(turn, dtype=torch.float64)))
    assert torch.allclose(drawn, images, atol=1e-10)

    metrics = pose_metrics(inferred_theta, inferred_shift, theta, shift, PIXEL)
    assert metrics["theta_error_deg"] == pytest.approx(0, abs=1e-9)
    assert metrics["shift_rmse_px"] == pytest.approx(0, abs=1e-9)
    assert metrics["shift_x_correlation"] < 0.9  # the plain correlation does see the offset


def test_an_offset_in_the_image_frame_is_an_error(truth: tuple[Tensor, Tensor]) -> None:
    """Where angles are uniform, a fixed image-frame error is no fixed object-frame error."""
    _, shift = truth
    theta = 2 * math.pi * torch.arange(200, dtype=torch.float64) / 200
    error = PIXEL * torch.tensor([3.0, 4.0], dtype=torch.float64)
    metrics = pose_metrics(theta, shift + error, theta, shift, PIXEL)
    assert metrics["shift_rmse_px"] == pytest.approx(5)


def test_shift_rmse_against_numpy_least_squares(
    truth: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    theta, shift = truth
    c = torch.tensor([-0.2, 0.1], dtype=torch.float64)
    inferred_theta, inferred_shift = equivalent(theta, shift, 0.3, c)
    inferred_theta = inferred_theta + 0.2 * torch.randn(200, generator=generator)
    inferred_shift = inferred_shift + 0.1 * torch.randn(200, 2, generator=generator)

    angle = inferred_theta.numpy()
    cos, sin = np.cos(angle), np.sin(angle)
    design = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1).reshape(-1, 2)
    target = (shift - inferred_shift).numpy().reshape(-1)
    solution, *_ = np.linalg.lstsq(design, target, rcond=None)
    residual = (target - design @ solution).reshape(-1, 2)
    expected = np.sqrt(np.mean(np.sum(residual**2, axis=1))) / PIXEL

    metrics = pose_metrics(inferred_theta, inferred_shift, theta, shift, PIXEL)
    assert metrics["shift_rmse_px"] == pytest.approx(expected, rel=1e-9)


def test_pearson_against_numpy(generator: torch.Generator) -> None:
    a = torch.randn(30, 2, generator=generator)
    b = 0.5 * a + torch.randn(30, 2, generator=generator)
    metrics = pose_metrics(None, a, None, b, PIXEL)
    for axis, name in enumerate("xy"):
        expected = np.corrcoef(a[:, axis].numpy(), b[:, axis].numpy())[0, 1]
        assert metrics[f"shift_{name}_correlation"] == pytest.approx(expected, abs=1e-6)


def test_without_an_angle_the_offset_is_of_the_image_frame(truth: tuple[Tensor, Tensor]) -> None:
    _, shift = truth
    moved = shift + torch.tensor([0.4, -0.1], dtype=torch.float64)
    assert pose_metrics(None, moved, None, shift, PIXEL)["shift_rmse_px"] == pytest.approx(0)


@pytest.mark.parametrize("part", [0.1, 0.3, 0.49, 0.6, 0.9])
def test_images_half_a_turn_off_do_not_spoil_the_offset(
    truth: tuple[Tensor, Tensor], generator: torch.Generator, part: float
) -> None:
    theta, _ = truth
    noise = math.radians(2) * torch.randn(200, generator=generator, dtype=torch.float64)
    flipped = math.pi * (torch.arange(200) < part * 200)
    inferred = theta + 0.8 + noise + flipped
    error = pose_metrics(inferred, None, theta, None, PIXEL)["theta_error_deg"]
    # The larger part holds half of the images, within an arc of twice the largest noise.
    assert error <= math.degrees(noise.abs().max())

    mode = 0.8 + (math.pi if part > 0.5 else 0.0)
    assert abs(wrap_angle(angle_offset(inferred, theta) - mode)) < math.radians(4)


def test_no_offset_has_a_smaller_median(generator: torch.Generator) -> None:
    difference = torch.cat(
        (
            0.5 * torch.randn(31, generator=generator, dtype=torch.float64) + 3.0,
            2 * math.pi * torch.rand(20, generator=generator, dtype=torch.float64),
        )
    )
    found = wrap_angle(difference - angle_offset(difference, torch.zeros(51))).abs().median()
    grid = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
    medians = wrap_angle(difference - grid.unsqueeze(-1)).abs().median(dim=-1).values
    assert found <= medians.min() + 1e-12
    assert found >= medians.min() - (grid[1] - grid[0])


def test_error_of_a_noisy_angle_is_the_median_of_its_noise(generator: torch.Generator) -> None:
    theta = 2 * math.pi * torch.rand(20_000, generator=generator, dtype=torch.float64)
    noise = math.radians(10) * torch.randn(20_000, generator=generator, dtype=torch.float64)
    metrics = pose_metrics(theta + noise - 1.0, None, theta, None, PIXEL)
    assert metrics["theta_error_deg"] == pytest.approx(6.745, rel=0.03)  # 10 deg * Phi^-1(3/4)


def test_an_angle_that_knows_nothing_is_a_quarter_turn_off(generator: torch.Generator) -> None:
    theta, inferred = 2 * math.pi * torch.rand(2, 20_000, generator=generator)
    error = pose_metrics(inferred, None, theta, None, PIXEL)["theta_error_deg"]
    assert 86 < error < 90


def test_constant_inferences_give_numbers(truth: tuple[Tensor, Tensor]) -> None:
    theta, shift = truth
    metrics = pose_metrics(
        torch.full_like(theta, 0.1), torch.full_like(shift, 0.1), theta, shift, PIXEL
    )
    assert metrics["theta_circular_correlation"] == pytest.approx(0, abs=1e-12)
    assert metrics["theta_circular_correlation_plain"] == 0
    assert metrics["shift_x_correlation"] == metrics["shift_y_correlation"] == 0
    spread = (shift - shift.mean(dim=0)).square().sum(dim=-1).mean().sqrt()
    assert metrics["shift_rmse_px"] == pytest.approx(spread.item() / PIXEL)


def test_what_is_absent_is_left_out(truth: tuple[Tensor, Tensor]) -> None:
    theta, shift = truth
    angle_keys = {
        "theta_circular_correlation",
        "theta_circular_correlation_plain",
        "theta_error_deg",
    }
    shift_keys = {"shift_x_correlation", "shift_y_correlation", "shift_rmse_px"}
    assert pose_metrics(None, None, theta, shift, PIXEL) == {}
    assert pose_metrics(theta, shift, None, None, PIXEL) == {}
    assert pose_metrics(None, None, None, None, PIXEL) == {}
    assert pose_metrics(theta, shift, theta, None, PIXEL).keys() == angle_keys
    assert pose_metrics(None, shift, theta, shift, PIXEL).keys() == shift_keys
    assert pose_metrics(theta, shift, None, shift, PIXEL).keys() == shift_keys


def test_arguments_are_checked(truth: tuple[Tensor, Tensor]) -> None:
    theta, shift = truth
    with pytest.raises(ValueError, match=r"true_shift: expected shape \(200, 2\)"):
        pose_metrics(theta, shift, theta, shift[:3], PIXEL)
    with pytest.raises(ValueError, match=r"theta: expected shape .* at least 1"):
        pose_metrics(theta[:0], None, theta[:0], None, PIXEL)
    with pytest.raises(ValueError, match="true_theta: expected finite values, got 200"):
        pose_metrics(theta, shift, theta * math.nan, shift, PIXEL)
    with pytest.raises(ValueError, match="pixel_size: expected a number above 0"):
        pose_metrics(theta, shift, theta, shift, 0.0)
