"""The pose drawn onto images."""

import math

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from tests.figures.pictures import check_page, shown_title
from torch import Tensor

from svae.figures import found_pose_figure
from svae.figures.found_pose import INFERRED, TRUE

SIZE, GAP, PIXEL = 21, 1, 0.1
BLANK = torch.zeros(2, 1, SIZE, SIZE)


def painted(axes: Axes, colour: str) -> np.ndarray:
    """Where pixels of a colour are, in the axes' coordinates, with shape (N, 2)."""
    figure = axes.get_figure()
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255
    rows, columns = np.nonzero(np.abs(picture - to_rgb(colour)).max(-1) < 0.02)
    places = np.stack((columns + 0.5, len(picture) - rows - 0.5), axis=-1)
    box = axes.get_window_extent()
    inside = (places > (box.x0, box.y0)).all(-1) & (places < (box.x1, box.y1)).all(-1)
    return axes.transData.inverted().transform(places[inside])


def in_grid_units(*shift_px: tuple[float, float]) -> Tensor:
    return torch.tensor(shift_px) * PIXEL


def test_arrow_and_cross_are_where_the_object_is() -> None:
    theta = torch.tensor([math.pi / 2, math.pi])
    shift = in_grid_units((3, 2), (1, -5))  # right and up; a little right and down
    axes, *_ = found_pose_figure(BLANK, (theta, shift), pixel_size=PIXEL).axes
    where = painted(axes, INFERRED)
    first = where[where[:, 0] < SIZE]
    second = where[where[:, 0] > SIZE] - (SIZE + GAP, 0)
    reach = 0.3 * SIZE
    # Rows run downwards: the arrow up ends at a smaller y.
    assert first[:, 1].min() == pytest.approx(8 - reach, abs=0.5)
    assert np.median(first[:, 0]) == pytest.approx(13, abs=0.3)
    assert second[:, 0].min() == pytest.approx(11 - reach, abs=0.5)
    assert np.median(second[:, 1]) == pytest.approx(15, abs=0.3)
    # The cross reaches to all sides of the centre.
    for found, centre in ((first, (13, 8)), (second, (11, 15))):
        assert (found.max(0) > np.add(centre, 0.4)).all()
        assert (found.min(0) < np.subtract(centre, 0.4)).all()
    assert not len(painted(axes, TRUE))


def test_the_truth_has_a_colour_and_a_place_of_its_own() -> None:
    found, true = (torch.zeros(2), in_grid_units((0, 6), (0, 6))), torch.full((2,), math.pi)
    figure = found_pose_figure(BLANK, found, (true, -found[1]), pixel_size=PIXEL)
    where = painted(figure.axes[0], TRUE)
    first = where[where[:, 0] < SIZE]
    assert np.median(first[:, 1]) == pytest.approx(16, abs=0.3)
    assert first[:, 0].min() == pytest.approx(10 - 0.3 * SIZE, abs=0.5)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["inferred", "true"]
    assert "turned by the one that no model can know" in shown_title(figure)


def test_only_what_there_is_is_drawn() -> None:
    theta, shift = torch.zeros(2), in_grid_units((4, 0), (4, 0))
    only_shift = found_pose_figure(BLANK, (None, shift), (None, shift), pixel_size=PIXEL)
    where = painted(only_shift.axes[0], INFERRED)
    first = where[where[:, 0] < SIZE]
    assert np.abs(first - (14, 10)).max() < 2  # no arrow
    assert "no model can know" not in shown_title(only_shift)

    only_theta = found_pose_figure(BLANK, (theta, None), pixel_size=PIXEL)
    where = painted(only_theta.axes[0], INFERRED)
    first = where[where[:, 0] < SIZE]
    assert first[:, 0].min() == pytest.approx(10, abs=0.5)  # from the middle, no cross
    assert [text.get_text() for text in only_theta.legends[0].get_texts()] == ["inferred"]


def test_what_lies_outside_of_its_image_is_cut_off() -> None:
    shift = in_grid_units((9, 0), (0, 0))
    axes, *_ = found_pose_figure(BLANK, (torch.zeros(2), shift), pixel_size=PIXEL).axes
    x = painted(axes, INFERRED)[:, 0]
    assert x.max() > SIZE
    # The first arrow would end at 25, in the second image, whose own begins at 31.
    assert not ((x > SIZE - 0.2) & (x < SIZE + GAP + 9)).any()


@pytest.mark.parametrize("count", [1, 5, 12, 30])
@pytest.mark.parametrize("shape", [(1, 9, 15), (3, 12, 7)])
def test_it_fits_on_its_page(count: int, shape: tuple[int, int, int]) -> None:
    pose = torch.randn(count), torch.randn(count, 2)
    figure = found_pose_figure(torch.rand(count, *shape), pose, pose, pixel_size=PIXEL)
    check_page(figure)
    (picture,) = figure.axes[0].images
    rows, columns = -(-min(count, 12) // 6), min(count, 6)
    expected = (rows * (shape[1] + 1) - 1, columns * (shape[2] + 1) - 1, 3)
    assert picture.get_array().shape == expected


def test_arguments_are_checked() -> None:
    theta, shift = torch.zeros(2), torch.zeros(2, 2)
    with pytest.raises(ValueError, match="pose: expected angles or shifts to draw, got none"):
        found_pose_figure(BLANK, (None, None), (theta, shift), pixel_size=PIXEL)
    with pytest.raises(ValueError, match=r"pose: expected angles with shape \(2,\), got \(1,\)"):
        found_pose_figure(BLANK, (theta[:1], shift), pixel_size=PIXEL)
    with pytest.raises(ValueError, match=r"true_pose: expected shifts with shape \(2, 2\), got"):
        found_pose_figure(BLANK, (theta, shift), (theta, theta), pixel_size=PIXEL)
    with pytest.raises(ValueError, match="pixel_size: expected a number above 0"):
        found_pose_figure(BLANK, (theta, shift), pixel_size=0.0)
