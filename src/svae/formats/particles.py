"""Particles: where their images lie and what is known of each, and the images themselves.

A person names one file: a stack, a list of stacks, or a table of particles of RELION or
cryoSPARC. Headers are read and checked at once, pixels only when they are asked for.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svae.checks import one_of, positive
from svae.formats.cryosparc import CsTable, read_group
from svae.formats.particle_lists import CTF_COLUMNS, Listed, list_particles, select_particles
from svae.formats.stacks import Header, fetch, find_stacks, open_stack, open_stacks
from svae.formats.star import StarTable

__all__ = ["BAD_CTF", "SEEN", "ParticleReader", "ParticleSet", "read_particles"]

log = logging.getLogger(__name__)

#: What happens to particles whose CTF is unknown or absurd.
BAD_CTF = ("error", "drop")

#: Pixel sizes whose ratio is nearer to 1 than this are one, written with fewer digits.
_ONE_SIZE = 1e-3

#: A ratio of pixel sizes from which on an object of a hundred pixels is another pixel wide.
SEEN = 0.01

#: Stacks that a process keeps mapped: each takes one of its open files.
_OPEN_STACKS = 200


@dataclass
class ParticleSet:
    """Where N particles lie and what is known of each; no pixels.

    Attributes:
        source: The file that the user named.
        stacks: The stack files, absolute.
        stack: Which of `stacks` each lies in, (N,), int64.
        place: Its place within it, from 0, (N,), int64.
        height: Rows of every image.
        width: Columns of every image.
        pixel_size: Å per pixel of the file, (N,), float64, where it is known.
        ctf: The parameters of the contrast transfer function, where they are known: each (N,),
            float64, under a name that says its unit. Not all may be there, nor make sense, where
            they were read for a table alone (`read_particles`, `bad_ctf`).
        applied: What was done about the CTF, (N,), int64: 0 nothing, 1 phases were flipped, 2
            images were multiplied by it.
        table: What was read, to be written again with every column.
        rows: The row in `table`, or the place in `source`, of each, (N,), int64: its identity.
        pixel_size_given: Whether the pixel size is what somebody gave, whatever `table` says.
    """

    source: Path
    stacks: list[Path]
    stack: np.ndarray
    place: np.ndarray
    height: int
    width: int
    pixel_size: np.ndarray | None
    ctf: dict[str, np.ndarray] | None
    applied: np.ndarray
    table: StarTable | CsTable | None
    rows: np.ndarray
    pixel_size_given: bool = False

    def __len__(self) -> int:
        return len(self.stack)

    @property
    def one_pixel_size(self) -> float | None:
        """Å per pixel of the files; `None` if it is unknown or not one."""
        sizes = self.pixel_size
        return None if sizes is None or np.ptp(sizes) > _ONE_SIZE * sizes[0] else float(sizes[0])

    def name(self, i: int) -> str:
        """What RELION calls a particle, `000001@stack.mrcs`; without the stack's folder."""
        return f"{self.place[i] + 1:06d}@{self.stacks[self.stack[i]].name}"

    def select(self, indices: np.ndarray | Sequence[int]) -> "ParticleSet":
        """Some of the particles, in the given order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            stack=self.stack[chosen],
            place=self.place[chosen],
            pixel_size=None if self.pixel_size is None else self.pixel_size[chosen],
            ctf=self.ctf and {name: values[chosen] for name, values in self.ctf.items()},
            applied=self.applied[chosen],
            rows=self.rows[chosen],
        )


class ParticleReader:
    """The images of particles, mapped from their stacks when they are first asked for.

    Each process maps its own: nothing is copied when a reader is pickled or deep-copied.

    Arguments:
        particles: Where they lie.
        check: Whether pixels that are not finite are an error.
    """

    def __init__(self, particles: ParticleSet, check: bool = True) -> None:
        self.check = check
        self.stacks, self.stack, self.place = particles.stacks, particles.stack, particles.place
        self.height, self.width = particles.height, particles.width
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": OrderedDict()}

    def __len__(self) -> int:
        return len(self.stack)

    def __getitem__(self, rows: Tensor | np.ndarray) -> Tensor:
        """The images of the given particles, (B, H, W), float32, as they lie in the files.

        Raises:
            ValueError: A pixel is not a finite number, or a file is not what it was.
        """
        chosen = np.asarray(rows)
        stack, place = self.stack[chosen], self.place[chosen]
        images = np.empty((len(chosen), self.height, self.width), np.float32)
        # Stack by stack and forwards in each, which is what a disk is fast at.
        order = np.lexsort((place, stack))
        breaks = np.flatnonzero(np.diff(stack[order])) + 1
        for group in np.split(order, breaks) if len(order) else []:
            pixels = self._map(int(stack[group[0]]))
            fetch(pixels, place[group])
            images[group] = pixels[place[group]]
        if self.check:
            self._check(images, chosen)
        return torch.from_numpy(images)

    def _map(self, number: int) -> np.ndarray:
        pixels = self._maps.pop(number, None)
        if pixels is None:
            pixels = open_stack(self.stacks[number]).map()
            if pixels.shape[1:] != (self.height, self.width):
                raise ValueError(f"{self.stacks[number]}: it has changed since it was first read")
            if len(self._maps) >= _OPEN_STACKS:
                self._maps.popitem(last=False)
        self._maps[number] = pixels
        return pixels

    def _check(self, images: np.ndarray, rows: np.ndarray) -> None:
        # A sum is not finite where a pixel is not; it is cheaper than a look at every pixel.
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(images.sum(axis=(1, 2))).all():
                return
        bad = ~np.isfinite(images).all(axis=(1, 2))
        if bad.any():
            first = int(rows[bad][0])
            others = f" ({int(bad.sum())} of the {len(rows)} in this batch)" * bool(bad.sum() > 1)
            raise ValueError(
                f"{self.stacks[self.stack[first]]}: image {self.place[first] + 1} has pixels "
                f"that are not finite numbers{others}"
            )


def read_particles(
    path: str | Path,
    datadir: str | Path | None = None,
    select: str | Path | None = None,
    pixel_size: float | None = None,
    *,
    passthrough: str | Path | None = None,
    bad_ctf: str | None = "error",
) -> ParticleSet:
    """Find particles and check that all of them are there; no pixel is read.

    Arguments:
        path: An `.mrcs` or `.mrc` stack, an `.npy` array (N, H, W), a `.txt` with a stack per
            line, a RELION `.star`, a cryoSPARC `.cs`, or a `.csg` that lists one or two of them.
        datadir: The folder that the paths in a table start from. Each is also looked for as it
            is, from the table's folder and the folders above it, and by its name alone in
            `datadir`.
        select: The particles to take: a `.npy`, `.pkl` or `.txt` with their numbers from 0, or
            another `.star` or `.cs` that lists them. All by default.
        pixel_size: Å per pixel, in place of what the files say.
        passthrough: A second `.cs`, whose fields are joined on `uid` where the first lacks them.
        bad_ctf: Where the CTF of a particle is absurd or its columns are not all there:
            `error`, or `drop` the particles (and say how many). None: nobody uses it; that of a
            `.cs` is kept as it is, for the star that is made of it.

    Raises:
        OSError: A file is missing or cannot be read.
        ValueError: A file is damaged or not what it should be; the message names it.
    """
    try:
        return _read(_absolute(path), datadir, select, pixel_size, passthrough, bad_ctf)
    except PermissionError as error:
        if error.filename is None:
            raise
        raise PermissionError(f"{error.filename}: no permission to read it") from None


def _read(
    path: Path,
    datadir: str | Path | None,
    select: str | Path | None,
    pixel_size: float | None,
    passthrough: str | Path | None,
    bad_ctf: str | None,
) -> ParticleSet:
    if bad_ctf is not None:
        one_of("bad_ctf", bad_ctf, BAD_CTF)
    if pixel_size is not None:
        positive("dataset.pixel_size", pixel_size)
    folder = None if datadir is None else _absolute(datadir)
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"dataset.datadir: there is no folder {folder}")
    second = None if passthrough is None else _absolute(passthrough)
    if path.suffix == ".csg" and path.exists():
        path, found = read_group(path)
        second = second or found
    listed = list_particles(path, folder, second, with_ctf=bad_ctf is not None)
    rows = np.arange(len(listed.place))
    if select is not None:
        rows = select_particles(_absolute(select), listed)
    if not len(rows):
        raise ValueError(f"{path}: it lists no particles")
    used, stack = np.unique(listed.path[rows], return_inverse=True)
    stacks = find_stacks(path, [listed.paths[i] for i in used], folder)
    heads = open_stacks(path, stacks, stack)
    place = listed.place[rows]
    _check_places(path, heads, stack, place)
    particles = ParticleSet(
        path,
        stacks,
        stack,
        place,
        heads[0].height,
        heads[0].width,
        _pixel_sizes(listed, rows, heads, stack, pixel_size),
        None,
        listed.applied[rows],
        listed.table,
        rows,
        pixel_size is not None,
    )
    _check_pixel_sizes(particles)
    _warn_of_duplicates(particles)
    if listed.ctf is None:
        return particles
    if listed.missing and bad_ctf is not None:
        raise ValueError(
            f"{path}: the CTF of a particle needs {', '.join(listed.missing)}, which "
            f"{'is' if len(listed.missing) == 1 else 'are'} not there; "
            "dataset.ctf=none goes on without a CTF"
        )
    particles.ctf = {name: values[rows] for name, values in listed.ctf.items()}
    return particles if bad_ctf is None else _with_sane_ctf(particles, bad_ctf)


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()


def _check_places(path: Path, heads: list[Header], stack: np.ndarray, place: np.ndarray) -> None:
    counts = np.array([head.count for head in heads])
    bad = (place < 0) | (place >= counts[stack])
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        head = heads[stack[first]]
        raise ValueError(
            f"{path}: image {place[first] + 1} of {head.path} is not there: it has "
            f"{head.count} ({int(bad.sum())} of {len(place)} particles have no image)"
        )


def _pixel_sizes(
    listed: Listed,
    rows: np.ndarray,
    heads: list[Header],
    stack: np.ndarray,
    given: float | None,
) -> np.ndarray | None:
    """Å per pixel: as given, else as the table has it, else as the stacks have it."""
    if given is not None:
        return np.full(len(rows), float(given))
    if listed.pixel_size is not None:
        return listed.pixel_size[rows]
    sizes = [head.pixel_size for head in heads]
    return None if None in sizes else np.array(sizes, dtype=np.float64)[stack]


def _check_pixel_sizes(particles: ParticleSet) -> None:
    if particles.pixel_size is None:
        return
    bad = ~((particles.pixel_size > 0.01) & (particles.pixel_size < 1000))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{particles.source}: a pixel size of {particles.pixel_size[first]:g} Å for "
            f"{particles.name(first)} ({int(bad.sum())} of {len(particles)} particles); "
            "dataset.pixel_size=... says what it is"
        )
    low, high = particles.pixel_size.min(), particles.pixel_size.max()
    if high > (1 + SEEN) * low:
        log.warning(
            "%s: pixels of %.4g to %.4g Å, in which one object has several sizes; scale the "
            "images to one pixel size, or take those of one by dataset.select",
            *(particles.source, low, high),
        )


def _warn_of_duplicates(particles: ParticleSet) -> None:
    images = particles.stack * (particles.place.max() + 1) + particles.place
    _, first, times = np.unique(images, return_index=True, return_counts=True)
    if (times > 1).any():
        log.warning(
            "%s: %d particles are listed more than once, such as %s",
            particles.source,
            int((times > 1).sum()),
            particles.name(int(first[times > 1][0])),
        )


def _with_sane_ctf(particles: ParticleSet, bad_ctf: str) -> ParticleSet:
    """The particles, without those whose CTF is absurd where these are to be dropped."""
    assert particles.ctf is not None
    bad = np.zeros(len(particles), bool)
    first = ""
    for name, known in CTF_COLUMNS.items():
        values = particles.ctf[name]
        absurd = ~((values >= known.low) & (values <= known.high))
        if absurd.any() and not first:
            row = int(np.flatnonzero(absurd)[0])
            tag = known.cs if isinstance(particles.table, CsTable) else known.star
            first = (
                f"{tag} of {particles.name(row)}: expected {name} from {known.low:g} to "
                f"{known.high:g}, got {values[row]:g}"
            )
        bad |= absurd
    if not bad.any():
        return particles
    told = f"{particles.source}: {first} ({int(bad.sum())} of {len(bad)} particles are absurd)"
    if bad_ctf == "error" or bad.all():
        raise ValueError(
            f"{told}; dataset.bad_ctf=drop leaves them out, dataset.ctf=none goes on without a CTF"
        )
    log.warning("%s; they are left out", told)
    return particles.select(np.flatnonzero(~bad))
