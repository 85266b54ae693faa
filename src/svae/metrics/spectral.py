r"""Clusters of images that look alike once their pose is removed.

A content z of a few numbers keeps what tells most images apart, and not all that tells two kinds
of object apart. The images themselves keep it, and with the pose removed they can be laid over
each other. What is near in them is reliable, what is far is not: so each image is joined to the
few that are most like it, and clusters are what a walk from neighbour to neighbour seldom leaves.

With distances :math:`d_{ij}` between images and :math:`s_i` that to the 7th nearest, neighbours
are joined by

.. math:: A_{ij} = \exp(-d_{ij}^2 / s_i s_j).

Eigenvectors of :math:`D^{-1/2} A D^{-1/2}`, multiplied by the t-th power of their eigenvalues
:math:`\lambda_i`, are where t steps of a random walk lead from each image; their directions are
clustered by k-means. The number of steps is that after which as many directions are left as there
are clusters, :math:`\sum_i \lambda_i^{2t} = K`.

References:
    On spectral clustering: analysis and an algorithm (Ng, Jordan and Weiss, 2001).
    Self-tuning spectral clustering (Zelnik-Manor and Perona, 2004), the scales s.
    Diffusion maps (Coifman and Lafon, 2006), the powers.
"""

import math

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import eigsh
from torch import Tensor
from torch.nn.functional import avg_pool2d

from svae.geometry import remove_pose
from svae.latents import Latents
from svae.metrics.clustering import FEWEST_IMAGES, kmeans

__all__ = ["spectral_clusters", "small_upright"]

# Of the images' sides, in pixels: strokes and domains are told apart, noise is averaged.
_SIDE = 32
# Twice and half as many neighbours, and three times as many and as few steps, were within 2 % of
# accuracy on MNIST(U) (docs/notes.md).
_NEIGHBOURS, _SCALE = 10, 7
# For each cluster; what the steps leave of others is little.
_VECTORS = 4
_MOST_STEPS = 1e5
_STARTS = 20
#: So many images are clustered, and each of the others joins the one most like it: 0.4 GB.
MOST_IMAGES = 10_000
# Distances are found for so many images at a time.
_ROWS = 1000


def small_upright(image: Tensor, latents: Latents) -> Tensor:
    """Images with their pose removed, made smaller: vectors that can be compared.

    Arguments:
        image: With shape (B, C, H, W).
        latents: Their pose.

    Returns:
        With shape (B, D), D at most C x 32 x 32.
    """
    upright = remove_pose(image, *latents.pose)
    factor = math.ceil(max(image.shape[-2:]) / _SIDE)
    pooled = avg_pool2d(upright, factor, ceil_mode=True, count_include_pad=False)
    return pooled.flatten(1)


def spectral_clusters(images: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Clusters of images by spectral clustering of nearest neighbours, made without labels.

    Arguments:
        images: What `small_upright` makes of N images, with shape (N, D).
        num_clusters: The number of clusters to look for.
        seed: The seed of the starts, and of the choice where there are more than 10,000 images.

    Returns:
        The number of each image's cluster, with shape (N,) in int64.
    """
    if images.ndim != 2 or len(images) < max(num_clusters, FEWEST_IMAGES):
        raise ValueError(
            f"images: expected shape (N, D), N at least {max(num_clusters, FEWEST_IMAGES)}, "
            f"got {tuple(images.shape)}"
        )
    images = images.float().cpu()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    chosen, others = order[:MOST_IMAGES].sort().values, order[MOST_IMAGES:]
    found = kmeans(_walks(images[chosen], num_clusters, seed), num_clusters, seed, _STARTS)
    clusters = torch.empty(len(images), dtype=torch.int64)
    clusters[chosen] = found
    if len(others):
        _, nearest = _nearest(images[others], images[chosen], 1)
        clusters[others] = found[nearest.squeeze(1)]
    return clusters


def _nearest(images: Tensor, among: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Squared distances to the nearest of others, and which these are: (N, count) each."""
    squares, found = among.square().sum(1), []
    for part in images.split(_ROWS):
        distance = part.square().sum(1, keepdim=True) + squares - 2 * part @ among.T
        found.append(distance.clamp(min=0).topk(count, largest=False))
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _walks(images: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Where a random walk from each image leads, as directions: (N, at most 4 num_clusters)."""
    count, vectors = len(images), _VECTORS * num_clusters
    neighbours = min(_NEIGHBOURS, count - 1)
    # One more, as the nearest of all is the image itself; of equal images perhaps another.
    squared, nearest = _nearest(images, images, neighbours + 1)
    itself = nearest == torch.arange(count).unsqueeze(1)
    itself[~itself.any(1), -1] = True
    squared, nearest = (value[~itself].unflatten(0, (count, -1)) for value in (squared, nearest))
    scale = squared[:, min(_SCALE, neighbours) - 1].sqrt().clamp(min=1e-6)
    weights = torch.exp(-squared / (scale.unsqueeze(1) * scale[nearest])).double().numpy()
    rows = np.repeat(np.arange(count), neighbours)
    joined = csr_matrix((weights.ravel(), (rows, nearest.numpy().ravel())), (count, count))
    joined = joined.maximum(joined.T)
    half = diags(1 / np.sqrt(joined.sum(axis=1).A1))
    walk = half @ joined @ half
    if count <= 2 * vectors:  # more than half of all vectors are not found one by one
        values, directions = np.linalg.eigh(walk.toarray())
        values, directions = values[-vectors:], directions[:, -vectors:]
    else:
        # To the last digit: with less, equal eigenvalues (parts that nothing joins) are missed.
        start = np.random.default_rng(seed).uniform(size=count)
        values, directions = eigsh(walk, k=vectors, which="LA", v0=start)
    values = values.clip(0, 1)
    lead = torch.from_numpy(directions * values ** _steps(values, num_clusters))
    return lead / lead.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _steps(values: np.ndarray, left: int) -> float:
    """After how many steps the squares of eigenvalues (n,) from 0 to 1 add up to `left`."""
    low, high = -2.0, math.log10(_MOST_STEPS)
    for _ in range(50):
        middle = (low + high) / 2
        many = (values ** (2 * 10**middle)).sum() > left
        low, high = (middle, high) if many else (low, middle)
    return float(10**high)
