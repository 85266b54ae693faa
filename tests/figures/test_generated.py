"""Traversals, samples, interpolations, rotations, and their animations."""

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from PIL import Image
from tests.figures.pictures import (
    bar_of,
    check_page,
    flat,
    picture_of,
    shown_title,
    texts_of,
    tick_texts,
)
from torch import Tensor

from svae.figures import (
    interpolation_figure,
    rotation_figure,
    samples_figure,
    traversal_figure,
    traversal_z,
    write_gif,
)

SIZE = 8


def ramp(count: int, channels: int = 1) -> Tensor:
    """Images of one value each, from 0 to 1."""
    return flat(torch.linspace(0, 1, count), channels, SIZE)


def tiles(picture: np.ndarray, gap: int = 1) -> np.ndarray:
    """The value in each tile's middle."""
    return picture[SIZE // 2 :: SIZE + gap, SIZE // 2 :: SIZE + gap, 0]


# ---- traversals


def test_one_component_moves_from_quantile_to_quantile() -> None:
    around = torch.tensor([1.0, 2.0, 3.0, 4.0])
    z, values = traversal_z(4, 5, around=around, dims=[2, 0], std=2.0)
    expected = [2 * NormalDist().inv_cdf(p) for p in (0.02, 0.26, 0.5, 0.74, 0.98)]
    assert values.tolist() == pytest.approx(expected, abs=1e-5)
    rows = z.unflatten(0, (2, 5))
    for row, dim in zip(rows, (2, 0), strict=True):
        assert torch.equal(row[:, dim], values)
        others = [i for i in range(4) if i != dim]
        assert (row[:, others] == around[others]).all()


def test_traversal_of_all_components_around_zero() -> None:
    z, values = traversal_z(3, 7)
    assert z.shape == (21, 3)
    assert (z.count_nonzero(dim=1) <= 1).all()
    assert values.tolist() == pytest.approx([-v for v in values.flip(0).tolist()], abs=1e-6)
    assert traversal_z(3, 1)[1].tolist() == [0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("dims", "steps"), [([0], 1), ([0, 11, 3], 5), (range(16), 9)])
def test_rows_are_components_and_columns_values(dims: list, steps: int, channels: int) -> None:
    images = ramp(len(dims) * steps, channels)
    values = torch.linspace(-1.5, 1.5, steps)
    figure = traversal_figure(images, dims, values)
    drawn = tiles(picture_of(figure))
    assert drawn.shape == (len(dims), steps)
    expected = images[:, 0, 0, 0] if len(images) > 1 else images[:, 0, 0, 0] * 0
    assert drawn.ravel() == pytest.approx(expected.numpy(), abs=0.01)
    assert tick_texts(figure, "y") == [f"$z_{{{dim}}}$" for dim in dims]
    assert [float(text.replace("−", "-")) for text in tick_texts(figure)] == pytest.approx(
        values.tolist(), abs=0.006
    )
    assert len(figure.axes) == (2 if channels == 1 else 1)
    check_page(figure)


def test_traversal_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="dims: expected 1 to 16 components, got 17"):
        traversal_figure(ramp(34), range(17), torch.zeros(2))
    with pytest.raises(ValueError, match=r"images: expected one for each of 3 components .*got 8"):
        traversal_figure(ramp(8), range(3), torch.zeros(3))
    with pytest.raises(ValueError, match="C 1 or 3"):
        traversal_figure(ramp(4, 2), [0], torch.zeros(4))
    for dims in ([3], [-1], []):
        with pytest.raises(ValueError, match="dims: expected numbers from 0 to 2"):
            traversal_z(3, 5, dims=dims)
    with pytest.raises(ValueError, match=r"around: expected shape \(3,\), got \(2,\)"):
        traversal_z(3, 5, around=torch.zeros(2))


# ---- samples


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 2), (9, 3), (10, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_fill_a_square(count: int, columns: int, channels: int) -> None:
    images = ramp(count, channels)
    figure = samples_figure(images)
    drawn = tiles(picture_of(figure))
    assert drawn.shape == (-(-count // columns), columns)
    if count > 1:
        assert drawn.ravel()[:count] == pytest.approx(images[:, 0, 0, 0].numpy(), abs=0.01)
    assert (drawn.ravel()[count:] == 1).all()  # white, as the page
    assert "prior" in shown_title(figure)
    check_page(figure)


def test_real_images_stand_on_the_left_in_the_same_scale() -> None:
    samples, real = ramp(16), ramp(6) + 1
    figure = samples_figure(samples, examples=real)
    picture = picture_of(figure)
    step = SIZE + 1
    # As many rows as the samples: two columns of real images, the last two places white.
    left, right = picture[:, : 2 * step - 1], picture[:, -(4 * step - 1) :]
    expected = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0]
    assert tiles(left).ravel() == pytest.approx(expected, abs=0.01)
    assert tiles(right).ravel() == pytest.approx(np.linspace(0, 0.5, 16), abs=0.01)
    assert bar_of(figure)[:2] == pytest.approx((0, 2))
    assert {"data", "samples"} <= set(texts_of(figure))
    check_page(figure)
    check_page(samples_figure(torch.rand(400, 1, SIZE, SIZE), examples=real[:1]))


def test_real_images_have_to_be_like_the_samples() -> None:
    with pytest.raises(ValueError, match=r"examples: expected shape \(N, \*\(1, 8, 8\)\)"):
        samples_figure(ramp(4), examples=ramp(4, 3))


# ---- interpolations


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("pairs", "steps"), [(1, 1), (3, 5), (12, 9)])
def test_frames_stand_between_the_images(pairs: int, steps: int, channels: int) -> None:
    values = torch.linspace(0, 1, pairs * (steps + 2)).reshape(pairs, -1)
    images = flat(values.flatten(), channels, SIZE).unflatten(0, (pairs, steps + 2))
    figure = interpolation_figure(images[:, 0], images[:, -1], images[:, 1:-1])
    picture = picture_of(figure)
    axes = figure.axes[0]
    columns = [SIZE // 2, *map(int, axes.get_xticks()), picture.shape[1] - SIZE // 2]
    drawn = picture[SIZE // 2 :: SIZE + 1][:, columns, 0]
    assert drawn == pytest.approx(values.numpy(), abs=0.01)
    fractions = [float(text) for text in tick_texts(figure)]
    assert fractions == pytest.approx(np.linspace(0, 1, steps), abs=0.006)
    assert {"start", "generated", "end"} <= set(texts_of(figure))
    check_page(figure)


def test_interpolation_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"frames: expected shape \(2, S, 1, 8, 8\) like start"):
        interpolation_figure(ramp(2), ramp(2), ramp(2))
    with pytest.raises(ValueError, match=r"end: expected shape \(2, 1, 8, 8\) like start"):
        interpolation_figure(ramp(2), ramp(3), torch.zeros(2, 3, 1, SIZE, SIZE))


# ---- rotations


@pytest.mark.parametrize("channels", [1, 3])
def test_rotations_are_labelled_with_their_angle(channels: int) -> None:
    images = ramp(12, channels).unflatten(0, (3, 4))
    # Radians turned to degrees are not quite whole.
    figure = rotation_figure(images, torch.rad2deg(torch.arange(-1, 3) * (2 * torch.pi / 4)))
    assert tiles(picture_of(figure)).ravel() == pytest.approx(np.linspace(0, 1, 12), abs=0.01)
    assert tick_texts(figure) == ["−90°", "0°", "90°", "180°"]
    assert "counter-clockwise" in figure.axes[0].get_xlabel()
    check_page(figure)
    assert tick_texts(rotation_figure(images, [0, 22.5, 45, 67.5]))[1] == "22.5°"
    with pytest.raises(ValueError, match=r"expected shapes \(R, A, C, H, W\) and \(A,\)"):
        rotation_figure(images, torch.zeros(3))


# ---- animations


def frames_of(path: Path) -> tuple[list[np.ndarray], dict]:
    """All frames as RGB, and what the file says of them."""
    with Image.open(path) as file:
        frames = []
        for i in range(file.n_frames):
            file.seek(i)
            frames.append(np.asarray(file.convert("RGB")))
        return frames, file.info


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("there_and_back", [True, False])
def test_a_gif_runs_there_and_back(tmp_path: Path, channels: int, there_and_back: bool) -> None:
    values = torch.tensor([0.0, 0.2, 0.6, 1.0])
    path = tmp_path / "new" / "a.gif"
    write_gif(path, flat(values, channels, SIZE), there_and_back=there_and_back)
    frames, info = frames_of(path)
    assert frames[0].shape == (160, 160, 3)
    order = [0, 1, 2, 3, 2, 1] if there_and_back else [0, 1, 2, 3]
    assert len(frames) == len(order)
    for frame, i in zip(frames, order, strict=True):
        assert frame.min() == frame.max()
        assert frame[0, 0, 0] == pytest.approx(255 * values[i].item(), abs=2)
    assert (info["duration"], info["loop"]) == (80, 0)
    assert [file.name for file in path.parent.iterdir()] == ["a.gif"]  # no part is left


def test_pairs_stand_side_by_side_in_one_scale(tmp_path: Path) -> None:
    films = torch.stack((ramp(3) * 4 - 2, ramp(3)))  # (P, S, C, H, W)
    write_gif(tmp_path / "a.gif", films, scale=3, seconds_per_frame=0.5)
    frames, info = frames_of(tmp_path / "a.gif")
    assert info["duration"] == 500
    gap = 1
    assert frames[0].shape == (3 * SIZE, 3 * (2 * SIZE + gap), 3)
    seen = [(frame[0, 0, 0], frame[0, -1, 0]) for frame in frames[:3]]
    expected = [(0, 0.5), (0.5, 0.625), (1, 0.75)]
    assert np.array(seen) / 255 == pytest.approx(np.array(expected), abs=0.01)
    assert (frames[0][:, 3 * SIZE : 3 * (SIZE + gap)] == 255).all()


def test_enlarging_keeps_pixels_and_the_colours(tmp_path: Path) -> None:
    image = torch.zeros(1, 3, 30, 100)
    image[0, :, 0, 0] = torch.tensor([1.0, 0.5, 0.0])
    write_gif(tmp_path / "a.gif", image)
    (frame,), _ = frames_of(tmp_path / "a.gif")
    assert frame.shape == (60, 200, 3)
    assert frame[:2, :2].reshape(-1, 3) == pytest.approx(np.array([[255, 128, 0]] * 4), abs=2)
    assert not frame[2:].any()


def test_animation_arguments_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    with pytest.raises(ValueError, match=r"frames: expected shape \(S, C, H, W\) or"):
        write_gif(path, torch.zeros(8, 8))
    with pytest.raises(ValueError, match="C 1 or 3"):
        write_gif(path, torch.zeros(3, 2, 8, 8))
    with pytest.raises(ValueError, match="scale: expected a whole number of at least 1"):
        write_gif(path, ramp(3), scale=0)
    with pytest.raises(ValueError, match="seconds_per_frame: expected a number above 0"):
        write_gif(path, ramp(3), seconds_per_frame=0)
    assert not path.exists()
