"""The files and figures that `svae.encode` writes of particles."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from svae import figures
from svae.checks import at_least, positive
from svae.ctf import CTF
from svae.datasets.base import Batch, ImageSource
from svae.files import whole_file
from svae.formats.cryosparc import CsTable, write_cs
from svae.formats.mrc import write_stack
from svae.formats.particles import ParticleSet
from svae.formats.poses import to_relion
from svae.formats.star import write_star
from svae.gallery import Gallery, spread
from svae.inferred import Inferred
from svae.latents import Latents
from svae.particle_outputs.align import align
from svae.particle_outputs.averages import Averages, squared_ctf
from svae.particle_outputs.groups import Groups
from svae.particle_outputs.relion import linked, tell_relion
from svae.particle_outputs.tables import (
    Found,
    check_units,
    cs_table,
    in_3d,
    model_classes,
    star_table,
)

__all__ = ["ParticleOutputs"]

log = logging.getLogger(__name__)

# What a conformation movie passes through: the values of 24 particles in 25.
_FROM, _TO = 0.02, 0.98
_SHOWN = 12


@dataclass(frozen=True)
class ParticleOutputs:
    """Writes what was inferred from particles into a folder.

    Arguments:
        gallery: Of the model.
        particles: Where the particles lie, in the order of their index; None where no file has
            them, so that there are no tables to write.
        pixel_size: Å per pixel of the images that the model sees, where that is known.
        classes: How many classes to look for; 0 for none, and no averages.
        aligned: Whether `aligned.mrcs` is written.
        frames: The frames of a conformation movie.
        snr: What averages suppose where CTFs are known (`Averages`).

    Raises:
        ValueError: An option is out of its range, or what is asked for cannot be written.
    """

    gallery: Gallery
    particles: ParticleSet | None
    pixel_size: float | None
    classes: int = 10
    aligned: bool = False
    frames: int = 24
    snr: float = 0.1

    def __post_init__(self) -> None:
        at_least("classes", self.classes, 0)
        at_least("frames", self.frames, 2)
        positive("snr", self.snr)
        if not isinstance(self.aligned, bool):
            raise ValueError(f"aligned: expected true or false, got {self.aligned!r}")
        channels, height, width = self.gallery.model.image_shape
        if channels != 1 or height != width:
            raise ValueError(
                "classes, aligned: expected grey square images to align and average, got "
                f"{channels} channels of {height}x{width} pixels; use classes=0 aligned=false"
            )
        if self.particles is not None:
            check_units(self.particles)
            if self._posed and (number := in_3d(self.particles)):
                log.warning(
                    "%s: rlnAngleRot or rlnAngleTilt is not 0 for %d of %d particles, as after a "
                    "3D refinement; they do not belong to the rlnAnglePsi and offsets that are "
                    "written, so that the star is for 2D work only",
                    *(self.particles.source, number, len(self.particles)),
                )

    def groups(self, z: Tensor, seed: int) -> Groups | None:
        """The classes of content (N, z_dim), where any are wanted; the seed is k-means's."""
        return Groups.of(z, self.classes, seed) if self.classes else None

    def write(
        self,
        folder: Path,
        inferred: Inferred,
        std: Latents,
        images: ImageSource,
        batches: Callable[[], Iterable[Batch]],
        groups: Groups | None,
    ) -> None:
        """Write tables, averages, movies and figures; nothing of the particles' own is touched.

        Where they are is told in the log.

        Arguments:
            folder: Where to; figures go into its folder `figures`.
            inferred: Of all N images, in the order of their index.
            std: The standard deviations, with shape (N, ...).
            images: The images.
            batches: Gives all of them in their order, a batch at a time.
            groups: From `groups`, of the same images.
        """
        if self.particles is not None:
            self._write_tables(folder, self.particles, inferred, std, groups)
        if groups is None and not self.aligned:
            return
        averages = self._averages(groups)
        upright = self._aligned(batches(), inferred.latents, groups, averages)
        if self.aligned:
            self._write_stack(folder / "aligned.mrcs", upright, len(inferred))
        for _ in upright:  # for the averages, where no file took them
            pass
        if groups is not None and averages is not None:
            means = averages.means()
            self._write_averages(folder, groups, means, inferred.latents.z)
            rows = spread(torch.arange(len(inferred)), _SHOWN)
            drawn = dict(self.drawn(groups, means, inferred, images[rows]["image"], rows))
            pose = self.gallery.inferred_pose(inferred)
            if any(part is not None for part in pose):
                size = self.gallery.pixel_size
                drawn["pose_histogram"] = figures.pose_histogram_figure(*pose, size)
            for name, figure in drawn.items():
                figure.savefig(folder / "figures" / f"{name}.png")
            log.info("%d classes: %s", groups.num_classes, folder / "class_averages.mrcs")

    def means(self, batches: Iterable[Batch], inferred: Inferred, groups: Groups) -> Tensor:
        """The average of every group (G, N, N), from the same images in the same order."""
        averages = self._averages(groups)
        assert averages is not None
        for _ in self._aligned(batches, inferred.latents, groups, averages):
            pass
        return averages.means()

    def drawn(
        self, groups: Groups, means: Tensor, inferred: Inferred, images: Tensor, rows: Tensor
    ) -> Iterator[tuple[str, Figure]]:
        """The figures of averages: `class_averages`, `slices` and `particles`.

        Arguments:
            groups: Of N particles.
            means: Their averages, with shape (G, H, W).
            inferred: Of the N particles.
            images: Some of them, at most 12, with shape (B, 1, H, W).
            rows: Which of the N these are, with shape (B,).
        """
        means = means.unsqueeze(1)
        generated = self.gallery.upright(groups.z)
        parts = (groups.of_classes(values) for values in (means, generated, groups.counts))
        yield "class_averages", figures.class_averages_figure(*parts)
        if groups.axes:
            own = torch.arange(len(groups.axes))
            yield (
                "slices",
                figures.slices_figure(
                    groups.of_slices(means),
                    groups.of_slices(generated),
                    groups.of_slices(groups.z)[own, :, groups.axes],
                    groups.axes,
                    int(groups.of_slices(groups.counts).max()),
                ),
            )
        latents = inferred.latents[rows]
        theta, shift = self.gallery.written_pose(latents)
        if theta is None and shift is None:
            return
        classes = groups.classes[rows]
        psi, offset = (torch.from_numpy(value) for value in self._poses(latents))
        sizes = self._sizes(latents)
        yield (
            "particles",
            figures.particles_figure(
                images,
                align(images[:, 0].cpu(), psi, offset, sizes).unsqueeze(1),
                groups.of_classes(means)[classes],
                self.gallery.decode(latents.without_pose()),
                theta,
                shift,
                classes + 1,
            ),
        )

    # ---- poses and tables

    @property
    def _size(self) -> int:
        return self.gallery.model.image_shape[-1]

    @property
    def _posed(self) -> bool:
        return bool({"theta", "shift"} & self.gallery.model.priors.keys())

    def _poses(self, latents: Latents, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        theta, shift = (value.cpu().double().numpy() for value in (latents.theta, latents.shift))
        return to_relion(theta, shift, self._size, self._size, scale)

    def _sizes(self, latents: Latents) -> Tensor | None:
        """Logarithms of sizes (B,), where they are inferred."""
        return latents.log_scale.cpu() if "scale" in self.gallery.model.priors else None

    def found(
        self, particles: ParticleSet, inferred: Inferred, std: Latents, groups: Groups | None
    ) -> Found:
        """What the tables say of particles."""
        posed, sized = self._posed, "scale" in self.gallery.model.priors
        psi, offset = self._poses(inferred.latents, particles.width / self._size)
        scale = inferred.latents.scale
        return Found(
            psi if posed else None,
            offset if posed else None,
            None if groups is None else groups.classes.numpy(),
            None if inferred.peak is None else inferred.peak.numpy(),
            inferred.latents.z.numpy(),
            std.z.numpy(),
            scale.numpy() if sized else None,
            (scale * std.log_scale).numpy() if sized else None,
        )

    def _write_tables(
        self,
        folder: Path,
        particles: ParticleSet,
        inferred: Inferred,
        std: Latents,
        groups: Groups | None,
    ) -> None:
        particles = particles.select(inferred.index.numpy())
        found = self.found(particles, inferred, std, groups)
        parts = {folder / "particles": np.arange(len(particles))}
        if groups is not None:
            for number in range(groups.num_classes):
                rows = (groups.classes == number).nonzero()[:, 0].numpy()
                path = folder / "classes" / f"class_{number + 1:03d}"
                parts[path] = rows
                with whole_file(path.with_suffix(".npy")) as file:
                    np.save(file, particles.rows[rows], allow_pickle=False)
        named = linked(particles, folder / "stacks")
        star = star_table(named, found)
        cs = cs_table(particles, found) if isinstance(particles.table, CsTable) else None
        for path, rows in parts.items():
            write_star(path.with_suffix(".star"), star.select(rows))
            if cs is not None:
                write_cs(path.with_suffix(".cs"), cs.select(rows))
        tell_relion(folder / "particles.star", particles, named.stacks)

    # ---- images

    def _averages(self, groups: Groups | None) -> Averages | None:
        return None if groups is None else Averages(len(groups.counts), self._size, self.snr)

    def _aligned(
        self,
        batches: Iterable[Batch],
        latents: Latents,
        groups: Groups | None,
        averages: Averages | None,
    ) -> Iterator[np.ndarray]:
        """The aligned images (B, N, N) batch by batch, which are added to averages on the way."""
        device, start = self.gallery.model.grid.device, 0
        psi, offset = (torch.from_numpy(value) for value in self._poses(latents))
        sizes = self._sizes(latents)
        members = None if groups is None else groups.members
        for batch in batches:
            rows = slice(start, start + len(batch["image"]))
            start = rows.stop
            images = batch["image"].to(device)
            angle, by = psi[rows], offset[rows]
            log_scale = None if sizes is None else sizes[rows]
            ctf = None if averages is None else CTF.of(batch)
            plain = None
            if self.aligned or ctf is None:
                plain = align(images[:, 0], angle, by, log_scale)
            if averages is not None and members is not None:
                if ctf is None:
                    assert plain is not None
                    averages.add(plain, members[rows])
                else:
                    ctf = ctf.to(device)
                    twice = align(ctf.filtered(images)[:, 0], angle, by, log_scale)
                    squared = squared_ctf(ctf, angle, self._size, log_scale)
                    averages.add(twice, members[rows], squared)
            if plain is not None:
                yield plain.cpu().numpy()

    def _write_stack(self, path: Path, images: Iterable[np.ndarray], count: int) -> None:
        write_stack(path, images, count, self._size, self._size, self.pixel_size)

    def _write_averages(self, folder: Path, groups: Groups, means: Tensor, z: Tensor) -> None:
        """The averages of classes with their star, and the movies."""
        classes, counts = groups.of_classes(means), groups.of_classes(groups.counts)
        name = "class_averages.mrcs"
        self._write_stack(folder / name, [classes.numpy()], len(classes))
        own = groups.of_classes(groups.z)
        write_star(folder / "model_classes.star", model_classes(name, counts.numpy(), own.numpy()))
        for axis in groups.axes:
            frames = self.along(z, axis)
            stem = f"conformation_z{axis}"
            self._write_stack(folder / f"{stem}.mrcs", [frames[:, 0].numpy()], len(frames))
            figures.write_gif(folder / "figures" / f"{stem}.gif", frames)

    def along(self, z: Tensor, axis: int) -> Tensor:
        """What is decoded on the way of one component of z through the particles' (N, z_dim).

        From its quantile 0.02 to that of 0.98, the others at their medians.

        Returns:
            The frames, with shape (F, 1, H, W).
        """
        low, high = z[:, axis].quantile(torch.tensor([_FROM, _TO]).to(z)).tolist()
        path = z.median(0).values.repeat(self.frames, 1)
        path[:, axis] = torch.linspace(low, high, self.frames)
        return self.gallery.upright(path)
