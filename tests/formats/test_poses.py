"""Poses in RELION's conventions, by RELION's formula, which is written here anew."""

import numpy as np
import pytest
import torch
from tests.blobs import correlation, image_of, relion_aligned

from svae.datasets.particle_pixels import fourier_crop
from svae.formats.poses import to_relion
from svae.geometry import pixel_size

THETA = np.deg2rad([0.0, 35.0, -120.0, 179.0, 400.0])


def shifts(size, pixels=((0, 0), (3.3, -1.2), (-2.5, 4.0), (0.5, 0.5), (-4, -3))):
    return np.array(pixels) * pixel_size(size, size)


@pytest.mark.parametrize("size", [64, 65])
def test_relions_formula_gives_the_upright_object(size):
    psi, offset = to_relion(THETA, shifts(size), size, size)
    reference = image_of(size)
    for i in range(len(THETA)):
        particle = image_of(size, THETA[i], shifts(size)[i])
        aligned = relion_aligned(particle, psi[i], offset[i])
        assert correlation(aligned, reference) > 0.9999
        if i:
            assert correlation(particle, reference) < 0.9


@pytest.mark.parametrize(("size", "small"), [(64, 40), (64, 41), (65, 40), (65, 41)])
def test_after_a_fourier_crop_they_are_those_of_the_particle_in_the_file(size, small):
    scale = size / small
    psi, offset = to_relion(THETA, shifts(small), small, small, scale)
    # The model's upright object, as it would lie in the file.
    reference = image_of(size, cropped_to=small)
    for i in range(len(THETA)):
        stored = image_of(size, THETA[i], shifts(small)[i], cropped_to=small)
        seen = fourier_crop(torch.from_numpy(stored)[None].float(), small)[0].numpy()
        own = image_of(small, THETA[i], shifts(small)[i])
        assert correlation(seen, own) > 0.9999
        aligned = relion_aligned(stored, psi[i], offset[i])
        assert correlation(aligned, reference) > 0.9999
        # Half a pixel of another image would be seen: the test can fail.
        wrong = to_relion(THETA, shifts(small), small + 1, small + 1, scale)[1][i]
        if i == 3:
            moved = relion_aligned(stored, psi[i], wrong)
            assert correlation(moved, reference) < 0.995


def test_signs_and_units():
    # Counter-clockwise by 90 degrees, one pixel to the right and two up, of an odd size.
    psi, offset = to_relion(np.array([np.pi / 2]), np.array([[1, 2]]) * pixel_size(9, 9), 9, 9)
    assert psi == pytest.approx([90])
    assert offset[0] == pytest.approx([-1, 2])
    assert to_relion(np.array([np.pi]), np.zeros((1, 2)), 9, 9)[0] == [-180]
    with pytest.raises(ValueError, match="scale: expected a number above 0, got 0"):
        to_relion(np.zeros(1), np.zeros((1, 2)), 9, 9, 0)
