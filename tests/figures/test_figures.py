"""Figures: which image lies where, one scale for what is compared, and labels inside the page."""

import io
from statistics import NormalDist

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from svae.figures import manifold_figure, manifold_z, reconstruction_figure

NORMAL = NormalDist()


def picture_of(figure: Figure) -> np.ndarray:
    """The drawn mosaic, (H, W, 3), row 0 at the top."""
    (axes,) = figure.axes
    (image,) = axes.images
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # rows run downwards
    return np.asarray(image.get_array())


def flat(values: Tensor, channels: int = 1, size: int = 4) -> Tensor:
    """Images of one value each, (B, C, size, size)."""
    return values.reshape(-1, 1, 1, 1).expand(-1, channels, size, size)


def check_page(figure: Figure) -> None:
    """Everything lies within the page, and the file is a picture of its size."""
    renderer = figure.canvas.get_renderer()
    box, page = figure.get_tightbbox(renderer), figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= page[0]
    assert box.y1 <= page[1]
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    file.seek(0)
    pixels = matplotlib.image.imread(file)
    assert pixels.shape[:2] == pytest.approx(tuple(100 * page[::-1]), abs=1)


# ---- the manifold


@pytest.mark.parametrize("n", [1, 2, 9, 20])
def test_z_is_equally_spaced_in_probability(n: int) -> None:
    z = manifold_z(1, n)
    assert z.shape == (n, 1)
    expected = [(i + 0.5) / n for i in range(n)]
    assert [NORMAL.cdf(value) for value in z[:, 0].tolist()] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("z_dim", [2, 5])
def test_z_varies_in_two_dimensions(z_dim: int) -> None:
    line = manifold_z(1, 4)[:, 0]
    grid = manifold_z(z_dim, 4).unflatten(0, (4, 4))
    assert grid.shape == (4, 4, z_dim)
    for i in range(4):
        assert torch.equal(grid[i, :, 0], line)
        assert torch.equal(grid[:, i, 1], line.flip(0))  # from the top down
    assert not grid[..., 2:].any()


@pytest.mark.parametrize("n", [3, 10, 11, 20])
@pytest.mark.parametrize("channels", [1, 3])
def test_manifold_axes_grow_right_and_up_as_their_ticks_say(n: int, channels: int) -> None:
    z = manifold_z(2, n)
    shown = torch.special.ndtr(z)  # within [0, 1], so that RGB is not clipped
    for axis in (0, 1):
        figure = manifold_figure(flat(shown[:, axis], channels), n)
        picture = picture_of(figure)
        axes = figure.axes[0]
        assert picture.shape == (4 * n, 4 * n, 3)
        assert [axes.get_xlabel()[:5], axes.get_ylabel()[:5]] == ["$z_1$", "$z_2$"]

        ticks = (axes.get_xticks(), axes.get_yticks())[axis]
        texts = [
            label.get_text() for label in (axes.get_xticklabels, axes.get_yticklabels)[axis]()
        ]
        told = [float(text.replace("−", "-")) for text in texts]
        assert told == pytest.approx([-z for z in reversed(told)])  # symmetric
        assert max(told) == pytest.approx(z.max().item(), abs=0.006)

        pixels = [int(tick) for tick in ticks]
        drawn = picture[0, pixels, 0] if axis == 0 else picture[pixels, 0, 0]
        low, high = (shown.min(), shown.max()) if channels == 1 else (0, 1)
        expected = [float((NORMAL.cdf(value) - low) / (high - low)) for value in told]
        assert drawn.tolist() == pytest.approx(expected, abs=0.01)
        check_page(figure)


@pytest.mark.parametrize("n", [2, 7, 24])
def test_a_line_manifold_is_one_row(n: int) -> None:
    figure = manifold_figure(flat(manifold_z(1, n)[:, 0]), n)
    picture = picture_of(figure)
    assert picture.shape == (4, 4 * n, 3)
    assert (np.diff(picture[0, ::4, 0]) > 0).all()
    assert not figure.axes[0].get_ylabel()
    check_page(figure)


def test_manifold_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"n_columns=3 of them or n_columns\*\*2=9, got 8"):
        manifold_figure(torch.zeros(8, 1, 4, 4), 3)
    with pytest.raises(ValueError, match=r"images: expected shape \(B, C, H, W\)"):
        manifold_figure(torch.zeros(9, 2, 4, 4), 3)
    with pytest.raises(ValueError, match="z_dim: expected a whole number of at least 1"):
        manifold_z(0, 3)


# ---- reconstructions


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 5, 12, 20])
def test_rows_and_columns_are_what_they_are_called(count: int, channels: int) -> None:
    size = 20
    ramp = torch.linspace(0.2, 0.8, 3 * min(count, 12)).reshape(3, -1)
    if count > 12:
        ramp = torch.cat((ramp, torch.full((3, count - 12), 0.5)), dim=1)
    rows = [flat(row, channels, size) for row in ramp]
    figure = reconstruction_figure(
        *rows, theta_deg=torch.full((count,), -170.4), shift_px=torch.full((count, 2), -12.34)
    )
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["input", "reconstruction", "pose removed"]

    picture, step = picture_of(figure), size + 1
    assert picture.shape == (3 * step - 1, min(count, 12) * step - 1, 3)
    low, high = (0, 1) if channels == 3 else (ramp[:2].min(), ramp[:2].max())
    expected = ((ramp[:, :12] - low) / max(high - low, 1e-12)).clamp(0, 1)
    for row, tick in enumerate(axes.get_yticks()):
        drawn = picture[int(tick), size // 2 :: step, 0]
        assert drawn == pytest.approx(expected[row].numpy(), abs=0.01)
    assert (picture[size::step] == 1).all()  # white lines between the rows
    check_page(figure)


def test_the_scale_is_that_of_inputs_and_reconstructions() -> None:
    images, reconstructions = flat(torch.tensor([2.0, 6.0])), flat(torch.tensor([3.0, 10.0]))
    picture = picture_of(reconstruction_figure(images, reconstructions, images + 100))
    rows = picture[2::5, 2::5, 0]
    assert rows.ravel() == pytest.approx([0, 0.5, 0.125, 1, 1, 1], abs=0.01)


def test_arrays_and_tensors_give_the_same_picture() -> None:
    images = torch.rand(3, 1, 6, 9, generator=torch.Generator().manual_seed(0))
    expected = picture_of(reconstruction_figure(images, images / 2, images))
    arrays = [images.numpy(), images.numpy() / 2, images.numpy()]
    assert np.array_equal(picture_of(reconstruction_figure(*arrays)), expected)
    learned = images.clone().requires_grad_()
    assert np.array_equal(
        picture_of(reconstruction_figure(learned, learned / 2, learned)), expected
    )


def test_constant_images_can_be_drawn() -> None:
    blank = torch.zeros(2, 1, 5, 5)
    assert np.isfinite(picture_of(reconstruction_figure(blank, blank, blank))).all()


def test_poses_stand_above_their_columns() -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    theta, shift = [-0.2, 90.4, -179.6], [[0.04, -0.04], [1.25, -3.0], [10.0, 0.0]]
    figure = reconstruction_figure(
        images, images, images, theta_deg=np.array(theta), shift_px=torch.tensor(shift)
    )
    texts = {text.get_text(): text.xy[0] for text in figure.axes[0].texts}
    expected = ["+0°", "+90°", "−180°", "+0.0, +0.0", "+1.2, −3.0", "+10.0, +0.0"]
    assert set(texts) == {"θ", "shift x, y (px)", *expected}
    centres = [3.5, 12.5, 21.5]
    assert [texts[text] for text in expected] == pytest.approx(centres * 2)


def test_without_poses_there_is_no_header() -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    figure = reconstruction_figure(images, images, images)
    assert not figure.axes[0].texts
    taller = reconstruction_figure(images, images, images, theta_deg=torch.zeros(3))
    assert taller.get_size_inches()[1] > figure.get_size_inches()[1]


def test_reconstruction_arguments_are_checked() -> None:
    images = torch.zeros(3, 1, 8, 8)
    with pytest.raises(ValueError, match=r"pose_removed: expected shape \(3, 1, 8, 8\)"):
        reconstruction_figure(images, images, images[:2])
    with pytest.raises(ValueError, match=r"reconstructions: expected shape \(B, C, H, W\)"):
        reconstruction_figure(images, images[0], images)
    with pytest.raises(ValueError, match=r"theta_deg: expected shape \(3,\)"):
        reconstruction_figure(images, images, images, theta_deg=torch.zeros(2))
    with pytest.raises(ValueError, match=r"shift_px: expected shape \(3, 2\)"):
        reconstruction_figure(images, images, images, shift_px=torch.zeros(3))


def test_pyplot_knows_nothing_of_the_figures() -> None:
    before = list(Gcf.figs)
    images = torch.zeros(4, 1, 8, 8)
    for figure in (reconstruction_figure(images, images, images), manifold_figure(images, 2)):
        assert type(figure.canvas) is FigureCanvasAgg
    assert list(Gcf.figs) == before
