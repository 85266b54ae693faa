"""Clustering metrics: names of clusters do not matter, chance is chance, scale changes nothing."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from svae.metrics import clustering_metrics, hungarian_accuracy

NAMES = ["clustering_accuracy", "nmi", "ari"]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.fixture
def blobs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Four far groups in the plane."""
    labels = torch.arange(120) % 4
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    return centres[labels] + torch.randn(120, 2, generator=generator), labels


def test_far_groups_are_found(blobs: tuple[Tensor, Tensor]) -> None:
    metrics = clustering_metrics(*blobs, num_clusters=4, seed=1)
    assert list(metrics) == NAMES + [f"{name}_gmm" for name in NAMES]
    assert all(value == pytest.approx(1) for value in metrics.values())


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scale_and_place_of_the_features_change_nothing(
    generator: torch.Generator, scale: float
) -> None:
    labels = torch.arange(90) % 3
    features = 1.5 * labels.unsqueeze(-1) + torch.randn(90, 2, generator=generator)
    moved = scale * features.double() + 3 * scale
    expected = clustering_metrics(features.double(), labels, 3, seed=2)
    assert clustering_metrics(moved, labels, 3, seed=2) == pytest.approx(expected)
    assert expected["clustering_accuracy"] < 1  # the groups overlap


def test_the_mixture_follows_long_groups(generator: torch.Generator) -> None:
    """Two parallel stripes: k-means cuts off their ends, full covariances follow them."""
    labels = torch.arange(400) % 2
    features = torch.randn(400, 2, generator=generator) * torch.tensor([2.0, 0.3])
    features += labels.unsqueeze(-1) * torch.tensor([2.0, 2.0])
    metrics = clustering_metrics(features, labels, 2, seed=3)
    assert metrics["clustering_accuracy_gmm"] == 1
    assert metrics["clustering_accuracy"] < 0.9


def test_labels_without_relation_are_near_chance(generator: torch.Generator) -> None:
    features = torch.randn(1000, 2, generator=generator)
    labels = torch.randint(5, (1000,), generator=generator)
    metrics = clustering_metrics(features, labels, 5, seed=4)
    for suffix in ("", "_gmm"):
        assert 0.2 <= metrics[f"clustering_accuracy{suffix}"] < 0.3
        assert metrics[f"nmi{suffix}"] < 0.03
        assert abs(metrics[f"ari{suffix}"]) < 0.03


def test_one_seed_gives_one_result(generator: torch.Generator) -> None:
    features = torch.randn(100, 3, generator=generator)
    labels = torch.arange(100) % 7
    once = clustering_metrics(features, labels, 7, seed=6)
    assert clustering_metrics(features, labels, 7, seed=6) == once


def test_labels_do_not_steer_the_clusters(blobs: tuple[Tensor, Tensor]) -> None:
    features, labels = blobs
    renamed = torch.tensor([30, -2, 7, 100])[labels]
    merged = labels // 2
    expected = clustering_metrics(features, labels, 4, seed=1)
    assert clustering_metrics(features, renamed, 4, seed=1) == pytest.approx(expected)
    # Two labels of two groups each: one cluster of each is matched.
    metrics = clustering_metrics(features, merged, 4, seed=1)
    assert metrics["clustering_accuracy"] == pytest.approx(0.5)
    assert metrics["nmi"] == pytest.approx(2 * math.log(2) / (math.log(2) + math.log(4)))


def test_permuted_names_are_perfect() -> None:
    labels = torch.arange(50) % 5
    for names in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        assert hungarian_accuracy(labels, torch.tensor(names)[labels]) == 1


def test_accuracy_is_the_best_of_all_matchings(generator: torch.Generator) -> None:
    labels = torch.randint(4, (60,), generator=generator)
    clusters = torch.randint(4, (60,), generator=generator)
    best = max(
        (torch.tensor(names)[clusters] == labels).double().mean().item()
        for names in itertools.permutations(range(4))
    )
    assert hungarian_accuracy(labels, clusters) == pytest.approx(best)


def test_numbers_of_clusters_and_labels_may_differ() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    # Label 0 is split 3 to 1: the smaller piece has no label left.
    assert hungarian_accuracy(labels, torch.tensor([0, 0, 0, 2, 1, 1, 1, 1])) == 7 / 8
    assert hungarian_accuracy(labels, torch.zeros(8, dtype=torch.int64)) == 1 / 2
    assert hungarian_accuracy(labels, torch.arange(8)) == 2 / 8


def test_arguments_are_checked() -> None:
    features, labels = torch.randn(6, 2), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"features: expected shape .* D at least 1, got \(6, 0\)"
    ):
        clustering_metrics(features[:, :0], labels, 2, seed=0)
    with pytest.raises(ValueError, match="features: expected at least num_clusters=7 images, got"):
        clustering_metrics(features, labels, 7, seed=0)
    spoilt = features.clone()
    spoilt[2, 1] = math.inf
    with pytest.raises(ValueError, match="features: expected finite values, got 1 images"):
        clustering_metrics(spoilt, labels, 2, seed=0)
    with pytest.raises(ValueError, match=r"labels: expected shape \(6,\)"):
        clustering_metrics(features, labels[:5], 2, seed=0)
    with pytest.raises(ValueError, match="num_clusters: expected a whole number of at least 1"):
        clustering_metrics(features, labels, 0, seed=0)
    with pytest.raises(ValueError, match="labels, clusters: expected one shape"):
        hungarian_accuracy(labels, labels[:3])
