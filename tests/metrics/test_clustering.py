"""Clusters and their metrics: made without labels, names do not matter, chance is chance."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor

from svae.metrics import cluster, clustering_metrics, matching

NAMES = ["clustering_accuracy", "nmi", "ari"]
SUFFIXES = ["", "_ward", "_gmm"]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.fixture
def blobs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Four far groups in the plane."""
    labels = torch.arange(120) % 4
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    return centres[labels] + torch.randn(120, 2, generator=generator), labels


def scored(features: Tensor, labels: Tensor, num_clusters: int, seed: int = 1) -> dict[str, float]:
    """Metrics where all clusters are made of the same features."""
    return clustering_metrics(cluster(features, features, num_clusters, seed), labels)


def partition(clusters: np.ndarray | Tensor) -> set[frozenset[int]]:
    """The groups of rows, whatever they are called."""
    groups: dict[int, set[int]] = {}
    for row, name in enumerate(clusters.tolist()):
        groups.setdefault(name, set()).add(row)
    return {frozenset(rows) for rows in groups.values()}


def spread_within(points: np.ndarray, clusters: np.ndarray) -> float:
    """The sum of squared distances to the clusters' means."""
    groups = [points[clusters == name] for name in np.unique(clusters)]
    return float(sum(((group - group.mean(0)) ** 2).sum() for group in groups))


def test_far_groups_are_found(blobs: tuple[Tensor, Tensor]) -> None:
    features, labels = blobs
    clusters = cluster(features, features, 4, seed=1)
    assert list(clusters) == SUFFIXES
    assert all(found.dtype == torch.int64 for found in clusters.values())
    metrics = clustering_metrics(clusters, labels)
    assert list(metrics) == [f"{name}{suffix}" for suffix in SUFFIXES for name in NAMES]
    assert all(value == pytest.approx(1) for value in metrics.values())


def test_the_mixture_sees_the_mean_alone_and_the_others_the_representation(
    blobs: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    """Two groups by their mean, crossed with two by their standard deviation, which is larger."""
    mean_of, std_of = torch.arange(200) % 2, torch.arange(200) // 2 % 2
    z = 4.0 * mean_of[:, None] + 0.3 * torch.randn(200, 1, generator=generator)
    std = 1.0 + 9.0 * std_of[:, None]
    clusters = cluster(torch.cat((z, std), dim=1), z, 2, seed=1)
    for suffix, truth in (("", std_of), ("_ward", std_of), ("_gmm", mean_of)):
        assert matching(truth, clusters[suffix]).accuracy == 1, suffix


def test_kmeans_is_the_best_of_all_partitions(generator: torch.Generator) -> None:
    points = torch.randn(9, 2, generator=generator)
    found = cluster(points, points, 3, seed=1)[""]
    every = (np.array(names) for names in itertools.product(range(3), repeat=9))
    least = min(spread_within(points.numpy(), names) for names in every)
    assert spread_within(points.numpy(), found.numpy()) == pytest.approx(least)


def test_ward_joins_what_adds_the_least_spread(generator: torch.Generator) -> None:
    points = torch.randn(14, 3, generator=generator).double()
    found = cluster(points, points, 4, seed=1)["_ward"]
    expected = np.arange(14)
    while len(np.unique(expected)) > 4:
        joined = [
            np.where(expected == b, a, expected)
            for a, b in itertools.combinations(np.unique(expected), 2)
        ]
        expected = min(joined, key=lambda names: spread_within(points.numpy(), names))
    assert partition(found) == partition(expected)


def test_ward_of_many_images_is_made_of_some(
    blobs: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = blobs
    fitted = []
    fit = AgglomerativeClustering.fit_predict

    def counted(self, points):
        fitted.append(len(points))
        return fit(self, points)

    monkeypatch.setattr(AgglomerativeClustering, "fit_predict", counted)
    monkeypatch.setattr("svae.metrics.clustering.WARD_MOST_IMAGES", 40)
    ordered = labels.argsort()  # the first 40 rows hold two groups only
    clusters = cluster(features[ordered], features[ordered], 4, seed=1)
    assert fitted == [40]
    assert matching(labels[ordered], clusters["_ward"]).accuracy == 1


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scale_and_place_of_the_features_change_nothing(
    generator: torch.Generator, scale: float
) -> None:
    labels = torch.arange(90) % 3
    features = 1.5 * labels.unsqueeze(-1) + torch.randn(90, 2, generator=generator)
    moved = scale * features.double() + 3 * scale
    expected = scored(features.double(), labels, 3)
    assert scored(moved, labels, 3) == pytest.approx(expected)
    assert expected["clustering_accuracy"] < 1  # the groups overlap


def test_the_mixture_follows_long_groups(generator: torch.Generator) -> None:
    """Two parallel stripes: k-means cuts off their ends, full covariances follow them."""
    labels = torch.arange(400) % 2
    features = torch.randn(400, 2, generator=generator) * torch.tensor([2.0, 0.3])
    features += labels.unsqueeze(-1) * torch.tensor([2.0, 2.0])
    metrics = scored(features, labels, 2)
    assert metrics["clustering_accuracy_gmm"] == 1
    assert metrics["clustering_accuracy"] < 0.9


def test_labels_without_relation_are_near_chance(generator: torch.Generator) -> None:
    features = torch.randn(1000, 2, generator=generator)
    labels = torch.randint(5, (1000,), generator=generator)
    metrics = scored(features, labels, 5)
    for suffix in SUFFIXES:
        assert 0.2 <= metrics[f"clustering_accuracy{suffix}"] < 0.3
        assert metrics[f"nmi{suffix}"] < 0.03
        assert abs(metrics[f"ari{suffix}"]) < 0.03


def test_one_seed_gives_one_result(generator: torch.Generator) -> None:
    features = torch.randn(100, 3, generator=generator)
    once, again = (cluster(features, features, 7, seed=6) for _ in range(2))
    assert all(torch.equal(once[suffix], again[suffix]) for suffix in SUFFIXES)


def test_names_of_labels_and_clusters_do_not_matter(blobs: tuple[Tensor, Tensor]) -> None:
    features, labels = blobs
    clusters = cluster(features, features, 4, seed=1)
    expected = clustering_metrics(clusters, labels)
    other = torch.tensor([30, -2, 7, 100])
    assert clustering_metrics(clusters, other[labels]) == pytest.approx(expected)
    renamed = {suffix: other[found] for suffix, found in clusters.items()}
    assert clustering_metrics(renamed, labels) == pytest.approx(expected)
    # Two labels of two groups each: one cluster of each is matched.
    metrics = clustering_metrics(clusters, labels // 2)
    assert metrics["clustering_accuracy"] == pytest.approx(0.5)
    assert metrics["nmi"] == pytest.approx(2 * math.log(2) / (math.log(2) + math.log(4)))


def test_one_cluster_and_content_that_collapsed(generator: torch.Generator) -> None:
    features = torch.randn(5, 2, generator=generator)
    assert all((found == 0).all() for found in cluster(features, features, 1, seed=0).values())
    metrics = scored(torch.ones(6, 2), torch.arange(6) % 2, 2)
    assert metrics["clustering_accuracy"] == 0.5


def test_permuted_names_are_perfect() -> None:
    labels = torch.arange(50) % 5
    for names in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        assert matching(labels, torch.tensor(names)[labels]).accuracy == 1


@pytest.mark.parametrize(("num_labels", "num_clusters"), [(4, 4), (3, 5), (5, 3)])
def test_no_other_matching_has_more_images(
    generator: torch.Generator, num_labels: int, num_clusters: int
) -> None:
    labels = torch.randint(num_labels, (60,), generator=generator)
    clusters = torch.randint(num_clusters, (60,), generator=generator)
    found = matching(labels, clusters + 10)
    # Names for the clusters; those of no label match nothing.
    best = max(
        (torch.tensor(names)[clusters] == labels).double().mean().item()
        for names in itertools.permutations(range(max(num_labels, num_clusters)), num_clusters)
    )
    assert found.accuracy == pytest.approx(best)
    matched = found.labels[:num_clusters]
    assert matched == sorted(matched)
    assert sorted(found.labels) == list(range(num_labels))
    assert sorted(found.clusters) == list(range(10, 10 + num_clusters))
    for i, label in enumerate(found.labels):
        for j, name in enumerate(found.clusters):
            both = (labels == label) & (clusters + 10 == name)
            assert found.counts[i, j] == both.sum()


def test_numbers_of_clusters_and_labels_may_differ() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    # Label 0 is split 3 to 1: the smaller piece has no label left.
    assert matching(labels, torch.tensor([0, 0, 0, 2, 1, 1, 1, 1])).accuracy == 7 / 8
    assert matching(labels, torch.zeros(8, dtype=torch.int64)).accuracy == 1 / 2
    assert matching(labels, torch.arange(8)).accuracy == 2 / 8


def test_arguments_are_checked() -> None:
    features, labels = torch.randn(6, 2), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"z: expected shape .* D at least 1, got \(6, 0\)"):
        cluster(features, features[:, :0], 2, seed=0)
    with pytest.raises(ValueError, match=r"representation: expected at least 7 .*, got 6"):
        cluster(features, features, 7, seed=0)
    with pytest.raises(ValueError, match="expected at least 2 images for num_clusters=1, got 1"):
        cluster(features[:1], features[:1], 1, seed=0)
    with pytest.raises(ValueError, match="expected as many images, got 6 and 5"):
        cluster(features, features[:5], 2, seed=0)
    spoilt = features.clone()
    spoilt[2, 1] = math.inf
    with pytest.raises(ValueError, match="z: expected finite values, got 1 images"):
        cluster(features, spoilt, 2, seed=0)
    with pytest.raises(ValueError, match="num_clusters: expected a whole number of at least 1"):
        cluster(features, features, 0, seed=0)
    with pytest.raises(ValueError, match="labels, clusters: expected as many, got 5 and 6"):
        clustering_metrics({"": labels}, labels[:5])
    with pytest.raises(ValueError, match=r"clusters: expected whole numbers .* got float32"):
        matching(labels, features[:, 0])
    with pytest.raises(ValueError, match=r"labels: expected whole numbers .* shape \(0,\)"):
        matching(labels[:0], labels[:0])
