r"""Clusters of images that look alike once their pose is removed.

A content z of a few numbers keeps what tells most images apart, and not all that tells two kinds
of object apart. The images themselves keep it, and with the pose removed they can be laid over
each other. What is near in them is reliable, what is far is not: so each image is joined to the
few that are most like it, and clusters are what a walk from neighbour to neighbour seldom leaves.

With distances :math:`d_{ij}` between images and :math:`s_i` that to the 7th nearest, neighbours
are joined by

.. math:: A_{ij} = \exp(-d_{ij}^2 / s_i s_j),

and each image with itself by 1. Eigenvectors of :math:`D^{-1/2} A D^{-1/2}`, multiplied by the
t-th power of their eigenvalues :math:`\lambda_i`, are where t steps of a random walk lead from
each image; their directions are clustered by k-means. The number of steps is that after which as
many directions are left as there are clusters, :math:`\sum_i \lambda_i^{2t} = K`.

References:
    On spectral clustering: analysis and an algorithm (Ng, Jordan and Weiss, 2001).
    Self-tuning spectral clustering (Zelnik-Manor and Perona, 2004), the scales s.
    Diffusion maps (Coifman and Lafon, 2006), the powers.
"""

import math

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags, eye
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackError, eigsh
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import avg_pool2d

from svae.errors import one_line
from svae.geometry import remove_pose, without_background
from svae.latents import Latents
from svae.metrics.clustering import FEWEST_IMAGES, kmeans

__all__ = ["NoClusters", "small_upright", "spectral_clusters"]


class NoClusters(RuntimeError):
    """No clusters were found; why is in its message."""


# Of the images' sides, in pixels: strokes and domains are told apart, noise is averaged.
_SIDE = 32
# Of MNIST(U), docs/notes.md has what other numbers give.
_NEIGHBOURS, _SCALE, _MOST_NEIGHBOURS = 10, 7, 640
# For each cluster, but not so many more than there are clusters: the steps leave little of others.
_VECTORS, _MOST_MORE = 4, 50
_MOST_STEPS = 1e5
_STARTS = 20
# The subspace that eigenvectors are looked for in, and how often at most.
_SUBSPACE, _RESTARTS = 80, 1000
#: So many images are clustered, and each of the others joins the one most like it.
MOST_IMAGES = 10_000
# Distances are found for so many images at a time: 40 MB.
_ROWS = 1000


def small_upright(image: Tensor, latents: Latents) -> Tensor:
    """Images with their pose removed, made smaller: vectors that can be compared.

    Arguments:
        image: With shape (B, C, H, W).
        latents: Their pose.

    Returns:
        With shape (B, D), D at most C x 32 x 32.
    """
    upright = remove_pose(without_background(image), *latents.pose)
    factor = math.ceil(max(image.shape[-2:]) / _SIDE)
    return avg_pool2d(upright, factor, ceil_mode=True).flatten(1)


def spectral_clusters(images: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Clusters of images by spectral clustering of nearest neighbours, made without labels.

    Arguments:
        images: What `small_upright` makes of N images, with shape (N, D).
        num_clusters: The number of clusters to look for.
        seed: The seed of the starts, and of the choice where there are more than 10,000 images.

    Returns:
        The number of each image's cluster, with shape (N,) in int64.

    Raises:
        NoClusters: The eigenvectors were not found in a bounded time.
    """
    if images.ndim != 2 or len(images) < max(num_clusters, FEWEST_IMAGES):
        raise ValueError(
            f"images: expected shape (N, D), N at least {max(num_clusters, FEWEST_IMAGES)}, "
            f"got {tuple(images.shape)}"
        )
    images = images.float().cpu()
    images = images - images.mean(0)  # squares of large numbers would lose the distances
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    chosen, others = order[:MOST_IMAGES].sort().values, order[MOST_IMAGES:]
    with threadpool_limits(limits=1):  # as in `svae.metrics.clustering`
        walks = _walks(images[chosen], num_clusters, seed)
    found = kmeans(walks, num_clusters, seed, _STARTS)
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
    count = len(images)
    joined = _joined(images, num_clusters)
    half = diags(1 / np.sqrt(joined.sum(axis=1).A1))
    walk = half @ joined @ half
    vectors = min(_VECTORS * num_clusters, num_clusters + _MOST_MORE)
    if count <= 2 * max(vectors, _SUBSPACE):
        values, directions = np.linalg.eigh(walk.toarray())
        values, directions = values[-vectors:], directions[:, -vectors:]
    else:
        # To the last digit: with less, equal eigenvalues (parts that nothing joins) are missed.
        start = np.random.default_rng(seed).uniform(size=count)
        subspace = max(2 * vectors + 1, _SUBSPACE)
        try:
            values, directions = eigsh(
                walk, k=vectors, which="LA", v0=start, ncv=subspace, maxiter=_RESTARTS
            )
        except ArpackError as error:
            raise NoClusters(f"spectral clustering: {one_line(error)}") from error
    values = values.clip(0, 1)
    lead = torch.from_numpy(directions * values ** _steps(values, num_clusters))
    return lead / lead.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _joined(images: Tensor, num_clusters: int) -> csr_matrix:
    """The weights A between neighbours: (N, N), of no more parts than there are clusters.

    Where images are so alike that their nearest are copies of each other, they fall into many
    parts, and nothing says which of these belong together; more neighbours do.
    """
    count, wanted = len(images), _NEIGHBOURS
    while True:
        neighbours = min(wanted, count - 1)
        # One more, as the nearest of all is the image itself; of equal images perhaps another.
        squared, nearest = _nearest(images, images, neighbours + 1)
        itself = nearest == torch.arange(count).unsqueeze(1)
        itself[~itself.any(1), -1] = True
        squared, nearest = (v[~itself].unflatten(0, (count, -1)) for v in (squared, nearest))
        scale = squared[:, min(_SCALE * wanted // _NEIGHBOURS, neighbours) - 1].sqrt()
        # Copies have no distance: a thousandth of what is usual.
        scale = scale.clamp(min=max(1e-3 * float(scale.median()), 1e-6))
        # No weight is zero: a part that nothing leaves has no direction.
        alike = torch.exp(-squared / (scale.unsqueeze(1) * scale[nearest])).double()
        weights = alike.clamp(min=1e-12).numpy()
        rows = np.repeat(np.arange(count), neighbours)
        joined = csr_matrix((weights.ravel(), (rows, nearest.numpy().ravel())), (count, count))
        joined = joined.maximum(joined.T) + eye(count, format="csr")
        parts, _ = connected_components(joined, directed=False)
        if parts <= num_clusters or neighbours == min(count - 1, _MOST_NEIGHBOURS):
            return joined
        wanted *= 2


def _steps(values: np.ndarray, left: int) -> float:
    """After how many steps the squares of eigenvalues (n,) from 0 to 1 add up to `left`."""
    low, high = -2.0, math.log10(_MOST_STEPS)
    for _ in range(50):
        middle = (low + high) / 2
        many = (values ** (2 * 10**middle)).sum() > left
        low, high = (middle, high) if many else (low, middle)
    return float(10**high)
