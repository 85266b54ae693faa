"""Which particles are averaged together: classes of their content, and slices along each axis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svae.checks import at_least
from svae.metrics.clustering import kmeans

__all__ = ["Groups"]

# More starts find the same clusters of a hundred thousand particles.
_STARTS = 10
# Of each axis: so many slices of equally many particles, and so many axes at most.
SLICES, AXES = 7, 8


@dataclass(frozen=True)
class Groups:
    """Particles put together by their content.

    Arguments:
        classes: The class of each particle, from 0, with shape (N,); no class is empty.
        axes: Components of z, those along which particles differ most.
        slices: Along each axis, which part of the particles each belongs to, from 0, with shape
            (N, A).
        z: The mean content of every group, classes first, then the slices of one axis after the
            other, with shape (G, z_dim).
        counts: The particles of each group, with shape (G,).
    """

    classes: Tensor
    axes: list[int]
    slices: Tensor
    z: Tensor
    counts: Tensor

    @staticmethod
    def of(z: Tensor, classes: int, seed: int) -> Groups:
        """Groups of content (N, z_dim).

        Classes are clusters by k-means, of 10 starts the best, numbered along the direction in
        which they differ most: neighbours have neighbouring numbers. Slices hold equally many
        particles, those with small values first.

        Arguments:
            z: The content, with shape (N, z_dim).
            classes: How many classes to look for; there are as many as that or as particles, and
                one where there is no content.
            seed: The seed of the starts.
        """
        at_least("classes", classes, 1)
        z = z.cpu().double()
        count, dims = z.shape
        numbers = torch.zeros(count, dtype=torch.int64)
        if dims and min(classes, count) > 1:
            numbers = _in_order(kmeans(z, min(classes, count), seed, _STARTS), z)
        spread = (z - z.mean(0)).square().sum(0)
        axes = spread.argsort(descending=True)[:AXES].sort().values.tolist()
        parts = min(SLICES, count)
        rank = z[:, axes].argsort(dim=0, stable=True).argsort(0)
        slices = rank * parts // count
        sizes = [int(numbers.max()) + 1] + [parts] * len(axes)
        members = _members(numbers, slices, sizes)
        sums = z.new_zeros(sum(sizes), dims)
        counts = torch.zeros(sum(sizes), dtype=torch.int64)
        for column in members.unbind(1):
            sums.index_add_(0, column, z)
            counts.index_add_(0, column, torch.ones_like(column))
        return Groups(numbers, axes, slices, (sums / counts.unsqueeze(1)).float(), counts)

    @property
    def num_classes(self) -> int:
        return int(self.classes.max()) + 1

    @property
    def num_slices(self) -> int:
        """The slices of an axis."""
        return (len(self.counts) - self.num_classes) // max(1, len(self.axes))

    @property
    def members(self) -> Tensor:
        """The groups that each particle belongs to, with shape (N, 1 + A)."""
        sizes = [self.num_classes] + [self.num_slices] * len(self.axes)
        return _members(self.classes, self.slices, sizes)

    def of_classes(self, values: Tensor) -> Tensor:
        """Of what there is for each group (G, ...), the classes': (K, ...)."""
        return values[: self.num_classes]

    def of_slices(self, values: Tensor) -> Tensor:
        """Of what there is for each group (G, ...), the slices': (A, S, ...)."""
        return values[self.num_classes :].unflatten(0, (len(self.axes), self.num_slices))


def _members(classes: Tensor, slices: Tensor, sizes: list[int]) -> Tensor:
    first = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
    return torch.cat((classes.unsqueeze(1), slices), 1) + first


def _in_order(clusters: Tensor, z: Tensor) -> Tensor:
    """Clusters numbered anew, along the principal axis of their means."""
    found, clusters = clusters.unique(return_inverse=True)
    means = torch.stack([z[clusters == number].mean(0) for number in range(len(found))])
    axis = torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[0]
    # An axis has no direction: the one in which its largest component grows.
    axis = axis * axis[axis.abs().argmax()].sign()
    return (means @ axis).argsort().argsort()[clusters]
