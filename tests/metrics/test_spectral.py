"""Clusters of images by who is like whom: shapes that no mean stands for, and images in poses."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import ArpackNoConvergence
from torch.testing import assert_close

import svae.metrics.spectral as spectral
from svae.geometry import transform_image, without_background
from svae.latents import Latents
from svae.metrics import NoClusters, matching, small_upright, spectral_clusters
from svae.metrics.clustering import kmeans


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


def rings(count, generator):
    """Points on two circles about one centre, and which circle each is on."""
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    ring = torch.arange(count) % 2
    points = torch.stack((angle.cos(), angle.sin()), 1) * (1 + 2 * ring.unsqueeze(1))
    return points + 0.05 * torch.randn(count, 2, generator=generator), ring


@pytest.mark.parametrize("count", [150, 500])
def test_it_finds_what_hangs_together_and_not_what_is_near_a_mean(count, generator):
    """Also with a full decomposition, which few images have."""
    points, ring = rings(count, generator)
    assert matching(ring, spectral_clusters(points, 2, 1)).accuracy == 1
    assert matching(ring, kmeans(points, 2, 1, 10)).accuracy < 0.8


def test_scales_are_each_neighbourhoods_own(generator):
    """A dense kind beside a thin one: a single scale would cut the thin one to pieces."""
    dense = 0.02 * torch.randn(300, 3, generator=generator)
    thin = 2.0 * torch.randn(300, 3, generator=generator) + torch.tensor([12.0, 0.0, 0.0])
    kind = torch.arange(600) // 300
    assert matching(kind, spectral_clusters(torch.cat((dense, thin)), 2, 1)).accuracy > 0.99


def test_equal_images_are_together():
    """Distances of zero, more of them than there are neighbours."""
    points = torch.eye(4).repeat_interleave(20, 0)
    assert matching(torch.arange(80) // 20, spectral_clusters(points, 4, 1)).accuracy == 1


@pytest.mark.parametrize("spread", [0.01, 0.0])
def test_clumps_that_nothing_joins_are_grouped_with_the_nearest(generator, spread):
    """More parts than clusters: as where objects of few kinds and sizes have no pose error."""
    kinds = 10 * torch.eye(3)
    clumps = kinds.repeat_interleave(20, 0) + torch.randn(60, 3, generator=generator)
    points = clumps.repeat_interleave(20, 0)
    points = points + spread * torch.randn(points.shape, generator=generator)
    found = spectral_clusters(points, 3, 1)
    assert matching(torch.arange(1200) // 400, found).accuracy == 1


def test_one_image_among_copies_of_another_has_neighbours():
    points = torch.cat((torch.zeros(300, 2), torch.ones(1, 2)))
    found = spectral_clusters(points, 2, 1)
    assert found[:300].unique().numel() == 1
    assert found[300] != found[0]


def test_what_all_images_have_does_not_matter(generator):
    points, ring = rings(500, generator)
    assert matching(ring, spectral_clusters(points + 1000, 2, 1)).accuracy > 0.99


def test_eigenvectors_that_are_not_found_are_an_error_that_says_so(generator, monkeypatch):
    def unable(*_, **__):
        raise ArpackNoConvergence("no convergence", np.empty(0), np.empty((0, 0)))

    monkeypatch.setattr(spectral, "eigsh", unable)
    with pytest.raises(NoClusters, match=r"spectral clustering: .*no convergence"):
        spectral_clusters(torch.rand(500, 2, generator=generator), 2, 1)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_handful_of_images_has_clusters(count, generator):
    clusters = spectral_clusters(torch.rand(count, 5, generator=generator), 2, 1)
    assert clusters.shape == (count,)
    assert clusters.dtype == torch.int64
    assert set(clusters.tolist()) <= {0, 1}


def test_the_seed_decides_alone(generator, monkeypatch):
    monkeypatch.setattr(spectral, "MOST_IMAGES", 300)
    points = torch.rand(400, 2, generator=generator)
    found = []
    for seed, elsewhere in ((3, 1), (3, 2), (4, 2)):
        torch.manual_seed(elsewhere)
        np.random.seed(elsewhere)
        found.append(spectral_clusters(points, 7, seed))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_images_beyond_a_number_join_the_one_most_like_them(generator, monkeypatch):
    monkeypatch.setattr(spectral, "MOST_IMAGES", 300)
    monkeypatch.setattr(spectral, "_ROWS", 77)
    points, ring = rings(1000, generator)
    assert matching(ring, spectral_clusters(points, 2, 1)).accuracy == 1


@pytest.mark.parametrize("shape", [(1, 4), (9, 4), (10, 4, 2)])
def test_too_few_or_misshapen_images_are_an_error(shape):
    with pytest.raises(ValueError, match=r"images: expected shape \(N, D\), N at least 10, got"):
        spectral_clusters(torch.zeros(shape), 10, 1)


@pytest.mark.parametrize("background", [0.0, 3.0])
def test_images_are_compared_upright(generator, background):
    """The same blob in any pose is nearly the same vector; how it lies in the image is not."""
    image = torch.zeros(1, 1, 40, 40)
    image[..., 16:24, 12:28], image[..., 12:16, 24:28] = 1.0, 1.0
    theta = 2 * math.pi * torch.rand(20, generator=generator)
    shift = 0.1 * torch.randn(20, 2, generator=generator)
    posed = transform_image(image.expand(20, -1, -1, -1), theta, shift) + background
    upright = small_upright(posed, Latents(torch.zeros(20, 1), theta, shift))
    assert upright.shape == (20, 400)
    as_it_lies = small_upright(posed, Latents(torch.zeros(20, 1), 0 * theta, 0 * shift))
    assert upright.std(0).norm() < 0.3 * as_it_lies.std(0).norm()


@pytest.mark.parametrize(
    ("shape", "size"),
    [((1, 28, 28), 784), ((1, 50, 50), 625), ((3, 64, 64), 3072), ((1, 7, 100), 2 * 25)],
)
def test_vectors_have_a_bounded_length(shape, size):
    image = torch.rand(2, *shape)
    latents = Latents(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2, 2))
    small = small_upright(image, latents)
    assert small.shape == (2, size)
    if shape == (1, 28, 28):
        assert_close(small, without_background(image).flatten(1))


def test_edges_that_do_not_fill_a_block_are_means_of_what_is_there():
    latents = Latents(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 2))
    image = torch.zeros(1, 1, 33, 33)
    image[..., 32, 16:18] = 1.0
    small = small_upright(image, latents).reshape(17, 17)
    assert_close(small[16, 8], torch.tensor(1.0))
    assert small.sum() == 1
