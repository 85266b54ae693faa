"""Do clusters of the latent content match labels that training never saw?"""

import warnings

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from svae.checks import at_least

__all__ = ["clustering_metrics", "hungarian_accuracy"]

# Smallest variance of a mixture component along any direction, relative to the mean variance of
# the features: 1 % of their spread, so that no component shrinks onto a handful of images.
GMM_VARIANCE_FLOOR = 1e-4
# Enough for the mixture to converge; sklearn's 100 often are not.
GMM_MAX_ITERATIONS = 1000


def clustering_metrics(
    features: Tensor, labels: Tensor, num_clusters: int, seed: int
) -> dict[str, float]:
    """Agreement of clusters with labels, which are looked at only when the clusters are fixed.

    `clustering_accuracy`, `nmi` and `ari` are of k-means (the best of 20 starts by inertia), as in
    the TARGET-VAE code; the same with `_gmm` of a Gaussian mixture with full covariances (the best
    of 5 starts by likelihood), which does not suppose that clusters are round. The mutual
    information is normalised by the mean of the two entropies; the Rand index is adjusted.

    Arguments:
        features: Latent content, with shape (N, D).
        labels: Integer labels, with shape (N,).
        num_clusters: The number of clusters to look for.
        seed: The seed of the starts.
    """
    at_least("num_clusters", num_clusters, 1)
    points = _points(features, num_clusters)
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"labels: expected shape {tuple(features.shape[:1])} like the features, "
            f"got {tuple(labels.shape)}"
        )

    kmeans = KMeans(num_clusters, n_init=20, random_state=seed)
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
        found = {"": kmeans.fit_predict(points), "_gmm": mixture.fit_predict(points)}

    truth = labels.detach().cpu().numpy()
    metrics: dict[str, float] = {}
    for suffix, clusters in found.items():
        metrics[f"clustering_accuracy{suffix}"] = hungarian_accuracy(
            labels, torch.from_numpy(clusters)
        )
        metrics[f"nmi{suffix}"] = float(normalized_mutual_info_score(truth, clusters))
        metrics[f"ari{suffix}"] = float(adjusted_rand_score(truth, clusters))
    return metrics


def hungarian_accuracy(labels: Tensor, clusters: Tensor) -> float:
    """Share of images whose cluster is matched to their label, for the best one-to-one matching.

    Where there are more clusters than labels, the images of the clusters left over count as wrong,
    and the other way round.

    Arguments:
        labels: Integer labels, with shape (N,).
        clusters: Integer clusters, with shape (N,).

    References:
        The Hungarian method for the assignment problem (Kuhn, 1955).
    """
    if labels.ndim != 1 or labels.shape != clusters.shape or not len(labels):
        raise ValueError(
            f"labels, clusters: expected one shape (N,), N at least 1, got "
            f"{tuple(labels.shape)} and {tuple(clusters.shape)}"
        )
    # Whatever the values are, count by their rank.
    label_names, label = labels.detach().cpu().unique(return_inverse=True)
    cluster_names, cluster = clusters.detach().cpu().unique(return_inverse=True)
    cells = label * len(cluster_names) + cluster
    counts = torch.bincount(cells, minlength=len(label_names) * len(cluster_names))
    counts = counts.unflatten(0, (len(label_names), len(cluster_names))).numpy()
    matched = counts[linear_sum_assignment(counts, maximize=True)]
    return float(matched.sum() / len(labels))


def _points(features: Tensor, num_clusters: int) -> np.ndarray:
    """The features about their mean, in units of their overall spread."""
    if features.ndim != 2 or features.shape[1] < 1:
        raise ValueError(
            f"features: expected shape (N, D) with D at least 1, got {tuple(features.shape)}"
        )
    if len(features) < num_clusters:
        raise ValueError(
            f"features: expected at least num_clusters={num_clusters} images, got {len(features)}"
        )
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(dim=1).sum())
        raise ValueError(f"features: expected finite values, got {bad} images with others")

    points = features.detach().cpu().double()
    points = points - points.mean(dim=0)
    # One scale for all dimensions: it changes no distance ratio, and makes the mixture's smallest
    # variance a relative one.
    spread = points.square().mean().sqrt()
    return (points / spread if spread > 0 else points).numpy()
