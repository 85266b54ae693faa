"""Figures: which image lies where, one scale for what is compared, and labels inside the page."""

from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tests.figures.pictures import (
    bar_of,
    check_page,
    flat,
    picture_of,
    shown_title,
    texts_of,
    tick_texts,
)

from svae.figures import manifold_figure, manifold_z, reconstruction_figure

NORMAL = NormalDist()


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
    # Within [0, 1], so that RGB is not clipped, and in so narrow a range that grey is stretched.
    shown = 0.2 + 0.6 * torch.special.ndtr(z)
    for axis in (0, 1):
        figure = manifold_figure(flat(shown[:, axis], channels), n)
        picture = picture_of(figure)
        axes = figure.axes[0]
        assert picture.shape == (4 * n, 4 * n, 3)
        assert [axes.get_xlabel()[:5], axes.get_ylabel()[:5]] == ["$z_0$", "$z_1$"]

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
        expected = [float((0.2 + 0.6 * NORMAL.cdf(z) - low) / (high - low)) for z in told]
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


def test_a_wider_prior_scales_the_values_and_their_ticks() -> None:
    assert torch.allclose(manifold_z(3, 5, std=2.5), 2.5 * manifold_z(3, 5))
    images = torch.rand(25, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    one, wide = (manifold_figure(images, 5, std=std) for std in (1.0, 2.5))
    for axis in "xy":
        told = [[float(t.replace("−", "-")) for t in tick_texts(f, axis)] for f in (one, wide)]
        assert told[1] == pytest.approx([2.5 * value for value in told[0]], abs=0.02)
    with pytest.raises(ValueError, match="std: expected a number above 0"):
        manifold_z(2, 5, std=0.0)


def test_manifold_title() -> None:
    images = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert "pose removed" in shown_title(manifold_figure(images, 3))
    assert shown_title(manifold_figure(images, 3, title="Apples")) == "Apples"
    untitled = manifold_figure(images, 3, title="")
    assert not untitled.texts
    assert untitled.get_size_inches()[1] < manifold_figure(images, 3).get_size_inches()[1]


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


def test_the_bar_tells_the_scale() -> None:
    images = flat(torch.tensor([-2.0, 6.0]))
    low, high, label = bar_of(reconstruction_figure(images, images, images))
    assert (low, high, label) == (-2, 6, "pixel value")
    colour = images.expand(-1, 3, -1, -1)
    assert len(reconstruction_figure(colour, colour, colour).axes) == 1  # no number, no bar


@pytest.mark.parametrize(
    ("low", "high", "drawn"),
    [(0.02, 0.97, (0, 1)), (0.0, 0.3, (0, 0.3)), (0.5, 0.5, (0, 1)), (7.0, 7.0, (6.5, 7.5))],
)
def test_probabilities_are_drawn_from_0_to_1(low: float, high: float, drawn: tuple) -> None:
    images = flat(torch.tensor([low, high]))
    assert bar_of(reconstruction_figure(images, images, images))[:2] == pytest.approx(drawn)


def test_the_bar_has_an_arrow_where_pixels_are_clipped() -> None:
    images = torch.rand(4, 1, 40, 40, generator=torch.Generator().manual_seed(0)) / 2
    images[0, 0, 0, 0] = 1000.0  # a hot pixel
    figure = reconstruction_figure(images, images, images)
    assert bar_of(figure)[1] < 1
    assert figure.axes[1].patches  # the arrow's triangle


def test_what_is_not_finite_is_orange_and_the_title_says_so() -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    broken = images.clone()
    broken[1], broken[2, 0, 0, 0] = torch.nan, torch.inf
    figure = reconstruction_figure(images, broken, images)
    row = picture_of(figure)[9:17]
    orange = (row == torch.tensor([0.84, 0.37, 0.0]).numpy()).all(axis=-1)
    assert orange[:, 9:17].all()
    assert orange.sum() == 64 + 1
    assert shown_title(figure).endswith("(orange: not finite)")
    assert bar_of(figure)[1] <= 1
    check_page(reconstruction_figure(images * torch.nan, images * torch.nan, images))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_that_are_not_scored_have_a_tone_in_reconstructions(channels: int) -> None:
    images = torch.rand(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    scored = torch.ones(8, 8, dtype=torch.bool)
    scored[:2] = False
    plain = picture_of(reconstruction_figure(images, images, images))
    figure = reconstruction_figure(images, images, images, scored=scored)
    changed = (picture_of(figure) != plain).any(axis=-1)
    expected = np.zeros_like(changed)
    expected[9:11, :8] = expected[9:11, 9:] = True
    assert (changed == expected).all()
    assert "pale blue: not scored" in shown_title(figure)
    everywhere = reconstruction_figure(images, images, images, scored=torch.ones(8, 8))
    assert (picture_of(everywhere) == plain).all()
    assert "pale" not in shown_title(everywhere)


def test_names_stand_above_and_are_short() -> None:
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    names = [f"/data/2026/plate_of_monday_{i:06d}.tiff" for i in range(12)]
    figure = reconstruction_figure(images, images, images, torch.zeros(12), names=names)
    texts = texts_of(figure)
    for i in range(12):
        (text,) = (text for text in texts if text.endswith(f"{i:06d}"))
        assert text.startswith("…")
    boxes = [t.get_window_extent() for t in figure.axes[0].texts if t.get_text().startswith("…")]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    check_page(figure)
    assert "a" in texts_of(reconstruction_figure(*[images[:1]] * 3, names=["a.png"]))

    names = [f"{i:06d}@a_stack_with_a_long_name.mrcs" for i in range(990, 1002)]
    texts = texts_of(reconstruction_figure(images, images, images, torch.zeros(12), names=names))
    told = [text.partition("@")[0] for text in texts if "@" in text]
    assert told == [str(i) for i in range(990, 1002)]


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
    with pytest.raises(ValueError, match=r"scored: expected shape \(8, 8\)"):
        reconstruction_figure(images, images, images, scored=torch.ones(64))
    with pytest.raises(ValueError, match="names: expected 3 like images, got 2"):
        reconstruction_figure(images, images, images, names=["a", "b"])


def test_pyplot_knows_nothing_of_the_figures() -> None:
    before = list(Gcf.figs)
    images = torch.zeros(4, 1, 8, 8)
    for figure in (reconstruction_figure(images, images, images), manifold_figure(images, 2)):
        assert type(figure.canvas) is FigureCanvasAgg
    assert list(Gcf.figs) == before
