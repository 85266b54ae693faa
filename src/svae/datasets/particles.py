"""Particles of electron microscopy: stacks of any size, read batch by batch."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from svae.checks import one_of, positive, within
from svae.ctf import CTF, CTF_PARAMS, ctf
from svae.datasets.base import (
    SPLITS,
    Batch,
    ImageDataModule,
    ImageSource,
    contents_of,
    read_ahead,
    split_index,
    split_numbers,
    split_rows,
)
from svae.datasets.particle_pixels import Preparation, cropped_pixel_size, fourier_crop
from svae.distributed import following
from svae.errors import one_line
from svae.formats.particle_lists import has_ctf
from svae.formats.particles import (
    BAD_CTF,
    SEEN,
    ParticleReader,
    ParticleSet,
    read_particles,
)

__all__ = ["CTF_HANDLING", "ParticleImages", "Particles"]

log = logging.getLogger(__name__)

#: What is done about the contrast transfer function.
CTF_HANDLING = ("none", "phase_flip", "forward")

#: How many numbers are read at once where every pixel is looked at.
_AT_ONCE = 2**22

#: How many particles a message names.
_NAMED = 3


class ParticleImages(Dataset[Batch]):
    """Particles as a model sees them, read when they are asked for; it pickles without pixels.

    Arguments:
        particles: Where all particles lie.
        preparation: What is done to their pixels.
        tensors: `index` (N,), which of the particles these are, and what else goes into a batch.
        flip: The CTF of all particles in the pixels that a model sees, where phases are to be
            flipped by it.
    """

    def __init__(
        self,
        particles: ParticleSet,
        preparation: Preparation,
        tensors: Batch,
        flip: CTF | None = None,
    ) -> None:
        # A table of a hundred thousand particles is larger than all that is needed here.
        self.particles, self.preparation = replace(particles, table=None), preparation
        self.tensors, self.flip = tensors, flip
        # The preparation finds what is not finite, and says of whom, if nobody changed it before.
        self.reader = ParticleReader(self.particles, check=flip is not None)

    def __len__(self) -> int:
        return len(self.tensors["index"])

    def __getitem__(self, rows: Tensor) -> Batch:
        batch = {name: tensor[rows] for name, tensor in self.tensors.items()}
        return {"image": self._images(batch["index"]).unsqueeze(1)} | batch

    def _images(self, index: Tensor) -> Tensor:
        images = self.reader[index]
        if self.flip is not None:
            if self.preparation.size is not None:
                images = fourier_crop(images, self.preparation.size)
            images = phases_flipped(images, self.flip[index])
        return self.preparation(images, lambda place: self.particles.name(int(index[place])))


def phases_flipped(images: Tensor, known: CTF) -> Tensor:
    """Images (B, H, W) with the phases turned wherever their CTF is negative."""
    height, width = images.shape[-2:]
    negative = ctf(known.params, height, width, known.applied) < 0
    spectrum = torch.fft.rfft2(images)
    return torch.fft.irfft2(torch.where(negative, -spectrum, spectrum), s=(height, width))


class Particles(ImageDataModule):
    """The particles of a stack, or of a table of RELION or cryoSPARC.

    Nothing but what the tables say is held in memory. `index` counts the selected particles in
    their order; `particles` has them in it.

    Arguments:
        path: An `.mrcs` or `.mrc` stack, a RELION `.star`, a cryoSPARC `.cs` or `.csg`, an `.npy`
            (N, H, W), or a `.txt` with a stack per line.
        datadir: The folder that the paths in a table start from.
        select: The particles to take: an `.npy`, `.pkl` or `.txt` with their numbers from 0, or
            another `.star` or `.cs` that lists them. All by default.
        passthrough: A second `.cs`, with the fields that the first lacks.
        pixel_size: Å per pixel of the files, in place of what they say.
        size: The side in pixels that images are Fourier-cropped to; by default as they are.
        normalize: `background` (each image's pixels beyond `background_radius` to mean 0 and
            standard deviation 1), `image` (all pixels of each), `dataset` (a sample of all images)
            or `none`.
        background_radius: Where the background begins, in fractions of half the side.
        ramp: Whether a plane is fitted to the background of each image and subtracted.
        mean: What becomes 0 in `dataset`; by default found from the training images.
        std: What becomes 1 above it; likewise.
        invert: Whether dark becomes bright; `auto`: if particles are darker than the background.
        mask_radius: Beyond which pixels are replaced by their mean, in fractions of half the side.
        mask_edge: The width of the mask's edge in pixels, after cropping.
        ctf: `none`; `phase_flip` flips the phases of images that are as they were recorded; with
            `forward` the batches hold `ctf` (B, 9), the numbers named in `svae.ctf.CTF_PARAMS`,
            and `ctf_applied` (B,), for a model that applies the CTF to what it decodes.
        bad_ctf: Where the CTF of a particle is absurd: `error`, or `drop` it.
        check_pixels: Whether all images are read once before a training, so that one that holds
            NaN, or one value throughout, ends it at its start.
        skip_unusable: Whether such images are left out instead; how many is told in the log.
        val_fraction: The fraction of the particles that validates.
        test_fraction: The fraction that tests.
        contents: Which particles there are, as a run found it: others are refused.
        batch_size: As in `ImageDataModule`.
        eval_batch_size: As in `ImageDataModule`.
        workers: As in `ImageDataModule`.
        trained_pixel_size: Å per pixel of the images that a model was trained on, after cropping,
            which a training writes into its config. Other pixel sizes are warned of.
        seed: As in `ImageDataModule`; it also decides which particle is in which split.
    """

    reading = (
        *("size", "normalize", "background_radius", "ramp", "mean", "std", "invert"),
        *("mask_radius", "mask_edge", "ctf", "trained_pixel_size"),
    )

    def __init__(
        self,
        path: str | None = None,
        datadir: str | None = None,
        select: str | None = None,
        passthrough: str | None = None,
        pixel_size: float | None = None,
        size: int | None = None,
        normalize: str = "background",
        background_radius: float = 0.75,
        ramp: bool = False,
        mean: float | None = None,
        std: float | None = None,
        invert: bool | str = False,
        mask_radius: float | None = None,
        mask_edge: float = 5.0,
        ctf: str = "none",
        bad_ctf: str = "error",
        check_pixels: bool = True,
        skip_unusable: bool = False,
        trained_pixel_size: float | None = None,
        contents: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        workers: int = 2,
        seed: int = 1,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, workers)
        self.path = _absolute(path or self.default_path())
        files = {"datadir": datadir, "select": select, "passthrough": passthrough}
        self.files = {k: None if file is None else _absolute(file) for k, file in files.items()}
        self.given_pixel_size = None if pixel_size is None else positive("pixel_size", pixel_size)
        self.preparation = Preparation(
            size, normalize, background_radius, ramp, mean, std, invert, mask_radius, mask_edge
        )
        self.ctf = one_of("ctf", ctf, CTF_HANDLING)
        self.bad_ctf = one_of("bad_ctf", bad_ctf, BAD_CTF)
        self.check_pixels, self.skip_unusable = check_pixels, skip_unusable
        self.fractions = (val_fraction, test_fraction)
        split_rows(len(SPLITS), *self.fractions, seed)  # are these fractions?
        self.trained_pixel_size = (
            None
            if trained_pixel_size is None
            else positive("trained_pixel_size", trained_pixel_size)
        )
        self.contents = contents
        self._particles: ParticleSet | None = None
        self._usable: Tensor | None = None
        self._settled = False

    def default_path(self) -> str:
        """The file to read where nobody names one; a subclass may know."""
        raise ValueError(
            "path: write dataset.path=FILE; expected a .star, .cs, .csg, .mrcs, .mrc, .npy or .txt"
        )

    @property
    def particles(self) -> ParticleSet:
        """The particles, in the order of their index."""
        if self._particles is None:
            # Who does not use the CTF does not mind what it is.
            bad_ctf = None if self.ctf == "none" else self.bad_ctf
            particles = read_particles(
                self.path, pixel_size=self.given_pixel_size, bad_ctf=bad_ctf, **self.files
            )
            self._check(particles)
            self._compare_pixel_size(particles)
            self.file_names = [particles.name(i) for i in range(len(particles))]
            self.contents = contents_of(self.path, self.file_names, self.contents)
            self._particles = particles
        return self._particles

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of every image, (1, H, W)."""
        size = self.preparation.size
        return (
            (1, self.particles.height, self.particles.width) if size is None else (1, size, size)
        )

    @property
    def pixel_size(self) -> float | None:
        """Å per pixel of the images that a model sees; None if it is unknown or not one."""
        size = self.particles.one_pixel_size
        return None if size is None else self._after_cropping(size)

    def read(self) -> dict[str, Batch | ImageSource]:
        self._split(torch.arange(len(self.particles)))  # fails before much is read
        # The first of several processes looks for all.
        usable = self._looked_through(self.check_pixels and not following())
        splits = self._split(usable)
        self._settle(splits["train"])
        return {name: self._images(rows) for name, rows in splits.items()}

    def everything(self) -> ImageSource:
        """The usable particles in the order of their index, read when they are asked for.

        All are read once before if some are to be skipped. `split` is there where there are
        enough to be split.
        """
        usable = self._looked_through(False)
        splits = self._split(usable) if len(usable) >= len(SPLITS) else None
        self._settle(usable if splits is None else splits["train"])
        images = self._images(usable)
        if splits is not None:
            images.tensors["split"] = split_numbers(splits, len(self.particles))[usable]
        return images

    def found(self) -> dict[str, Any]:
        if not self._settled:
            return {}
        files = {name: None if file is None else str(file) for name, file in self.files.items()}
        decided = {name: getattr(self.preparation, name) for name in ("mean", "std", "invert")}
        trained = {"trained_pixel_size": self.pixel_size, "contents": self.contents}
        return {"path": str(self.path)} | files | decided | trained

    def _check(self, particles: ParticleSet) -> None:
        """What a training would trip over, and what a person should know of the CTF."""
        with within("dataset"):
            self.preparation.check(particles.height, particles.width)
        if self.ctf == "none":
            if particles.table is not None and has_ctf(particles.table):
                log.info(
                    "dataset.ctf=none: the CTF in %s is not used (by phase_flip or forward it is)",
                    self.path,
                )
            return
        if particles.ctf is None:
            raise ValueError(
                f"dataset.ctf={self.ctf}: the CTF of the particles in {self.path} is not known "
                "(rlnDefocusU, rlnVoltage, ... of a .star, ctf/df1_A, ... of a .cs); expected a "
                "file that has it, or dataset.ctf=none"
            )
        if particles.pixel_size is None:
            raise ValueError(
                f"dataset.ctf={self.ctf}: {self.path} does not say how large a pixel is; write "
                "dataset.pixel_size in Å"
            )
        if self.ctf == "phase_flip" and (done := int((particles.applied > 0).sum())):
            log.info(
                "dataset.ctf=phase_flip: the phases of %d of the %d particles are flipped "
                "already, as %s says",
                *(done, len(particles), self.path),
            )

    def _compare_pixel_size(self, particles: ParticleSet) -> None:
        """Warn of pixels that are not as large as those of the training."""
        here, trained = particles.one_pixel_size, self.trained_pixel_size
        if here is None or trained is None:
            return
        size = self.preparation.size or particles.height
        seen = cropped_pixel_size(here, particles.height, size)
        if max(seen, trained) <= (1 + SEEN) * min(seen, trained):
            return
        log.warning(
            "%s: a pixel%s is %.4g Å, and was %.4g Å in the training: the model sees the same "
            "object %.3g times as large as it knows it; extract images whose side is %.4g Å (here "
            "it is %.4g Å), or train on these",
            *(self.path, " after cropping" * (size < particles.height), seen, trained),
            *(trained / seen, trained * size, here * particles.height),
        )

    def _after_cropping(self, pixel_size: float) -> float:
        height = self.particles.height
        return cropped_pixel_size(pixel_size, height, self.preparation.size or height)

    def _known_ctf(self) -> CTF:
        """The CTF of all particles in the pixels that a model sees."""
        particles = self.particles
        assert particles.ctf is not None
        assert particles.pixel_size is not None
        ratio = self._after_cropping(1.0)
        known = particles.ctf | {"pixel_size_A": particles.pixel_size * ratio}
        params = np.stack([known[name] for name in CTF_PARAMS], axis=1)
        return CTF(torch.from_numpy(params).float(), torch.from_numpy(particles.applied))

    def _images(self, index: Tensor) -> ParticleImages:
        tensors, flip = {"index": index}, None
        if self.ctf == "forward":
            known = self._known_ctf()[index]
            tensors |= {"ctf": known.params, "ctf_applied": known.applied}
        elif self.ctf == "phase_flip":
            flip = self._known_ctf()
        return ParticleImages(self.particles, self.preparation, tensors, flip)

    def _split(self, index: Tensor) -> dict[str, Tensor]:
        return split_index(index, self.fractions, self.seed, self.path)

    def _settle(self, deciding: Tensor) -> None:
        """Decide what was left open of the preparation, by a sample of some of the images."""
        if not self._settled:
            some = self.particles.select(deciding.numpy())
            try:
                settled = self.preparation.settled(ParticleReader(some, check=False), len(some))
            except ValueError as error:
                raise ValueError(f"dataset.path: {self.path}: {one_line(error)}") from None
            self.preparation, self._settled = settled, True

    def _looked_through(self, wanted: bool) -> Tensor:
        """The usable particles, by their index: those that can be prepared.

        All are taken for usable if it is not wanted to look at them and none is to be skipped.

        Raises:
            ValueError: One is unusable and none is to be skipped.
        """
        count = len(self.particles)
        if not wanted and not self.skip_unusable:
            return torch.arange(count)
        if self._usable is None:
            bad = dict(self._unusable())
            if bad and not self.skip_unusable:
                first = min(bad)
                raise ValueError(
                    f"{bad[first]}; {len(bad)} of the {count} particles in {self.path} are "
                    "unusable; mend them, or leave them out with dataset.skip_unusable=true"
                )
            if bad:
                others = [self.particles.name(i) for i in sorted(bad)[1:_NAMED]]
                others += ["..."] * (len(bad) > _NAMED)
                log.warning(
                    "%d of the %d particles in %s are left out: %s%s",
                    *(len(bad), count, self.path, bad[min(bad)]),
                    f"; also {', '.join(others)}" if others else "",
                )
            usable = np.setdiff1d(np.arange(count), np.array(list(bad), np.int64))
            self._usable = torch.from_numpy(usable)
        return self._usable

    def _unusable(self) -> Iterator[tuple[int, str]]:
        """Which particles cannot be used, by their index, and why."""
        reader = ParticleReader(self.particles, check=False)
        # File by file, and forwards in each.
        order = np.lexsort((self.particles.place, self.particles.stack))
        some = max(1, _AT_ONCE // (reader.height * reader.width))
        parts = torch.from_numpy(order).split(some)
        kind = self.preparation.normalize
        # Cropping takes most of the time, and what it leaves is as usable.
        check = Preparation(
            normalize="none" if kind == "dataset" else kind,
            background_radius=self.preparation.background_radius,
            invert=False,
        )

        def look(part: Tensor) -> list[tuple[int, str]]:
            _, bad = check.prepared(reader[part])
            found = [(int(part[place]), why) for place, why in bad.items()]
            return [(i, f"{self.particles.name(i)}: {why}") for i, why in found]

        looked = read_ahead(look, parts, self.workers)
        # Nothing is shown of what takes no time.
        for some_bad in tqdm(looked, "looking at all pixels", len(parts), delay=3, disable=None):
            yield from some_bad


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()
