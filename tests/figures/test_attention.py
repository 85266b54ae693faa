"""Attention over a lattice of poses, beside the images."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tests.figures.pictures import check_page, shown_title
from tests.figures.test_found_pose import painted
from torch import Tensor

from svae.figures import attention_figure
from svae.figures.attention import ATTENTION
from svae.figures.found_pose import INFERRED, TRUE
from svae.lattice import Lattice

SIZE, PIXEL = 21, 0.1
IMAGES = torch.rand(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def weights_of(lattice: Lattice, count: int = 3) -> Tensor:
    random = torch.Generator().manual_seed(1)
    weights = torch.rand(count, len(lattice.shifts), len(lattice.angles), generator=random) ** 8
    return weights / weights.sum((1, 2), keepdim=True)


def pose(count: int = 3) -> tuple[Tensor, Tensor]:
    return torch.linspace(-2, 2, count), torch.linspace(-0.5, 0.5, 2 * count).reshape(count, 2)


def drawn(lattice: Lattice, **options: object) -> Figure:
    return attention_figure(
        IMAGES, weights_of(lattice), lattice, pose(), pixel_size=PIXEL, **options
    )


def test_attention_is_where_the_probability_is() -> None:
    """A single position and angle."""
    lattice = Lattice.centred(8, (7, 9), 2 * PIXEL)
    weights = torch.zeros(1, 63, 8)
    weights[0, 9 + 7, 3] = 1  # the second row from the top, the eighth of nine columns
    far = torch.tensor([0.0]), torch.tensor([[-0.6, -0.6]])
    figure = attention_figure(IMAGES[:1], weights, lattice, far, pixel_size=PIXEL)
    image, positions, angles = figure.axes
    where = painted(positions, ATTENTION)
    cell = where[np.abs(where - (6, 4)).max(-1) < 2]
    assert (cell.min(0) + cell.max(0)) / 2 == pytest.approx([6, 4], abs=0.2)
    assert cell.max(0) - cell.min(0) == pytest.approx([2, 2], abs=0.3)
    assert image.get_xlim() == positions.get_xlim()
    assert image.get_ylim() == positions.get_ylim()
    assert image.get_ylim()[0] < image.get_ylim()[1]  # y up

    bars = {
        round(math.degrees(b.get_x() + b.get_width() / 2)): b.get_height() for b in angles.patches
    }
    assert {angle % 360 for angle, height in bars.items() if height} == {135}
    assert (angles.get_theta_offset(), angles.get_theta_direction()) == (0, 1)
    assert [axes.get_title() for axes in (positions, angles)] == [
        "position: peak 100 %",
        "angle: peak 100 %",
    ]


def test_each_panel_is_a_marginal() -> None:
    lattice = Lattice.centred(4, (5, 6), PIXEL)
    weights = weights_of(lattice)
    figure = drawn(lattice)
    for number in range(3):
        _, positions, angles = figure.axes[3 * number : 3 * number + 3]
        expected = weights[number].sum(1).reshape(5, 6).numpy()
        layer = np.asarray(positions.images[1].get_array())[..., 3]
        assert layer == pytest.approx(expected / expected.max(), rel=1e-5)
        # Row 0 is the top.
        assert positions.images[1].origin == "upper"
        assert positions.images[1].get_extent() == pytest.approx([-3, 3, -2.5, 2.5])
        expected = weights[number].sum(0).numpy()
        heights = [bar.get_height() for bar in angles.patches]
        assert heights == pytest.approx(expected / expected.max(), rel=1e-5)
        centres = [bar.get_x() + bar.get_width() / 2 for bar in angles.patches]
        assert centres == pytest.approx(lattice.angles.tolist())


def test_the_inferred_and_the_true_angle_are_marked() -> None:
    lattice = Lattice.centred(8, (5, 5), PIXEL)
    true = pose()[0] + 1, None
    figure = drawn(lattice, true_pose=true)
    for number, angles in enumerate(figure.axes[2::3]):
        marks = {line.get_color(): line.get_xdata()[0] for line in angles.lines}
        expected = {INFERRED: pose()[0][number].item(), TRUE: true[0][number].item()}
        assert marks == pytest.approx(expected)
    for number, positions in enumerate(figure.axes[1::3]):
        (ring,) = positions.lines
        assert ring.get_xydata()[0] == pytest.approx(pose()[1][number].numpy() / PIXEL)
    assert "no model can know" in shown_title(figure)
    assert "no model can know" not in shown_title(drawn(lattice))


@pytest.mark.parametrize("shape", [(5, 5), (31, 31), (3, 40), (1, 7), (7, 1)])
def test_the_lattice_may_be_smaller_or_larger_than_the_image(shape: tuple[int, int]) -> None:
    figure = drawn(Lattice.centred(8, shape, PIXEL))
    for axes in figure.axes[0::3] + figure.axes[1::3]:
        width, height = (np.diff(limits).item() for limits in (axes.get_xlim(), axes.get_ylim()))
        assert width == pytest.approx(1.02 * max(SIZE, shape[1]))
        assert height == pytest.approx(1.02 * max(SIZE, shape[0]))
        # A pixel is square on the page.
        box = axes.get_window_extent()
        assert box.width / width == pytest.approx(box.height / height)
    check_page(figure)


@pytest.mark.parametrize(
    ("rotations", "shape", "kinds"),
    [(1, (5, 5), ["rectilinear"] * 2), (8, (1, 1), ["rectilinear", "polar"])],
)
def test_a_single_angle_or_position_has_no_panel(
    rotations: int, shape: tuple[int, int], kinds: list[str]
) -> None:
    figure = drawn(Lattice.centred(rotations, shape, PIXEL))
    assert [axes.name for axes in figure.axes] == 3 * kinds
    check_page(figure)


@pytest.mark.parametrize("count", [1, 2, 20])
def test_at_most_eight_are_drawn(count: int) -> None:
    lattice = Lattice.centred(16, (4, 4), PIXEL)
    images = torch.rand(count, 3, 12, 9)
    weights = weights_of(lattice, count)
    figure = attention_figure(images, weights, lattice, pose(count), pose(count), pixel_size=PIXEL)
    assert len(figure.axes) == 3 * min(count, 8)
    check_page(figure)


def test_arguments_are_checked() -> None:
    lattice = Lattice.centred(4, (5, 5), PIXEL)
    weights = weights_of(lattice)
    with pytest.raises(
        ValueError, match=r"weights: expected shape \(3, 25, 4\), got \(3, 4, 25\)"
    ):
        attention_figure(IMAGES, weights.mT, lattice, pose(), pixel_size=PIXEL)
    with pytest.raises(ValueError, match="lattice: expected more than one position or angle"):
        drawn(Lattice.centred(1, (1, 1), PIXEL))
    with pytest.raises(ValueError, match=r"true_pose: expected angles with shape \(3,\)"):
        drawn(lattice, true_pose=pose(2))
