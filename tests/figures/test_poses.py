"""Inferred poses, against the truth and by themselves."""

import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from tests.figures.pictures import check_page, shown_title
from torch import Tensor

from svae.figures import pose_figure, pose_histogram_figure
from svae.geometry import wrap_angle
from svae.metrics import pose_metrics

PIXEL = 0.1


def poses(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inferred and true angles and shifts, with a global offset of 40 degrees."""
    random = torch.Generator().manual_seed(0)
    true = torch.rand(count, generator=random) * 2 * math.pi - math.pi
    inferred = true + 0.05 * torch.randn(count, generator=random) + math.radians(40)
    true_shift = 0.2 * torch.randn(count, 2, generator=random)
    shift = true_shift + 0.03 * torch.randn(count, 2, generator=random)
    return inferred, true, shift, true_shift


def points_of(figure: Figure, panel: int) -> np.ndarray:
    (cloud,) = figure.axes[panel].collections
    return np.asarray(cloud.get_offsets())


@pytest.mark.parametrize("count", [2, 300])
def test_angles_are_drawn_without_their_offset(count: int) -> None:
    theta, true, shift, true_shift = poses(count)
    figure = pose_figure(theta, true, shift, true_shift, PIXEL)
    angles, x, y = figure.axes
    drawn = points_of(figure, 0)
    assert np.abs(drawn).max() <= 180
    error = (drawn[:, 1] - drawn[:, 0] + 180) % 360 - 180
    assert np.abs(error).max() < 12
    assert angles.get_xlim() == angles.get_ylim() == (-180, 180)
    assert "+4" in angles.get_ylabel() or "+3" in angles.get_ylabel()
    assert "° removed" in angles.get_ylabel()
    # The line of equality, and two of half turns.
    assert sorted(line.get_xy1()[1] for line in angles.lines) == [-180, 0, 180]

    metrics = pose_metrics(theta, shift, true, true_shift, PIXEL)
    assert f"{metrics['theta_circular_correlation']:+.2f}" in angles.get_title("left").replace(
        "−", "-"
    )
    assert f"{metrics['theta_error_deg']:.1f}°" in angles.get_title("left")
    for axes, name in ((x, "x"), (y, "y")):
        assert f"{metrics[f'shift_{name}_correlation']:+.2f}" in axes.get_title("left")
        assert axes.get_xlabel() == f"true shift {name} (px)"
        assert axes.get_ylabel() == f"inferred shift {name} (px)"
        assert axes.get_xlim() == axes.get_ylim()
    assert f"{count} images" in shown_title(figure)
    check_page(figure)


def symmetric_poses() -> tuple[Tensor, Tensor, Tensor]:
    """Angles as a perfect model infers them, true angles, and orders of symmetry."""
    random = torch.Generator().manual_seed(3)
    symmetry = torch.tensor([1, 2, 4]).repeat(40)
    true = torch.rand(120, generator=random) * 2 * math.pi - math.pi
    turns = torch.randint(12, (120,), generator=random) * 2 * math.pi / symmetry
    return true + torch.tensor([0, 0.5, -0.3, 0, 0.2])[symmetry] + turns, true, symmetry


def test_angles_of_symmetric_objects_are_compared_as_the_metrics_do() -> None:
    theta, true, symmetry = symmetric_poses()
    theta[:30] += 0.1
    figure = pose_figure(theta, true, None, None, PIXEL, symmetry)
    (axes,) = figure.axes
    drawn = points_of(figure, 0)
    error = np.abs((drawn[:, 1] - drawn[:, 0] + 180) % 360 - 180)
    expected = [0] * 90 + [math.degrees(0.1)] * 30
    assert np.sort(error) == pytest.approx(np.array(expected), abs=1e-3)
    metrics = pose_metrics(theta, None, true, None, PIXEL, symmetry)
    heading = axes.get_title("left").replace("−", "-")
    assert f"correlation {metrics['theta_circular_correlation']:+.2f}" in heading
    assert f"plain {metrics['theta_circular_correlation_plain']:+.2f}" in heading
    assert "median error 0.0°" in heading
    assert axes.get_xlabel() == "true angle (°), nearest equivalent"
    assert axes.get_ylabel() == "inferred angle (°), offsets removed"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "no symmetry: +28.6° removed",
        "symmetry of order 2: −17.2° removed",
        "symmetry of order 4: +11.5° removed",
    ]
    check_page(figure)


def test_a_colour_for_each_order_of_symmetry() -> None:
    theta, true, symmetry = symmetric_poses()
    figure = pose_figure(theta, true, None, None, PIXEL, symmetry)
    (cloud,) = figure.axes[0].collections
    handles = figure.legends[0].legend_handles
    colours = [to_rgb(handle.get_color()) for handle in handles]
    counts = dict.fromkeys(colours, 0)
    for colour in cloud.get_facecolor():
        counts[to_rgb(colour)] += 1
    assert counts == dict.fromkeys(colours, 40)
    # Of order 1 alone there is nothing to tell apart.
    plain = pose_figure(theta, true, None, None, PIXEL, torch.ones_like(symmetry))
    assert not plain.legends
    assert plain.axes[0].get_xlabel() == "true angle (°)"
    # Nothing that looks the same upside down is wrong by half a turn.
    lines = pose_figure(theta, true, None, None, PIXEL, 2 * symmetry).axes[0].lines
    assert [line.get_xy1()[1] for line in lines] == [0]


def test_angles_relative_to_the_objects_upright_have_a_panel() -> None:
    theta, true, shift, true_shift = poses(60)
    upright = torch.randn(60)
    found = theta + upright
    figure = pose_figure(found, true, shift, true_shift, PIXEL, None, upright)
    assert len(figure.axes) == 4
    angles, relative, x, y = figure.axes
    drawn = points_of(figure, 1)
    # Nothing is removed: the 40 degrees are seen.
    error = (drawn[:, 1] - drawn[:, 0] + 180) % 360 - 180
    expected = torch.rad2deg(wrap_angle(theta - true))
    assert np.sort(error) == pytest.approx(expected.sort().values.numpy(), abs=1e-3)
    metrics = pose_metrics(found, None, true, None, PIXEL, None, upright)
    heading = relative.get_title("left").replace("−", "-")
    assert f"circular correlation {metrics['theta_relative_correlation']:+.2f}" in heading
    assert f"plain {metrics['theta_relative_correlation_plain']:+.2f}" in heading
    assert f"error {metrics['theta_relative_error_deg']:.1f}°" in heading
    assert relative.get_ylabel() == "inferred angle (°) relative to upright"
    # Angles above shifts.
    places = [axes.get_position() for axes in (angles, relative, x, y)]
    assert places[0].y0 == places[1].y0 > places[2].y1
    assert places[0].x0 == places[2].x0 < places[1].x0 == places[3].x0
    check_page(figure)
    check_page(pose_figure(found, true, None, None, PIXEL, None, upright))
    # Without a truth there is nothing to compare with.
    assert len(pose_figure(found, None, shift, true_shift, PIXEL, None, upright).axes) == 2


@pytest.mark.parametrize(("panels", "count"), [(1, 1), (1, 8), (2, 3), (3, 8), (4, 1), (4, 3)])
def test_every_page_holds_its_legend(panels: int, count: int) -> None:
    theta, true, shift, true_shift = poses(40)
    symmetry = 2 + torch.arange(40) % count
    shifts = (shift, true_shift) if panels > 2 else (None, None)
    upright = None if panels % 2 else theta
    figure = pose_figure(theta, true, *shifts, PIXEL, symmetry, upright)
    assert len(figure.axes) == panels
    (legend,) = figure.legends
    assert len(legend.get_texts()) == count
    renderer = figure.canvas.get_renderer()
    box = legend.get_window_extent(renderer)
    assert box.y1 < min(axes.get_tightbbox(renderer).y0 for axes in figure.axes)
    check_page(figure)


def test_shifts_are_in_pixels() -> None:
    _, _, shift, true_shift = poses(50)
    figure = pose_figure(None, None, shift, true_shift, PIXEL)
    for panel in (0, 1):
        drawn = points_of(figure, panel)
        expected = torch.stack((true_shift[:, panel], shift[:, panel]), dim=1).numpy() / PIXEL
        order, sorted_ = np.argsort(drawn[:, 0]), np.argsort(expected[:, 0])
        assert drawn[order] == pytest.approx(expected[sorted_], rel=1e-5)


def test_panels_without_a_pair_are_left_out() -> None:
    theta, true, shift, true_shift = poses(20)
    assert len(pose_figure(theta, true, None, None, PIXEL).axes) == 1
    assert len(pose_figure(theta, true, shift, None, PIXEL).axes) == 1
    assert len(pose_figure(theta, None, shift, true_shift, PIXEL).axes) == 2
    check_page(pose_figure(theta, true, None, None, PIXEL))
    with pytest.raises(ValueError, match="expected angles or shifts to draw, got none"):
        pose_figure(theta, None, None, true_shift, PIXEL)


def test_poses_that_are_not_finite_are_left_out() -> None:
    theta, true, shift, true_shift = poses(20)
    theta[2], shift[5, 1] = torch.nan, torch.inf
    figure = pose_figure(theta, true, shift, true_shift, PIXEL)
    assert [len(points_of(figure, panel)) for panel in range(3)] == [18] * 3
    assert "18 images (2 not finite)" in shown_title(figure)
    with pytest.raises(ValueError, match="expected finite values, got none in 20 images"):
        pose_figure(theta * torch.nan, true, None, None, PIXEL)


def test_many_poses_are_thinned() -> None:
    figure = pose_figure(*poses(60_000), PIXEL)
    assert len(points_of(figure, 0)) == 20_000
    assert "60,000 images, 20,000 drawn" in shown_title(figure)


def test_one_image_and_constant_poses_can_be_drawn() -> None:
    check_page(pose_figure(*(value[:1] for value in poses(5)), PIXEL))
    zero = torch.zeros(5, 2)
    check_page(pose_figure(zero[:, 0], zero[:, 0], zero, zero, PIXEL))
    check_page(pose_histogram_figure(zero[:, 0], zero, PIXEL))


def test_pose_arguments_are_checked() -> None:
    theta, true, shift, true_shift = poses(20)
    with pytest.raises(ValueError, match=r"true_theta: expected shape \(20,\), got \(5,\)"):
        pose_figure(theta, true[:5], shift, true_shift, PIXEL)
    with pytest.raises(ValueError, match=r"shift: expected shape \(20, 2\), got \(20,\)"):
        pose_figure(theta, true, theta, true_shift, PIXEL)
    with pytest.raises(ValueError, match="symmetry: expected whole numbers of at least 1"):
        pose_figure(theta, true, None, None, PIXEL, 1.5 * torch.ones(20))
    with pytest.raises(ValueError, match=r"reference_theta: expected shape \(20,\), got \(3,\)"):
        pose_figure(theta, true, None, None, PIXEL, None, theta[:3])
    for figure in (pose_figure(*poses(4), PIXEL), pose_histogram_figure(theta, shift, PIXEL)):
        assert figure.axes
    with pytest.raises(ValueError, match="pixel_size: expected a number above 0"):
        pose_histogram_figure(theta, shift, 0.0)


# ---- histograms


def test_angles_run_counter_clockwise_from_the_right() -> None:
    theta = torch.cat((torch.full((30,), 0.1), torch.full((10,), math.pi / 2 + 0.1 - 4 * math.pi)))
    figure = pose_histogram_figure(theta, None, PIXEL)
    (axes,) = figure.axes
    assert (axes.get_theta_offset(), axes.get_theta_direction()) == (0, 1)
    found = {
        round(math.degrees(bar.get_x() + bar.get_width() / 2) // 30): bar.get_height()
        for bar in axes.patches
        if bar.get_height()
    }
    assert found == {0: 30, 3: 10}
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["0°", "45°", "90°", "135°", "180°", "−135°", "−90°", "−45°"]
    check_page(figure)


def test_shifts_are_counted_where_they_are() -> None:
    shift = torch.tensor([[0.5, 0.2]]).expand(40, 2)  # to the right, a little up
    figure = pose_histogram_figure(None, shift, PIXEL)
    axes, bar = figure.axes
    (mesh,) = axes.collections
    counts = np.ma.filled(mesh.get_array(), 0)
    x, y = mesh.get_coordinates()[..., 0], mesh.get_coordinates()[..., 1]
    row, column = np.unravel_index(counts.argmax(), counts.shape)
    assert counts.sum() == counts[row, column] == 40
    assert x[row, column] <= 5 <= x[row, column + 1]
    assert y[row, column] <= 2 <= y[row + 1, column]
    assert axes.get_ylim()[0] < axes.get_ylim()[1]
    assert (axes.get_xlabel(), bar.get_ylabel()) == (
        "shift x (px), to the right",
        "images per bin",
    )
    assert bar.get_ylim() == (0, 40)
    check_page(figure)


@pytest.mark.parametrize("count", [1, 7, 100_000])
def test_every_image_is_in_both_histograms(count: int) -> None:
    theta, _, shift, _ = poses(count)
    figure = pose_histogram_figure(theta, shift, PIXEL)
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == count
    assert np.ma.filled(figure.axes[1].collections[0].get_array(), 0).sum() == count
    assert f"{count:,} image" in shown_title(figure)
    check_page(figure)


def test_histograms_leave_out_what_is_not_finite() -> None:
    theta, _, shift, _ = poses(10)
    theta[0] = torch.nan
    figure = pose_histogram_figure(theta, shift, PIXEL)
    assert "9 images (1 not finite)" in shown_title(figure)
    with pytest.raises(ValueError, match="theta, shift: expected angles or shifts to draw"):
        pose_histogram_figure(None, None, PIXEL)
