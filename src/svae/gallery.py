"""What is drawn of a trained model: its parts decoded and handed to the figures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from svae import figures
from svae.checks import at_least
from svae.ctf import CTF
from svae.geometry import pixel_size, remove_pose, wrap_angle
from svae.inferred import Inferred
from svae.latents import Latents
from svae.metrics import angle_offsets, comparable_angles
from svae.model import SpatialVAE
from svae.noise import Noise

__all__ = ["Gallery", "couples", "spread"]

# More rows than this are more than one figure holds.
TRAVERSED = 16
# Rows of interpolations and of turned objects.
PAIRS, TURNED = 4, 4
# Of aligned clusters: rows, images in a row, and images that a mean is taken of.
CLUSTERS, MEMBERS, AVERAGED = 20, 10, 200


class Gallery:
    """Figures of one model. Images and latents may be on any device.

    Arguments:
        model: The trained model.
        examples: How many images a figure shows, and how many samples along a side.
        manifold_side: How many values of each component of z the manifold shows.
        steps: How many values of z a row of traversals or interpolations shows.
        seed: The seed of random samples.
    """

    def __init__(
        self,
        model: SpatialVAE,
        examples: int = 12,
        manifold_side: int = 16,
        steps: int = 9,
        seed: int = 1,
    ) -> None:
        self.model = model
        self.examples = at_least("examples", examples, 1)
        if examples > 12:
            raise ValueError(f"examples: expected at most 12, got {examples}")
        self.side = at_least("manifold_side", manifold_side, 2)
        self.steps = at_least("steps", steps, 2)
        self.seed = seed
        # Grey and RGB are drawn as they are; of any other number of channels, the first.
        self.shown = slice(None) if model.image_shape[0] in (1, 3) else slice(1)
        self.pixel_size = pixel_size(*model.image_shape[1:])
        self.std = getattr(model.priors["z"], "std", 1.0)

    def drawn(self, images: Tensor) -> Tensor:
        """What figures show of images (..., C, H, W): their first channel, if not grey or RGB."""
        return images[..., self.shown, :, :].cpu()

    def decode(self, latents: Latents, ctf: CTF | None = None) -> Tensor:
        """The expected images, with shape (B, C, H, W) on the CPU."""
        return self.model.decode(latents, ctf=ctf).cpu()

    def upright(self, z: Tensor) -> Tensor:
        """What is decoded from content (B, z_dim) without a pose."""
        return self.decode(Latents(z, torch.zeros(len(z)), torch.zeros(len(z), 2)))

    def of_content(self) -> Iterator[tuple[str, Figure]]:
        """What the generator has learned: `manifold`, or `traversals` of more than two dims."""
        if 1 <= self.model.z_dim <= 2:
            yield "manifold", self.manifold()[0]
        elif self.model.z_dim:
            yield "traversals", self.traversals()[0]

    def of_images(
        self,
        images: Tensor,
        inferred: Inferred,
        everyone: Inferred,
        label_names: Sequence[str] | None = None,
        ctf: CTF | None = None,
    ) -> Iterator[tuple[str, Figure]]:
        """What was inferred: `reconstructions`, `latents`, and what there is of the pose.

        That is `pose` or `pose_histogram`, `found_pose`, and `attention` of a posterior that has
        a lattice.

        Arguments:
            images: Some images, with shape (n, C, H, W).
            inferred: Of these images.
            everyone: Of as many images as the scatter plots are to show.
            label_names: The names of the labels.
            ctf: Of the images, if they come with one.
        """
        yield "reconstructions", self.reconstructions(images, inferred.latents, ctf)
        if not everyone.latents.isfinite():
            return
        if self.model.z_dim and len(everyone) > 1:
            z, label = everyone.latents.z, everyone.label
            yield "latents", figures.latent_figure(z, label, label_names)
        if (pose := self.pose(everyone)) is None:
            return
        yield pose
        yield "found_pose", self.found_pose(images, inferred, everyone)
        if (attention := self.attention(images, inferred, everyone)) is not None:
            yield "attention", attention

    def manifold(self) -> tuple[Figure, Tensor, Tensor]:
        """The plane of two components of z, or the line of one: the figure, z and the images."""
        z = figures.manifold_z(self.model.z_dim, self.side, std=self.std)
        images = self.upright(z)
        return figures.manifold_figure(self.drawn(images), self.side, std=self.std), z, images

    def traversals(self, dims: Sequence[int] | None = None) -> tuple[Figure, Tensor, Tensor]:
        """One component of z at a time, the others zero: the figure, z and the images."""
        chosen = list(range(self.model.z_dim))[:TRAVERSED] if dims is None else list(dims)
        z, values = figures.traversal_z(self.model.z_dim, self.steps, dims=chosen, std=self.std)
        images = self.upright(z)
        return figures.traversal_figure(self.drawn(images), chosen, values), z, images

    def samples(self, real: Tensor | None = None) -> tuple[Figure, Tensor, Tensor]:
        """Content from the prior (figure 5): the figure, z (examples^2, z_dim) and the images.

        Arguments:
            real: Images to be shown beside them, with shape (n, C, H, W).
        """
        index = torch.arange(self.examples**2)
        z = Noise(self.seed, "samples", index).normal("z", self.model.z_dim).float() * self.std
        images = self.upright(z)
        examples = None if real is None else self.drawn(real)
        return figures.samples_figure(self.drawn(images), examples=examples), z, images

    def path(self, z: Tensor, steps: int) -> Tensor:
        """Images without pose at equal steps between content (P, 2, z_dim): (P, S, C, H, W)."""
        along = torch.linspace(0, 1, steps).reshape(-1, 1)
        z = z.cpu()
        between = z[:, :1] * (1 - along) + z[:, 1:] * along  # (P, S, z_dim)
        return self.upright(between.flatten(0, 1)).unflatten(0, (len(z), steps))

    def interpolations(self, images: Tensor, z: Tensor) -> Figure:
        """Between the two images of each pair (P, 2, C, H, W) with content z (P, 2, z_dim)."""
        ends, between = self.drawn(images), self.drawn(self.path(z, self.steps))
        return figures.interpolation_figure(ends[:, 0], ends[:, 1], between)

    def rotations(self, z: Tensor, count: int = 12) -> tuple[Figure, Tensor]:
        """The first objects with content (B, z_dim) at all angles: the figure, and the images.

        Returns:
            The figure; the images with shape (R, A, C, H, W), R at most 4 and A `count`.
        """
        z = z[:TURNED]
        theta = torch.arange(count) * (2 * torch.pi / count)
        turned = Latents(
            z.cpu().repeat_interleave(count, 0),
            theta.repeat(len(z)),
            torch.zeros(len(z) * count, 2),
        )
        images = self.decode(turned).unflatten(0, (len(z), count))
        return figures.rotation_figure(self.drawn(images), torch.rad2deg(theta)), images

    def written_pose(self, latents: Latents) -> tuple[Tensor | None, Tensor | None]:
        """Angles (B,) in degrees and shifts (B, 2) in pixels, where they are inferred."""
        theta, shift = torch.rad2deg(wrap_angle(latents.theta)), latents.shift / self.pixel_size
        priors = self.model.priors
        return (
            theta.cpu() if "theta" in priors else None,
            shift.cpu() if "shift" in priors else None,
        )

    def reconstructions(self, images: Tensor, latents: Latents, ctf: CTF | None = None) -> Figure:
        """Inputs, reconstructions, and the same without their pose.

        With a CTF, reconstructions are seen through it and objects without pose are not.
        """
        scored = torch.zeros(self.model.image_shape[1:], dtype=torch.bool)
        scored.view(-1)[self.model.likelihood.scored_pixels.cpu()] = True
        seen, upright = self.decode(latents, ctf), self.decode(latents.without_pose())
        last = "pose removed"
        if ctf is not None:
            # The CTF takes most of the contrast, and the rows share one scale.
            upright = upright * (seen.std() / upright.std().clamp(min=1e-12))
            last = "object, scaled"
        return figures.reconstruction_figure(
            self.drawn(images),
            self.drawn(seen),
            self.drawn(upright),
            *self.written_pose(latents),
            scored=scored,
            rows=("input", "reconstruction", last),
        )

    def pose_removed(
        self, images: Tensor, latents: Latents, names: Sequence[str] | None = None
    ) -> tuple[Figure, Tensor, Tensor]:
        """Images with the inferred pose and size removed, beside what is generated upright.

        Returns:
            The figure; the aligned images and the generated ones, each with shape (B, C, H, W).
        """
        aligned = remove_pose(images.cpu(), *latents.map(Tensor.cpu).pose)
        generated = self.decode(latents.without_pose())
        figure = figures.reconstruction_figure(
            self.drawn(images),
            self.drawn(aligned),
            self.drawn(generated),
            *self.written_pose(latents),
            title="Images with their inferred pose removed",
            names=names,
            rows=("input", "moved back", "generated"),
        )
        return figure, aligned, generated

    def worst(
        self,
        images: Tensor,
        inferred: Inferred,
        names: Sequence[str],
        ctf: CTF | None = None,
    ) -> Figure:
        """Images that are reconstructed badly, the worst first; seen through their CTF, if any."""
        return figures.worst_figure(
            self.drawn(images),
            self.drawn(self.decode(inferred.latents, ctf)),
            inferred.log_likelihood.cpu(),
            names,
        )

    def inferred_pose(self, inferred: Inferred) -> figures.Pose:
        """Angles and shifts, where they are inferred."""
        latents, priors = inferred.latents, self.model.priors
        return (
            latents.theta if "theta" in priors else None,
            latents.shift if "shift" in priors else None,
        )

    def true_pose(self, inferred: Inferred, everyone: Inferred) -> figures.Pose:
        """What `inferred_pose` had to be, where that is known.

        True angles are turned by `angle_offsets`; of the angles at which an object looks the
        same, it is the nearest one.

        Arguments:
            inferred: Of some images.
            everyone: Of those from which the offset is found.
        """
        theta, shift = self.inferred_pose(inferred)
        true_shift = None if shift is None else inferred.shift
        if theta is None or inferred.theta is None:
            return None, true_shift
        own = _angles(inferred)
        # A test cut short may lack what is shown.
        offsets = angle_offsets(*own) | angle_offsets(*_angles(everyone))
        without_offset, true = comparable_angles(*own, offsets)
        return true + (own[0] - without_offset), true_shift

    def pose(self, inferred: Inferred) -> tuple[str, Figure] | None:
        """`pose` against the truth where it is known, else its `pose_histogram`."""
        theta, shift = self.inferred_pose(inferred)
        pairs = ((theta, inferred.theta), (shift, inferred.shift))
        if any(a is not None and b is not None for a, b in pairs):
            return "pose", figures.pose_figure(
                theta,
                inferred.theta,
                shift,
                inferred.shift,
                self.pixel_size,
                inferred.symmetry,
                inferred.reference_theta,
            )
        if theta is None and shift is None:
            return None
        return "pose_histogram", figures.pose_histogram_figure(theta, shift, self.pixel_size)

    def found_pose(self, images: Tensor, inferred: Inferred, everyone: Inferred) -> Figure:
        """The inferred pose drawn onto images; arguments as in `of_images`."""
        return figures.found_pose_figure(
            self.drawn(images),
            self.inferred_pose(inferred),
            self.true_pose(inferred, everyone),
            pixel_size=self.pixel_size,
        )

    @torch.no_grad()
    def attention(self, images: Tensor, inferred: Inferred, everyone: Inferred) -> Figure | None:
        """Attention beside images, if the posterior has a lattice; arguments as in `of_images`."""
        some = slice(figures.MOST_ATTENTION)
        images, inferred = images[some], inferred[some]
        # Of the image as it is: `pose_candidates` may have looked at turns of it, lattice and all.
        q: Any = self.model.infer(images.to(self.model.grid), candidates=1)
        lattice = getattr(q, "lattice", None)
        if lattice is None or len(lattice) < 2:
            return None
        inferred = replace(inferred, latents=q.mode().map(Tensor.cpu))
        return figures.attention_figure(
            self.drawn(images),
            q.weights,
            lattice,
            self.inferred_pose(inferred),
            self.true_pose(inferred, everyone),
            pixel_size=self.pixel_size,
        )

    def aligned(
        self,
        images_of: Callable[[Tensor], Tensor],
        inferred: Inferred,
        clusters: Tensor,
        label_names: Sequence[str] | None = None,
    ) -> Figure:
        """The first 20 clusters: the mean of at most 200 images without pose, and some of those.

        Arguments:
            images_of: From indices (B,) to images (B, C, H, W), for one cluster at a time.
            inferred: Of N images.
            clusters: Their clusters, with shape (N,).
            label_names: The names of the labels.
        """
        every = figures.clusters_of(clusters, inferred.label)
        found = every[:CLUSTERS]
        means, members = [], []
        for cluster in found:
            rows = spread((clusters == cluster.number).nonzero().squeeze(1), AVERAGED)
            own = inferred[rows.to(inferred.index.device)]
            latents = own.latents.map(Tensor.cpu)
            images = self.drawn(images_of(own.index.cpu()))
            upright = remove_pose(images, *latents.pose)
            means.append(upright.mean(0))
            members.append(spread(upright, MEMBERS))
        return figures.aligned_figure(
            found, torch.stack(means), members, label_names, total=len(every)
        )

    def confusion(
        self, inferred: Inferred, clusters: Tensor, label_names: Sequence[str] | None = None
    ) -> Figure:
        """Labels against clusters (N,) of the images."""
        assert inferred.label is not None
        return figures.confusion_figure(inferred.label, clusters, label_names)


def _angles(inferred: Inferred) -> tuple[Tensor, Tensor, Tensor]:
    """Inferred and true angles, and orders of symmetry, each with shape (B,) in float64."""
    assert inferred.theta is not None
    theta, true = inferred.latents.theta.cpu().double(), inferred.theta.cpu().double()
    known = inferred.symmetry
    return theta, true, torch.ones_like(true) if known is None else known.cpu().double()


def spread(rows: Tensor, count: int) -> Tensor:
    """At most `count` of the rows, evenly spread."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count).round().long()]


def couples(count: int) -> Tensor:
    """Which of `count` images are interpolated: (P, 2), P at most 4.

    Each with one from the other half: neighbours in a data set are often of one kind.
    """
    half = count // 2
    first = torch.arange(min(PAIRS, half))
    return torch.stack((first, first + half), dim=1)
