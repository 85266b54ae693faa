"""Do clusters of the latent content match labels that training never saw?

The protocol is that of the TARGET-VAE code, for clusters that are fixed before a label is looked
at: what an image is grouped by is the posterior of its content at the mode, mean and standard
deviation side by side, as they are. `svae.metrics.cluster` makes the clusters, and
`svae.metrics.clustering_metrics` compares them with labels.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    pairwise_distances_argmin,
)
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from svae.checks import at_least

__all__ = [
    "FEWEST_IMAGES",
    "Matching",
    "cluster",
    "clustering_metrics",
    "kmeans",
    "matching",
    "whole_numbers",
]

#: There is nothing to group in fewer images.
FEWEST_IMAGES = 2
# As many as in the TARGET-VAE code.
KMEANS_RESTARTS = 100
# The distances of all pairs of so many images take 0.4 GB.
WARD_MOST_IMAGES = 10_000
# Smallest variance of a mixture component along any direction, relative to the mean variance of
# the features: 1 % of their spread, so that no component shrinks onto a handful of images.
GMM_VARIANCE_FLOOR = 1e-4
# Enough for the mixture to converge; sklearn's 100 often are not.
GMM_MAX_ITERATIONS = 1000


def cluster(representation: Tensor, z: Tensor, num_clusters: int, seed: int) -> dict[str, Tensor]:
    """Clusters of images, made without labels.

    * `""`: k-means on the representation, the best of 100 starts by inertia.
    * `_ward`: agglomerative clustering of the representation by Ward's criterion. Of more than
      10,000 images, so many chosen at random are clustered, and each of the others joins the
      cluster with the nearest mean: the memory grows with the square of the number.
    * `_gmm`: a Gaussian mixture on z alone with full covariances, the best of 5 starts by
      likelihood, which does not suppose that clusters are round.

    No component is scaled against the others.

    Arguments:
        representation: Mean and standard deviation of the content, with shape (N, D).
        z: The content, with shape (N, z_dim).
        num_clusters: The number of clusters to look for.
        seed: The seed of the starts, and of the choice for Ward.

    Returns:
        The number of each image's cluster, with shape (N,) in int64, by the suffix of the metrics
        of `clustering_metrics`.

    References:
        Hierarchical grouping to optimize an objective function (Ward, 1963).
    """
    at_least("num_clusters", num_clusters, 1)
    points = _points("representation", representation, num_clusters)
    content = _points("z", z, num_clusters)
    if len(points) != len(content):
        raise ValueError(
            f"representation, z: expected as many images, got {len(points)} and {len(content)}"
        )
    mixture = GaussianMixture(
        num_clusters,
        n_init=5,
        max_iter=GMM_MAX_ITERATIONS,
        reg_covar=GMM_VARIANCE_FLOOR,
        random_state=seed,
    )
    # One thread: the matrices are small, and where cores are shared the threads of OpenBLAS and
    # OpenMP wait for each other ten times longer than they compute.
    # Content that collapsed to a few points has fewer clusters; the numbers say so by themselves.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = {
            "": _kmeans(points, num_clusters, seed, KMEANS_RESTARTS),
            "_ward": _ward(points, num_clusters, seed),
            "_gmm": mixture.fit_predict(content),
        }
    return {suffix: torch.from_numpy(numbers).long() for suffix, numbers in found.items()}


def kmeans(features: Tensor, num_clusters: int, seed: int, starts: int) -> Tensor:
    """Clusters of features (N, D) by k-means, with shape (N,) in int64.

    Arguments:
        features: What is clustered; no component is scaled against the others.
        num_clusters: The number of clusters to look for.
        seed: The seed of the starts.
        starts: How many there are; the best is kept, by inertia.
    """
    at_least("num_clusters", num_clusters, 1)
    points = _points("features", features, num_clusters)
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return torch.from_numpy(_kmeans(points, num_clusters, seed, starts)).long()


def _kmeans(points: np.ndarray, num_clusters: int, seed: int, starts: int) -> np.ndarray:
    found: np.ndarray = KMeans(num_clusters, n_init=starts, random_state=seed).fit_predict(points)
    return found


def clustering_metrics(clusters: Mapping[str, Tensor], labels: Tensor) -> dict[str, float]:
    """Agreement of clusters with labels: `clustering_accuracy`, `nmi` and `ari`.

    The accuracy is that of `matching`; the mutual information is normalised by the mean of the
    two entropies; the Rand index is adjusted for chance.

    Arguments:
        clusters: Integer clusters, with shape (N,), by the suffix of their metrics' names.
        labels: Integer labels, with shape (N,).
    """
    truth = whole_numbers("labels", labels)
    metrics: dict[str, float] = {}
    for suffix, found in clusters.items():
        metrics[f"clustering_accuracy{suffix}"] = matching(labels, found).accuracy
        numbers = whole_numbers("clusters", found)
        metrics[f"nmi{suffix}"] = float(normalized_mutual_info_score(truth, numbers))
        metrics[f"ari{suffix}"] = float(adjusted_rand_score(truth, numbers))
    return metrics


@dataclass(frozen=True)
class Matching:
    """How many images of each label are in each cluster, matched one to one.

    Arguments:
        counts: With shape (labels, clusters); matched ones are on the diagonal, and what has no
            match comes last.
        labels: The labels, matched ones in their order.
        clusters: The clusters.
    """

    counts: np.ndarray
    labels: list[int]
    clusters: list[int]

    @property
    def accuracy(self) -> float:
        """Share of all images whose cluster is matched with their label."""
        return float(self.counts.trace() / self.counts.sum())


def matching(labels: Tensor | np.ndarray, clusters: Tensor | np.ndarray) -> Matching:
    """Labels and clusters matched one to one, so that as many images as possible agree.

    Where there are more clusters than labels, the images of the clusters left over agree with
    none, and the other way round.

    Arguments:
        labels: Any whole numbers, with shape (N,).
        clusters: Any whole numbers, with shape (N,).

    References:
        The Hungarian method for the assignment problem (Kuhn, 1955).
    """
    label_names, label = np.unique(whole_numbers("labels", labels), return_inverse=True)
    cluster_names, cluster = np.unique(whole_numbers("clusters", clusters), return_inverse=True)
    if label.shape != cluster.shape:
        raise ValueError(
            f"labels, clusters: expected as many, got {len(label)} and {len(cluster)}"
        )
    counts = np.zeros((len(label_names), len(cluster_names)), np.int64)
    np.add.at(counts, (label, cluster), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    rows, columns = (
        np.concatenate((matched, np.setdiff1d(np.arange(size), matched)))
        for matched, size in zip((rows, columns), counts.shape, strict=True)
    )
    return Matching(
        counts[rows][:, columns], label_names[rows].tolist(), cluster_names[columns].tolist()
    )


def whole_numbers(name: str, values: Tensor | np.ndarray) -> np.ndarray:
    """The values as an array, if they are whole numbers with shape (N,), N at least 1."""
    numbers = torch.as_tensor(values).detach().cpu().numpy()
    if numbers.ndim != 1 or not numbers.size or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"{name}: expected whole numbers with shape (N,), N at least 1, got {numbers.dtype} "
            f"with shape {numbers.shape}"
        )
    return numbers


def _ward(points: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Clusters by Ward's criterion; of too many points, from some of them."""
    order = np.random.default_rng(seed).permutation(len(points))
    chosen, others = np.split(order, [WARD_MOST_IMAGES])
    model = AgglomerativeClustering(num_clusters, linkage="ward")
    clusters = np.empty(len(points), np.int64)
    clusters[chosen] = model.fit_predict(points[chosen])
    if len(others):
        means = [points[chosen[clusters[chosen] == i]].mean(axis=0) for i in range(num_clusters)]
        clusters[others] = pairwise_distances_argmin(points[others], np.stack(means))
    return clusters


def _points(name: str, features: Tensor, num_clusters: int) -> np.ndarray:
    """The features about their mean, in units of their overall spread."""
    if features.ndim != 2 or features.shape[1] < 1:
        raise ValueError(
            f"{name}: expected shape (N, D) with D at least 1, got {tuple(features.shape)}"
        )
    if len(features) < max(num_clusters, FEWEST_IMAGES):
        raise ValueError(
            f"{name}: expected at least {max(num_clusters, FEWEST_IMAGES)} images for "
            f"num_clusters={num_clusters}, got {len(features)}"
        )
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(dim=1).sum())
        raise ValueError(f"{name}: expected finite values, got {bad} images with others")

    points = features.detach().cpu().double()
    points = points - points.mean(dim=0)
    # One scale for all dimensions: it changes no distance ratio, and makes the mixture's smallest
    # variance a relative one.
    spread = points.square().mean().sqrt()
    return (points / spread if spread > 0 else points).numpy()
