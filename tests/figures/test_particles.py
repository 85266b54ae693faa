"""Averages of particles beside what is generated."""

import numpy as np
import pytest
import torch
from tests.figures.pictures import check_page, flat, picture_of, shown_title, texts_of, tick_texts

from svae.figures import class_averages_figure, particles_figure, slices_figure

SIZE = 20


def test_particles_and_their_averages_have_scales_of_their_own() -> None:
    noisy = flat(torch.linspace(-30, 30, 12), size=SIZE)
    means = flat(torch.linspace(0, 1, 12), size=SIZE)
    theta, shift = torch.linspace(-179, 179, 12), torch.linspace(-9.5, 9.5, 24).reshape(12, 2)
    classes = torch.arange(12) + 1
    figure = particles_figure(noisy, noisy.flip(0), means, means.flip(0), theta, shift, classes)
    check_page(figure)
    assert tick_texts(figure, "y") == ["particle", "moved back", "class average", "generated"]
    picture = picture_of(figure)
    rows = [picture[SIZE // 2 + row * (SIZE + 1), :, 0][SIZE // 2 :: SIZE + 1] for row in range(4)]
    ramp = np.linspace(0, 1, 12)
    for row, expected in zip(rows, (ramp, ramp[::-1], ramp, ramp[::-1]), strict=True):
        np.testing.assert_allclose(row, expected, atol=1e-5)
    texts = texts_of(figure)
    assert {"angle", "−179°", "shift (px)", "−9.5, −8.7", "class", "12"} <= {*texts}
    bare = particles_figure(noisy, noisy, means, means, None, None, classes)
    assert "angle" not in texts_of(bare)
    assert "class" in texts_of(bare)


@pytest.mark.parametrize(("count", "blocks"), [(1, 1), (10, 1), (12, 2), (60, 5)])
def test_classes_are_counted(count: int, blocks: int) -> None:
    images = torch.rand(count, 1, SIZE, SIZE)
    sizes = torch.arange(count) * 1000
    figure = class_averages_figure(images, images, sizes)
    check_page(figure)
    assert len(figure.axes) == blocks
    assert tick_texts(figure, "y") == ["average", "generated"]
    shown = min(count, 50)
    assert f"{1000 * (shown - 1):,}" in texts_of(figure)
    title = shown_title(figure)
    assert title.startswith("The first 50 of 60 class averages" if count > 50 else "Class averag")
    # The first row of images, above the same images.
    picture = picture_of(figure)
    np.testing.assert_array_equal(picture[:SIZE], picture[SIZE + 1 :])


def test_slices_have_a_block_for_each_axis() -> None:
    images = torch.rand(2, 7, 1, SIZE, SIZE)
    values = torch.linspace(-2, 2, 14).reshape(2, 7)
    figure = slices_figure(images, images, values, [0, 3], 1234)
    check_page(figure)
    assert len(figure.axes) == 2
    assert "Averages of 1,234 particles each" in shown_title(figure)
    assert {"mean z0", "mean z3", "−2.00", "2.00"} <= {*texts_of(figure)}
