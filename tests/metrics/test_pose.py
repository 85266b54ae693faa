"""Pose metrics: what no model can know is removed exactly, everything else counts."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from svae.geometry import pixel_grid, pixel_size, rotate, to_object_frame, wrap_angle
from svae.metrics import (
    angle_offset,
    angle_offsets,
    circular_correlation,
    circular_correlation_plain,
    comparable_angles,
    pose_metrics,
)

SIZE = 33
PIXEL = pixel_size(SIZE, SIZE)
CENTRE_KEYS = {"centre_x_correlation", "centre_y_correlation", "centre_rmse_px"}


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
        "theta_half_turns",
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


def test_centres_forgive_each_kind_of_object_its_own_origin(truth: tuple[Tensor, Tensor]) -> None:
    theta, shift = truth
    kind = torch.arange(200) % 3
    origin = torch.tensor([[0.3, 0.0], [-0.1, 0.25], [0.0, -0.3]], dtype=torch.float64)[kind]
    inferred_theta, inferred_shift = theta + 0.4, shift - rotate(origin, theta + 0.4)
    metrics = pose_metrics(inferred_theta, inferred_shift, theta, shift, PIXEL, centre=shift)
    for axis in "xy":
        assert metrics[f"shift_{axis}_correlation"] < 0.8
        assert metrics[f"centre_{axis}_correlation"] == pytest.approx(1)
    assert metrics["shift_rmse_px"] > 3
    assert metrics["centre_rmse_px"] == pytest.approx(0, abs=1e-9)
    # All else is as without them.
    without = pose_metrics(inferred_theta, inferred_shift, theta, shift, PIXEL)
    assert metrics.items() >= without.items()
    assert metrics.keys() - without.keys() == CENTRE_KEYS


def test_centres_are_measured_as_shifts_are(
    truth: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    """The offset of a centre that is no true origin, too, turns with the inferred angle."""
    theta, shift = truth
    c = torch.tensor([0.15, -0.3], dtype=torch.float64)
    inferred_theta, displaced = equivalent(theta, shift, 1.3, c)
    noisy = displaced + 0.1 * torch.randn(200, 2, generator=generator)
    for centre in (displaced, noisy):
        expected = pose_metrics(inferred_theta, centre, theta, shift, PIXEL)
        found = pose_metrics(inferred_theta, shift, theta, shift, PIXEL, centre=centre)
        for key in CENTRE_KEYS:
            assert found[key] == expected[key.replace("centre", "shift")]
        assert found["centre_x_correlation"] < 0.9
    assert found["centre_rmse_px"] > 1
    exact = pose_metrics(inferred_theta, shift, theta, shift, PIXEL, centre=displaced)
    assert exact["centre_rmse_px"] == pytest.approx(0, abs=1e-9)


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


def test_the_share_of_half_turns(truth: tuple[Tensor, Tensor]) -> None:
    theta, _ = truth
    error = torch.zeros(200, dtype=torch.float64)
    error[:30], error[30:50], error[50:60] = math.pi, math.radians(-91), math.radians(89)
    assert pose_metrics(theta + error + 2, None, theta, None, PIXEL)["theta_half_turns"] == 0.25
    # An ellipse has none, a triangle upside down is 60 degrees off.
    twofold, threefold = torch.full((2, 200), 2, dtype=torch.int64) + torch.tensor([[0], [1]])
    for symmetry in (twofold, threefold):
        found = pose_metrics(theta + error, None, theta, None, PIXEL, symmetry)
        assert found["theta_half_turns"] == 0


def test_half_turns_against_the_same_object_upright_are_none_of_its_own_frame(
    truth: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    theta, _ = truth
    frame = 2 * math.pi * torch.rand(200, generator=generator, dtype=torch.float64)
    error = torch.zeros(200, dtype=torch.float64)
    error[:30] = math.pi
    found = pose_metrics(theta + frame + error, None, theta, None, PIXEL, None, frame)
    assert found["theta_relative_half_turns"] == 0.15
    assert found["theta_half_turns"] > 0.3


def test_an_angle_that_knows_nothing_is_a_quarter_turn_off(generator: torch.Generator) -> None:
    theta, inferred = 2 * math.pi * torch.rand(2, 20_000, generator=generator)
    metrics = pose_metrics(inferred, None, theta, None, PIXEL)
    assert 86 < metrics["theta_error_deg"] < 90
    assert metrics["theta_half_turns"] == pytest.approx(0.5, abs=0.02)


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
        "theta_half_turns",
    }
    shift_keys = {"shift_x_correlation", "shift_y_correlation", "shift_rmse_px"}
    assert pose_metrics(None, None, theta, shift, PIXEL) == {}
    assert pose_metrics(theta, shift, None, None, PIXEL) == {}
    assert pose_metrics(None, None, None, None, PIXEL) == {}
    assert pose_metrics(theta, shift, theta, None, PIXEL).keys() == angle_keys
    assert pose_metrics(None, shift, theta, shift, PIXEL).keys() == shift_keys
    assert pose_metrics(theta, shift, None, shift, PIXEL).keys() == shift_keys
    assert pose_metrics(None, None, None, shift, PIXEL, centre=shift).keys() == CENTRE_KEYS
    assert pose_metrics(None, shift, None, None, PIXEL, centre=shift) == {}


def of_orders(orders: list[int], count: int) -> Tensor:
    """So many images of each order of symmetry, mixed."""
    return torch.tensor(orders).repeat(count)


def any_equivalent(theta: Tensor, symmetry: Tensor, generator: torch.Generator) -> Tensor:
    """The angles turned by random multiples of what leaves each object as it is."""
    steps = torch.randint(12, theta.shape, generator=generator).double()
    return theta + 2 * math.pi * steps / symmetry


def test_objects_without_symmetry_have_the_numbers_of_before(
    truth: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    theta, shift = truth
    inferred = theta + 0.5 * torch.randn(200, generator=generator, dtype=torch.float64) + 2
    metrics = pose_metrics(inferred, shift, theta, shift, PIXEL)
    ones = torch.ones(200, dtype=torch.int64)
    assert pose_metrics(inferred, shift, theta, shift, PIXEL, ones) == metrics
    # The definitions.
    plain = circular_correlation_plain(inferred, theta).item()
    error = wrap_angle(inferred - theta - angle_offset(inferred, theta)).abs().median()
    assert metrics["theta_circular_correlation"] == circular_correlation(inferred, theta).item()
    assert metrics["theta_circular_correlation_plain"] == plain
    assert metrics["theta_error_deg"] == pytest.approx(math.degrees(error.item()), rel=1e-12)


def test_equivalent_poses_of_symmetric_objects_have_no_error(
    truth: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    """Each order with its own canonical angle, and one displaced model object."""
    theta, shift = truth
    symmetry = of_orders([1, 2, 4, 2], 50)
    turn = torch.tensor([0.0, 0.3, -1.0, 0.0, 2.5], dtype=torch.float64)[symmetry]
    c = torch.tensor([0.1, -0.2], dtype=torch.float64)
    inferred = any_equivalent(theta + turn, symmetry, generator)
    displaced = shift - rotate(c.expand_as(shift), inferred)
    metrics = pose_metrics(inferred, displaced, theta, shift, PIXEL, symmetry)
    assert metrics["theta_error_deg"] == pytest.approx(0, abs=1e-9)
    assert metrics["theta_circular_correlation_plain"] == pytest.approx(1)
    assert metrics["theta_circular_correlation"] > 0.7  # 200 draws are not quite uniform
    assert metrics["shift_rmse_px"] == pytest.approx(0, abs=1e-9)
    # Which of the equivalent angles was inferred matters to the angles as they are.
    ignored = pose_metrics(inferred, displaced, theta, shift, PIXEL)
    assert ignored["theta_error_deg"] > 20
    assert ignored["theta_circular_correlation"] < 0.6


def test_compared_angles_are_the_nearest_that_look_the_same(
    truth: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    """Against a search through all equivalent angles."""
    theta, _ = truth
    symmetry = of_orders([1, 2, 4, 3], 50)
    inferred = 4 * torch.randn(200, generator=generator, dtype=torch.float64)
    taken = {1: 0.3, 2: -0.2, 4: 5.0}
    found, true = comparable_angles(inferred, theta, symmetry, taken)
    for i, order in enumerate(symmetry.tolist()):
        expected = inferred[i] - taken.get(order, 0.0)
        assert found[i] == pytest.approx(expected.item())
        equivalent = theta[i] + 2 * math.pi * torch.arange(-40, 40).double() / order
        nearest = equivalent[(equivalent - expected).abs().argmin()]
        assert true[i] == pytest.approx(nearest.item())


def test_each_order_has_the_offset_of_its_own_images(
    truth: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    theta, _ = truth
    symmetry = of_orders([1, 2, 4, 2], 50)
    turn = torch.tensor([0.0, 0.3, -1.0, 0.0, 2.5], dtype=torch.float64)[symmetry]
    inferred = any_equivalent(theta + turn, symmetry, generator)
    # A quarter turn leaves objects of order 4 as they are: 2.5 is the same as two of them less.
    offsets = angle_offsets(inferred, theta, symmetry)
    assert offsets == pytest.approx({1: 0.3, 2: -1.0, 4: 2.5 - math.pi})


def test_symmetric_numbers_are_those_of_each_order(
    truth: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    theta, _ = truth
    symmetry = of_orders([1, 1, 1, 2, 4], 40)
    noise = 0.3 * torch.randn(200, generator=generator, dtype=torch.float64)
    inferred = any_equivalent(theta + noise + 0.7, symmetry, generator)
    metrics = pose_metrics(inferred, None, theta, None, PIXEL, symmetry)
    groups = {k: (k * inferred[symmetry == k], k * theta[symmetry == k]) for k in (1, 2, 4)}
    for name, form in (("", circular_correlation), ("_plain", circular_correlation_plain)):
        one, two, four = (form(*groups[k]).item() for k in (1, 2, 4))
        expected = 0.6 * one + 0.2 * two + 0.2 * four
        found = metrics[f"theta_circular_correlation{name}"]
        assert found == pytest.approx(expected, rel=1e-12)
    # The best offset of each order by search, then the distance to the nearest equivalent angle.
    errors = []
    for k, (a, b) in groups.items():
        turns = 2 * math.pi * torch.arange(k) / k
        candidates = torch.linspace(0, 2 * math.pi / k, 4001, dtype=torch.float64)
        difference = (a - b) / k - candidates[:, None, None] - turns[:, None]
        nearest = wrap_angle(difference).abs().amin(dim=1)
        errors.append(nearest[nearest.median(dim=1).values.argmin()])
    expected = math.degrees(torch.cat(errors).median().item())
    assert metrics["theta_error_deg"] == pytest.approx(expected, abs=0.1)


def test_relative_angles_forgive_each_object_its_own_upright(
    truth: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    theta, shift = truth
    upright = 2 * math.pi * torch.rand(200, generator=generator, dtype=torch.float64)
    metrics = pose_metrics(theta + upright, shift, theta, shift, PIXEL, None, upright)
    assert metrics["theta_relative_error_deg"] == pytest.approx(0, abs=1e-9)
    assert metrics["theta_relative_correlation_plain"] == pytest.approx(1)
    assert metrics["theta_relative_correlation"] > 0.8
    assert metrics["theta_error_deg"] > 60
    assert metrics["theta_circular_correlation"] < 0.2


def test_nothing_is_removed_from_relative_angles(truth: tuple[Tensor, Tensor]) -> None:
    theta, _ = truth
    upright = torch.full_like(theta, 0.4)
    metrics = pose_metrics(theta + 0.6, None, theta, None, PIXEL, None, upright)
    assert metrics["theta_relative_error_deg"] == pytest.approx(math.degrees(0.2))
    assert metrics["theta_error_deg"] == pytest.approx(0, abs=1e-9)


def test_relative_correlation_as_the_authors_compute_it(generator: torch.Generator) -> None:
    """Astropy's `circcorrcoef` of the differences, written out."""
    theta = math.pi / 4 * torch.randn(50, generator=generator, dtype=torch.float64)
    upright = torch.randn(50, generator=generator, dtype=torch.float64)
    noise = 0.4 * torch.randn(50, generator=generator, dtype=torch.float64)
    found = pose_metrics(theta + upright + noise, None, theta, None, PIXEL, None, upright)
    a, b = (theta + noise).numpy(), theta.numpy()
    sines = []
    for angle in (a, b):
        mean = np.arctan2(np.sin(angle).mean(), np.cos(angle).mean())
        sines.append(np.sin(angle - mean))
    expected = (sines[0] * sines[1]).sum() / np.sqrt((sines[0] ** 2).sum() * (sines[1] ** 2).sum())
    assert found["theta_relative_correlation_plain"] == pytest.approx(expected, abs=1e-12)
    resultants = [np.abs(np.exp(1j * (a - b)).mean()), np.abs(np.exp(1j * (a + b)).mean())]
    uniform = resultants[0] - resultants[1]
    assert found["theta_relative_correlation"] == pytest.approx(uniform, abs=1e-12)
    median = np.sort(np.abs(noise.numpy()))[24]  # of two middle values, the lower
    assert found["theta_relative_error_deg"] == pytest.approx(np.degrees(median))


def test_relative_angles_respect_symmetry(
    truth: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    theta, _ = truth
    symmetry = of_orders([1, 4], 100)
    upright = 2 * math.pi * torch.rand(200, generator=generator, dtype=torch.float64)
    inferred = any_equivalent(theta + upright, symmetry, generator)
    metrics = pose_metrics(inferred, None, theta, None, PIXEL, symmetry, upright)
    assert metrics["theta_relative_error_deg"] == pytest.approx(0, abs=1e-9)
    assert metrics["theta_relative_correlation_plain"] == pytest.approx(1)
    # A square is at most an eighth of a turn off.
    squares = torch.full_like(symmetry, 4)
    largest = pose_metrics(upright, None, theta, None, PIXEL, squares, torch.zeros(200))
    assert 15 < largest["theta_relative_error_deg"] < 30


def test_relative_angles_need_the_truth_and_the_inference(truth: tuple[Tensor, Tensor]) -> None:
    theta, shift = truth
    assert pose_metrics(theta, None, None, None, PIXEL, None, theta) == {}
    assert pose_metrics(None, None, theta, None, PIXEL, None, theta) == {}
    symmetry = torch.ones(200, dtype=torch.int64)
    assert pose_metrics(None, None, None, None, PIXEL, symmetry) == {}
    keys = pose_metrics(None, shift, theta, shift, PIXEL, symmetry, theta).keys()
    assert keys == {"shift_x_correlation", "shift_y_correlation", "shift_rmse_px"}


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
    with pytest.raises(ValueError, match=r"symmetry: expected whole numbers of at least 1, got"):
        pose_metrics(theta, None, theta, None, PIXEL, torch.zeros(200, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"symmetry: expected whole numbers .* torch.float64"):
        pose_metrics(theta, None, theta, None, PIXEL, torch.ones_like(theta))
    with pytest.raises(ValueError, match=r"symmetry: expected shape \(200,\)"):
        pose_metrics(theta, None, theta, None, PIXEL, torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"centre: expected shape \(200, 2\)"):
        pose_metrics(theta, shift, theta, shift, PIXEL, centre=theta)
    with pytest.raises(ValueError, match="centre: expected finite values, got 400"):
        pose_metrics(theta, shift, theta, shift, PIXEL, centre=shift * math.nan)
    with pytest.raises(ValueError, match="reference_theta: expected finite values, got 200"):
        pose_metrics(theta, None, theta, None, PIXEL, None, theta * math.nan)


def test_sizes_are_compared_up_to_a_factor(generator: torch.Generator) -> None:
    true = torch.rand(200, generator=generator, dtype=torch.float64) + 0.5
    none = (None, None, None, None, PIXEL)
    noise = 0.1 * torch.randn(200, generator=generator, dtype=torch.float64)
    for factor in (1.0, 0.3, 7.0):
        metrics = pose_metrics(*none, log_scale=(factor * true).log(), true_scale=true)
        assert list(metrics) == ["scale_correlation"]
        assert metrics["scale_correlation"] == pytest.approx(1)
        found = pose_metrics(*none, log_scale=(factor * true).log() + noise, true_scale=true)
        expected = torch.corrcoef(torch.stack((true.log() + noise, true.log())))[0, 1]
        assert found["scale_correlation"] == pytest.approx(expected.item())
    wrong = pose_metrics(*none, log_scale=-true.log(), true_scale=true)
    assert wrong["scale_correlation"] == pytest.approx(-1)
    one = torch.ones_like(true)
    assert pose_metrics(*none, log_scale=noise, true_scale=one)["scale_correlation"] == 0
    # What lacks its truth, or its inference, is left out.
    assert not pose_metrics(*none, log_scale=noise)
    assert not pose_metrics(*none, true_scale=true)


def test_an_objects_own_offset_grows_with_its_size(truth: tuple[Tensor, Tensor]) -> None:
    """M(u) = O(R(turn)(u - c) / f): f is the factor of all sizes that no model can know."""
    theta, shift = truth
    scale = torch.linspace(0.6, 1.6, len(theta), dtype=torch.float64)
    turn, c, factor = 0.7, torch.tensor([0.11, -0.2], dtype=torch.float64), 1.4
    inferred = theta + turn
    moved = shift - (scale / factor).unsqueeze(-1) * rotate(c.expand_as(shift), inferred)
    grid = pixel_grid(SIZE, SIZE)

    def model_object(u: Tensor) -> Tensor:
        return three_blobs(rotate((u - c) / factor, torch.tensor(turn)))

    images = three_blobs(to_object_frame(grid, theta, shift, scale.log()))
    log_scale = (scale / factor).log()
    explained = model_object(to_object_frame(grid, inferred, moved, log_scale))
    torch.testing.assert_close(explained, images)
    found = pose_metrics(inferred, moved, *truth, PIXEL, log_scale=log_scale, true_scale=scale)
    assert found["shift_rmse_px"] == pytest.approx(0, abs=1e-6)
    assert found["scale_correlation"] == pytest.approx(1)
    assert pose_metrics(inferred, moved, *truth, PIXEL)["shift_rmse_px"] > 0.5


def test_sizes_are_above_zero() -> None:
    size = torch.tensor([1.0, 0.0])
    with pytest.raises(ValueError, match=r"true_scale: expected sizes above 0, got 0\.0"):
        pose_metrics(None, None, None, None, PIXEL, log_scale=size, true_scale=size)
