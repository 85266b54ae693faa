import logging
import math

import numpy as np
import pytest
import torch

from svae.datasets.particle_pixels import (
    Preparation,
    contrast,
    cropped_pixel_size,
    fourier_crop,
    normalise,
    radius,
    soft_mask,
)
from svae.geometry import centre_of_mass, pixel_size


def waves(side: int, size: int, seed: int = 0) -> torch.Tensor:
    """Three images of `size` pixels, of the same waves around pixel N//2 whatever the size.

    Their frequencies are all below the Nyquist frequency of `side` pixels.
    """
    random = np.random.default_rng(seed)
    highest = (side - 1) // 2
    place = (np.arange(size) - size // 2) / size
    y, x = np.meshgrid(place, place, indexing="ij")
    images = np.full((3, size, size), 5.0)
    for image in images:
        for ky, kx in ((highest, -highest), *random.integers(-highest, highest + 1, (6, 2))):
            image += np.cos(2 * np.pi * (ky * y + kx * x) + random.uniform(0, 2 * np.pi))
    return torch.from_numpy(images).float()


def bumps(count: int, size: int, dark: bool = False, noise: float = 1.0) -> torch.Tensor:
    """Images of a round bump in noise, above a background of 10."""
    random = np.random.default_rng(1)
    object_ = np.exp(-((radius(size, size).numpy() / (size / 6)) ** 2))
    images = (
        10 + noise * random.standard_normal((count, size, size)) + (-2 if dark else 2) * object_
    )
    return torch.from_numpy(images).float()


@pytest.mark.parametrize(
    ("before", "after"), [(32, 16), (32, 20), (32, 17), (33, 16), (33, 17), (31, 30), (32, 31)]
)
def test_what_is_below_the_new_nyquist_frequency_survives_exactly(before, after):
    # Mean, amplitude, phases and the centre pixel: the same function sampled at other places.
    found = fourier_crop(waves(after, before), after)
    assert torch.allclose(found, waves(after, after), atol=1e-5)


@pytest.mark.parametrize("after", [16, 17])
def test_nothing_is_left_at_or_above_the_new_nyquist_frequency(after):
    place = (np.arange(32) - 16) / 32
    for wave in range((after + 1) // 2, 17):
        rows = torch.from_numpy(np.cos(2 * np.pi * wave * place + 0.3)).float()
        image = rows.expand(1, 32, 32).contiguous()
        assert fourier_crop(image, after).abs().max() < 1e-6
        assert fourier_crop(image.mT.contiguous(), after).abs().max() < 1e-6


def test_cropping_and_turning_by_180_degrees_commute():
    image = torch.randn(2, 33, 33, generator=torch.Generator().manual_seed(0))
    turned = fourier_crop(image.flip(-1, -2), 21)
    assert torch.allclose(turned, fourier_crop(image, 21).flip(-1, -2), atol=1e-6)
    # Of an even size, about pixel N//2, without the row and column that have no partner.
    image = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0))
    turned = fourier_crop(image.flip(-1, -2).roll((1, 1), (-1, -2)), 20)
    expected = fourier_crop(image, 20).flip(-1, -2).roll((1, 1), (-1, -2))
    assert torch.allclose(turned, expected, atol=1e-6)


def test_a_size_that_is_there_already_changes_nothing():
    image = torch.randn(2, 8, 8)
    assert fourier_crop(image, 8) is image


@pytest.mark.parametrize(
    ("before", "after", "shift"),
    [(64, 32, 1 / 31), (65, 32, 1 / 31), (64, 33, 0.0), (65, 33, 0.0)],
)
def test_where_the_middle_of_the_grid_is_after_cropping(before, after, shift):
    """An object at pixel N//2, half a pixel beyond the grid's middle of an even size."""
    object_ = torch.exp(-((radius(before, before) / 8) ** 2)).float()[None]
    found = centre_of_mass(fourier_crop(object_, after)[:, None])[0]
    assert torch.allclose(found, torch.tensor([shift, -shift]), atol=2e-3)
    assert pixel_size(after, after) / 2 == pytest.approx(1 / (after - 1))


def test_the_pixel_size_after_cropping():
    assert cropped_pixel_size(1.5, 256, 128) == 3.0


def test_what_cannot_be_cropped():
    with pytest.raises(ValueError, match=r"size: expected at most the 8 pixels .*, got 9"):
        fourier_crop(torch.zeros(1, 8, 8), 9)
    with pytest.raises(ValueError, match=r"square images to crop, got 6 x 8"):
        fourier_crop(torch.zeros(1, 8, 6), 4)


@pytest.mark.parametrize("size", [32, 33])
def test_normalising_by_the_background_as_relion_does(size):
    images = bumps(3, size)
    found, fine = normalise(images, "background", 10.0)
    assert fine.all()
    y, x = np.ogrid[:size, :size]
    outside = (y - size // 2) ** 2 + (x - size // 2) ** 2 > 100
    for image, result in zip(images.double().numpy(), found.numpy(), strict=True):
        expected = (image - image[outside].mean()) / image[outside].std()
        assert np.allclose(result, expected, atol=1e-5)
    assert torch.equal(normalise(images)[0], normalise(images, "background", 0.375 * size)[0])


def test_a_plane_is_subtracted_from_the_background():
    images = bumps(2, 32)
    slope = torch.arange(32.0)
    tilted = images + 3 * slope[:, None] - 2 * slope
    flat, _ = normalise(images, ramp=True)
    found, _ = normalise(tilted, ramp=True)
    assert torch.allclose(found, flat, atol=1e-4)
    assert not torch.allclose(normalise(tilted)[0], flat, atol=0.1)


def test_the_other_ways_to_normalise():
    images = bumps(3, 16)
    found, _ = normalise(images, "image")
    assert torch.allclose(found.mean((1, 2)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(found.std((1, 2), correction=0), torch.ones(3), atol=1e-5)
    assert torch.equal(normalise(images, "none")[0], images)
    assert torch.equal(normalise(images, "dataset", mean=10.0, std=2.0)[0], (images - 10) / 2)


def test_a_soft_mask_leaves_the_middle_and_fills_the_rest_with_its_mean():
    images = bumps(2, 64) + torch.tensor([0.0, 90.0])[:, None, None]
    found = soft_mask(images, 20, 6)
    distance = radius(64, 64)
    assert torch.equal(found[:, distance <= 20], images[:, distance <= 20])
    fill = found[:, distance >= 26]
    assert (fill == fill[:, :1]).all()
    assert torch.allclose(fill[:, 0], torch.tensor([10.0, 100.0]), atol=0.1)
    edge = soft_mask((distance > 22).float()[None], 20, 6)[0]
    at = distance == 23  # halfway of the edge
    assert torch.allclose(edge[at], (1 + edge[0, 0]) / 2)
    assert soft_mask(images, 60) is images
    hard = soft_mask(images, 20, 0)
    assert (hard[:, distance > 20] == hard[:, :1, 0]).all()


def test_dark_particles_are_found_and_inverted(caplog):
    caplog.set_level(logging.INFO)
    for dark in (True, False):
        settled = Preparation().settled(bumps(40, 32, dark), 40)
        assert settled.invert is dark
        assert contrast(settled(bumps(40, 32, dark))).mean() > 0.1
    assert "darker than the background (-" in caplog.text
    assert "brighter than the background (" in caplog.text


def test_what_cannot_be_told_is_left_as_it_is(caplog):
    noise = torch.randn(50, 32, 32, generator=torch.Generator().manual_seed(3))
    noise -= contrast(noise).mean() * noise.std() * (radius(32, 32) < 8)
    assert Preparation().settled(noise, 50).invert is False
    assert "cannot tell" in caplog.text


def test_the_mean_of_the_data_set_is_of_the_cropped_images():
    images = bumps(120, 32)
    settled = Preparation(size=16, normalize="dataset", invert=False).settled(images, 120)
    small = fourier_crop(images, 16)
    assert settled.mean == pytest.approx(small.mean().item(), rel=1e-5)
    assert settled.std == pytest.approx(small.std().item(), rel=1e-3)
    given = Preparation(normalize="dataset", mean=1.0, std=2.0, invert=True)
    assert given.settled(images, 120) is given


def test_only_a_sample_is_looked_at_and_what_is_bad_decides_nothing():
    asked = []

    class Counted:
        def __getitem__(self, rows):
            asked.extend(rows.tolist())
            images = bumps(len(rows), 16)
            images[0, 0, 0] = math.nan
            return images

    settled = Preparation(normalize="dataset").settled(Counted(), 100_000)
    assert settled.invert is False
    assert math.isfinite(settled.std)
    assert len(asked) == 1000
    assert (asked[0], asked[-1]) == (0, 99_999)


EVERY = [
    Preparation(
        size, normalize, ramp=size is None, mean=9.0, std=2.0, invert=True, mask_radius=mask
    )
    for size, mask in ((None, None), (16, 0.8), (15, None))
    for normalize in ("background", "image", "dataset", "none")
]


@pytest.mark.parametrize("preparation", EVERY, ids=lambda p: f"{p.size}-{p.normalize}")
def test_no_pixel_depends_on_what_else_is_in_the_batch(preparation):
    images = bumps(9, 32)
    together = preparation(images)
    assert together.dtype == torch.float32
    for i in range(9):
        assert torch.equal(preparation(images[i : i + 1])[0], together[i])
    side = preparation.size or 32
    assert together.shape == (9, side, side)


def test_the_order_of_what_is_done():
    images = bumps(4, 32, dark=True)
    found = Preparation(16, invert=True, mask_radius=0.8, mask_edge=2)(images)
    expected = soft_mask(-normalise(fourier_crop(images, 16), "background", 6.0)[0], 6.4, 2)
    assert torch.equal(found, expected)


def test_images_that_cannot_be_used_are_named_with_the_reason():
    images = bumps(5, 16)
    images[1, 3, 3] = math.nan
    images[1, 3, 4] = math.inf
    images[3] = 7
    preparation = Preparation(8, invert=False)
    message = r"3@a\.mrcs: 2 of its 256 pixels are NaN or infinite \(and 1 more of these 5\)"
    with pytest.raises(ValueError, match=message):
        preparation(images, lambda place: f"{place + 2}@a.mrcs")
    with pytest.raises(ValueError, match=r"image 0: it is constant: every pixel is 7$"):
        preparation(images[3:4])
    prepared, unusable = preparation.prepared(images)
    assert list(unusable) == [1, 3]
    assert (prepared[[1, 3]] == 0).all()
    assert torch.equal(prepared[[0, 2, 4]], preparation(images[[0, 2, 4]]))
    assert images[1, 3, 3].isnan()  # what was given is not written into


@pytest.mark.parametrize("size", [None, 16])
def test_a_background_without_noise_cannot_be_measured(size):
    images = bumps(1, 32) * (radius(32, 32) < 10)
    with pytest.raises(
        ValueError, match=r"image 0: its background, .* is constant.*normalize=ima"
    ):
        Preparation(size, invert=False)(images)
    assert Preparation(size, "image", invert=False)(images).isfinite().all()


@pytest.mark.parametrize("normalize", ["background", "image", "none"])
def test_values_that_are_too_large_are_told(normalize):
    told = "image 0: its values are too large for float32"
    # Whether a Fourier transform adds up before it divides is the machine's matter: it is told, or
    # all is right.
    prepare, images = Preparation(8, normalize, invert=False), bumps(1, 16)
    try:
        found = prepare(images * 1e37)
    except ValueError as error:
        found = error
    if isinstance(found, ValueError):
        assert told in str(found)
    else:
        factor = 1e37 if normalize == "none" else 1.0
        torch.testing.assert_close(found / factor, prepare(images), rtol=1e-4, atol=1e-4)
    images[0, 0, :2] = torch.tensor([-3e38, 3e38])
    with pytest.raises(ValueError, match=told):
        Preparation(16, "none", invert=False)(images)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 1}, "size: expected a whole number of at least 2, got 1"),
        ({"normalize": "std"}, "normalize: expected one of background, .*, got 'std'"),
        ({"background_radius": 0}, "background_radius: expected a number above 0, got 0"),
        ({"invert": "yes"}, "invert: expected auto, true or false, got 'yes'"),
        ({"ramp": 1}, "ramp: expected true or false, got 1"),
        ({"mask_radius": -1.0}, "mask_radius: expected a number above 0, got -1"),
        ({"mask_edge": -1.0}, "mask_edge: expected a number above 0, got -1"),
        ({"mean": "a"}, "mean: expected a number, got 'a'"),
        ({"std": 0.0}, "std: expected a number above 0, got 0"),
    ],
)
def test_wrong_settings(given, message):
    with pytest.raises(ValueError, match=message):
        Preparation(**given)


def test_a_radius_with_nothing_beyond_it():
    with pytest.raises(ValueError, match=r"background_radius: expected pixels beyond it"):
        Preparation(background_radius=1.5, invert=False)(bumps(1, 16))
    with pytest.raises(ValueError, match=r"background_radius: expected pixels beyond it"):
        Preparation(background_radius=1.5).check(16, 16)
    with pytest.raises(ValueError, match=r"size: expected at most the 16 pixels"):
        Preparation(size=20).check(16, 16)
    Preparation(size=8, normalize="dataset").check(16, 16)


def test_what_is_left_open_must_be_settled():
    with pytest.raises(ValueError, match=r"invert: auto must be decided first"):
        Preparation()(bumps(1, 16))
    with pytest.raises(ValueError, match=r"none of the images"):
        Preparation().settled(torch.zeros(4, 8, 8), 4)
