"""Particles: where their images lie and what is known of each, and the images themselves.

A person names one file: a stack, a list of stacks, or a table of particles of RELION or
cryoSPARC. Headers are read and checked at once, pixels only when they are asked for.
"""

import logging
import mmap
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from svae.checks import one_of, positive
from svae.formats import mrc
from svae.formats.cryosparc import CsTable, read_cs, read_group
from svae.formats.indices import SUFFIXES, read_indices
from svae.formats.star import StarTable, read_star

__all__ = [
    "BAD_CTF",
    "SEEN",
    "STAR_CTF",
    "ParticleReader",
    "ParticleSet",
    "has_ctf",
    "read_particles",
]

log = logging.getLogger(__name__)

#: What happens to particles whose CTF is unknown or absurd.
BAD_CTF = ("error", "drop")

#: The files that hold images.
_STACKS = (".mrcs", ".mrc", ".npy")

#: Pixel sizes whose ratio is nearer to 1 than this are one, written with fewer digits.
_ONE_SIZE = 1e-3

#: A ratio of pixel sizes from which on an object of a hundred pixels is another pixel wide.
SEEN = 0.01

#: Opened as stacks are, which tells what to do about them.
_COMPRESSED = (".gz", ".bz2", ".xz", ".zip")

#: Stacks that a process keeps mapped: each takes one of its open files.
_OPEN_STACKS = 200


class _Known(NamedTuple):
    """A parameter of the CTF: where it is written, and what it can be."""

    star: str
    cs: str
    low: float
    high: float
    default: float | None = None


_CTF = {
    "defocus_u_A": _Known("rlnDefocusU", "ctf/df1_A", 1, 2e5),
    "defocus_v_A": _Known("rlnDefocusV", "ctf/df2_A", 1, 2e5),
    "astigmatism_deg": _Known("rlnDefocusAngle", "ctf/df_angle_rad", -720, 720),
    "voltage_kV": _Known("rlnVoltage", "ctf/accel_kv", 10, 3000),
    "cs_mm": _Known("rlnSphericalAberration", "ctf/cs_mm", -20, 20),
    "amplitude_contrast": _Known("rlnAmplitudeContrast", "ctf/amp_contrast", 0, 1),
    "phase_shift_deg": _Known("rlnPhaseShift", "ctf/phase_shift_rad", -720, 720, 0.0),
    "b_factor_A2": _Known("rlnCtfBfactor", "ctf/bfactor", -1e4, 1e5, 0.0),
}

#: The column of a star that holds each parameter of the CTF.
STAR_CTF = {name: known.star for name, known in _CTF.items()}


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
            float64, under a name that says its unit.
        applied: What was done about the CTF, (N,), int64: 0 nothing, 1 phases were flipped, 2
            images were multiplied by it.
        table: What was read, to be written again with every column.
        rows: The row in `table`, or the place in `source`, of each, (N,), int64: its identity.
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


def has_ctf(table: StarTable | CsTable) -> bool:
    """Whether a table says something of the CTF: a defocus, if nothing else."""
    defoci = (_CTF["defocus_u_A"], _CTF["defocus_v_A"])
    tags = [known.star if isinstance(table, StarTable) else known.cs for known in defoci]
    return any(table.column(tag) is not None for tag in tags)


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
            _fetch(pixels, place[group])
            images[group] = pixels[place[group]]
        if self.check:
            self._check(images, chosen)
        return torch.from_numpy(images)

    def _map(self, number: int) -> np.ndarray:
        pixels = self._maps.pop(number, None)
        if pixels is None:
            pixels = _open(self.stacks[number]).map()
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


def _fetch(pixels: np.ndarray, place: np.ndarray) -> None:
    """Have the system read images of a map all at once.

    As they are copied, a disk would be asked for one piece after the other: several times slower.
    """
    held: object = pixels.base
    if not isinstance(pixels, np.memmap) or not isinstance(held, mmap.mmap):
        return
    if not hasattr(mmap, "MADV_WILLNEED"):  # Windows
        return
    start, size = pixels.offset % mmap.ALLOCATIONGRANULARITY, pixels.strides[0]
    for first in (start + place * size).tolist():
        page = first - first % mmap.PAGESIZE
        held.madvise(mmap.MADV_WILLNEED, page, first + size - page)


@dataclass
class _Listed:
    """Particles as a file lists them, their stacks under the paths that it writes."""

    paths: list[str]
    path: np.ndarray
    place: np.ndarray
    applied: np.ndarray
    table: StarTable | CsTable | None = None
    pixel_size: np.ndarray | None = None
    #: What is known of the CTF, and the columns that are missing from it.
    ctf: dict[str, np.ndarray] | None = None
    missing: Sequence[str] = ()


@dataclass(frozen=True)
class _Array:
    """An `.npy` of images, as an MRC header says it."""

    path: Path
    count: int
    height: int
    width: int
    pixel_size: float | None = None

    def map(self) -> np.ndarray:
        images = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return images if images.ndim == 3 else images[np.newaxis]


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
            `error`, or `drop` the particles (and say how many). None: no CTF is read.

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
    listed = _listed(path, folder, second, with_ctf=bad_ctf is not None)
    rows = np.arange(len(listed.place))
    if select is not None:
        rows = _selected(_absolute(select), listed)
    if not len(rows):
        raise ValueError(f"{path}: it lists no particles")
    used, stack = np.unique(listed.path[rows], return_inverse=True)
    stacks = _found(path, [listed.paths[i] for i in used], folder)
    heads = _heads(path, stacks, stack)
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
    )
    _check_pixel_sizes(particles)
    _warn_of_duplicates(particles)
    if listed.ctf is None:
        return particles
    if listed.missing:
        raise ValueError(
            f"{path}: the CTF of a particle needs {', '.join(listed.missing)}, which "
            f"{'is' if len(listed.missing) == 1 else 'are'} not there; "
            "dataset.ctf=none goes on without a CTF"
        )
    particles.ctf = {name: values[rows] for name, values in listed.ctf.items()}
    return _with_sane_ctf(particles, bad_ctf)


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()


# ---- what a file lists


def _listed(
    path: Path, datadir: Path | None, passthrough: Path | None, *, with_ctf: bool
) -> _Listed:
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.suffix == ".star":
        return _listed_star(path, with_ctf)
    if path.suffix == ".cs":
        return _listed_cs(path, passthrough, with_ctf)
    if path.suffix == ".txt":
        lines = [line.strip() for line in path.read_text().splitlines()]
        stacks = _found(path, [line for line in lines if line], datadir)
    elif path.suffix in _STACKS + _COMPRESSED:
        stacks = [path]
    else:
        raise ValueError(
            f"{path}: expected one of {', '.join(_STACKS)}, .txt, .star, .cs, .csg, "
            f"got {path.suffix or 'no suffix'!r}"
        )
    counts = [_open(stack).count for stack in stacks]
    place = [np.arange(count) for count in counts]
    return _Listed(
        [str(stack) for stack in stacks],
        np.repeat(np.arange(len(stacks)), counts),
        np.concatenate([np.zeros(0, np.int64), *place]),
        np.zeros(sum(counts), np.int64),
    )


def _listed_star(path: Path, with_ctf: bool) -> _Listed:
    table = read_star(path)
    paths, which, place = _image_names(path, table)
    optics = _optics_rows(path, table)

    def numbers(tag: str) -> np.ndarray | None:
        values = table.column(tag, optics=True)
        if values is not None and optics is not None:
            return _numbers(path, tag, values)[optics]
        values = table.column(tag)
        return None if values is None else _numbers(path, tag, values)

    size = numbers("rlnImagePixelSize")
    size = numbers("rlnPixelSize") if size is None else size
    detector, magnification = numbers("rlnDetectorPixelSize"), numbers("rlnMagnification")
    if size is None and detector is not None and magnification is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            size = detector * 1e4 / magnification  # µm on the detector
    listed = _Listed(paths, which, place, np.zeros(len(place), np.int64), table, size)
    for value, tag in ((1, "rlnCtfDataArePhaseFlipped"), (2, "rlnCtfDataAreCtfPremultiplied")):
        if (done := numbers(tag)) is not None:
            listed.applied[done > 0] = value
    if with_ctf and has_ctf(table):
        ctf = {name: numbers(known.star) for name, known in _CTF.items()}
        listed.ctf, listed.missing = _completed(ctf, len(place), [k.star for k in _CTF.values()])
    return listed


def _listed_cs(path: Path, passthrough: Path | None, with_ctf: bool) -> _Listed:
    table = read_cs(path)
    other, rows = (None, np.zeros(0)) if passthrough is None else _joined(path, table, passthrough)

    def column(name: str) -> np.ndarray | None:
        values = table.column(name)
        if values is None and other is not None and (joined := other.column(name)) is not None:
            return joined[rows]
        return values

    blobs, places = column("blob/path"), column("blob/idx")
    if blobs is None or places is None:
        there = sorted(str(found.name) for found in path.parent.glob("*passthrough*.cs"))
        raise ValueError(
            f"{path}: no blob/path and blob/idx: it does not say where the images are; "
            f"name the file that does by dataset.passthrough "
            f"({', '.join(there) or 'none lies beside it'})"
        )
    written, which = np.unique(blobs, return_inverse=True)
    paths = [_word(value).removeprefix(">") for value in written.tolist()]
    size = column("blob/psize_A")
    listed = _Listed(
        paths,
        which,
        places.astype(np.int64),
        np.zeros(len(table), np.int64),
        table,
        None if size is None else size.astype(np.float64),
    )
    if with_ctf and any(column(name) is not None for name in ("ctf/df1_A", "ctf/df2_A")):
        ctf: dict[str, np.ndarray | None] = {}
        for name, known in _CTF.items():
            values = column(known.cs)
            ctf[name] = None if values is None else values.astype(np.float64)
            if values is not None and known.cs.endswith("_rad"):
                ctf[name] = np.degrees(values.astype(np.float64))
        listed.ctf, listed.missing = _completed(ctf, len(table), [k.cs for k in _CTF.values()])
    sign = column("blob/sign")
    if sign is not None and len(np.unique(sign)) > 1:
        log.warning(
            "%s: blob/sign is negative for %d of %d particles: images of both contrasts are "
            "taken as they lie",
            path,
            int((sign < 0).sum()),
            len(sign),
        )
    return listed


def _joined(path: Path, table: CsTable, passthrough: Path) -> tuple[CsTable, np.ndarray]:
    """A second `.cs` and, for each particle of the first, its row there."""
    other = read_cs(passthrough)
    uids, others = table.column("uid"), other.column("uid")
    if uids is None or others is None or not len(others):
        raise ValueError(f"{passthrough}: no uid to join it with {path} on")
    order = np.argsort(others, kind="stable")
    rows = order[np.searchsorted(others, uids, sorter=order).clip(max=len(others) - 1)]
    lost = others[rows] != uids
    if lost.any():
        raise ValueError(
            f"{passthrough}: {int(lost.sum())} of the {len(uids)} particles of {path} are not "
            f"there, such as uid {uids[lost][0]}"
        )
    return other, rows


def _completed(
    columns: dict[str, np.ndarray | None], count: int, tags: list[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns of the CTF with those that have a default filled in, and the tags that lack."""
    there, missing = {}, []
    for (name, known), tag in zip(_CTF.items(), tags, strict=True):
        values = columns[name]
        if values is not None:
            there[name] = values
        elif known.default is not None:
            there[name] = np.full(count, known.default)
        else:
            missing.append(tag)
    return there, missing


def _image_names(path: Path, table: StarTable) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The stacks that `rlnImageName` names, and each particle's stack and place in it."""
    names = table.column("rlnImageName")
    assert names is not None  # that is how the table was found
    stacks: dict[bytes, int] = {}
    which = np.empty(len(names), np.int64)
    place = np.empty(len(names), np.int64)
    for i, name in enumerate(names.tolist()):
        if name[:1] in b"'\"":
            name = name[1:-1]
        number, at, stack = name.partition(b"@")
        try:
            place[i] = int(number) - 1 if at else 0
        except ValueError:
            raise ValueError(
                f"{path}: rlnImageName: expected NUMBER@STACK, got {_word(name)!r} "
                f"(particle {i + 1})"
            ) from None
        which[i] = stacks.setdefault(stack if at else number, len(stacks))
    return [_word(stack) for stack in stacks], which, place


def _optics_rows(path: Path, table: StarTable) -> np.ndarray | None:
    """The row of each particle's optics group; `None` where there are no groups."""
    groups = table.column("rlnOpticsGroup", optics=True)
    if groups is None:
        return None
    mine = table.column("rlnOpticsGroup")
    if mine is None:
        if len(groups) == 1:
            return np.zeros(len(table), np.int64)
        raise ValueError(
            f"{path}: {len(groups)} optics groups, and no rlnOpticsGroup says whose is which"
        )
    known = _numbers(path, "rlnOpticsGroup", groups)
    wanted = _numbers(path, "rlnOpticsGroup", mine)
    order = np.argsort(known)
    rows = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
    lost = known[rows] != wanted
    if lost.any():
        raise ValueError(
            f"{path}: rlnOpticsGroup {wanted[lost][0]:g} is not among the optics groups "
            f"({int(lost.sum())} of {len(wanted)} particles)"
        )
    return rows


def _numbers(path: Path, tag: str, values: np.ndarray) -> np.ndarray:
    try:
        return values.astype(np.float64)
    except ValueError:
        for i, value in enumerate(values.tolist()):
            try:
                float(value)
            except ValueError:
                raise ValueError(
                    f"{path}: {tag}: expected numbers, got {_word(value)!r} (row {i + 1})"
                ) from None
        raise


def _word(value: bytes | str) -> str:
    return os.fsdecode(value)


# ---- which of them


def _selected(path: Path, listed: _Listed) -> np.ndarray:
    """The particles that a file selects, in its order."""
    if path.suffix in SUFFIXES:
        return read_indices(path, len(listed.place))
    if path.suffix not in (".star", ".cs"):
        raise ValueError(
            f"{path}: expected a selection as {', '.join(SUFFIXES)}, .star or .cs, "
            f"got {path.suffix or 'no suffix'!r}"
        )
    if path.suffix == ".cs" and isinstance(listed.table, CsTable):
        wanted, mine = read_cs(path).column("uid"), listed.table.column("uid")
        if wanted is None or mine is None:
            raise ValueError(f"{path}: no uid to find its particles by")
        keys, asked = mine.tolist(), wanted.tolist()
    else:
        star = path.suffix == ".star"
        other = _listed_star(path, False) if star else _listed_cs(path, None, False)
        keys, asked = _keys(listed, whole=True), _keys(other, whole=True)
        names = [PurePosixPath(text).name for text in listed.paths]
        # Another program may have moved the stacks; their names still tell them apart.
        if len(set(names)) == len(names) and not set(asked) <= set(keys):
            keys, asked = _keys(listed, whole=False), _keys(other, whole=False)
    rows = {key: i for i, key in reversed(list(enumerate(keys)))}
    lost = [key for key in asked if key not in rows]
    if lost:
        first = lost[0] if isinstance(lost[0], int) else f"{lost[0][0] + 1:06d}@{lost[0][1]}"
        raise ValueError(
            f"{path}: {len(lost)} of its {len(asked)} particles are not among those of the "
            f"data set, such as {first}"
        )
    return np.array([rows[key] for key in dict.fromkeys(asked)], dtype=np.int64)


def _keys(listed: _Listed, *, whole: bool) -> list[Any]:
    """What tells particles apart: place and stack, by its whole path or by its name."""
    paths = [PurePosixPath(text) for text in listed.paths]
    names = [str(text) if whole else text.name for text in paths]
    places, which = listed.place.tolist(), listed.path.tolist()
    return [(place, names[i]) for place, i in zip(places, which, strict=True)]


# ---- where they lie


def _found(path: Path, texts: list[str], datadir: Path | None) -> list[Path]:
    """The stacks that a file names, absolute."""
    folders = [*([datadir] if datadir else []), path.parent, *path.parent.parents]
    found, lost = [], []
    forbidden: PermissionError | None = None
    for text in texts:
        places = [folder / text for folder in folders]
        if datadir:
            places.append(datadir / PurePosixPath(text).name)
        for place in places:
            try:
                place.stat()
            except PermissionError as error:
                forbidden = error
            except OSError:
                continue
            else:
                found.append(place)
                break
        else:
            lost.append(text)
    if lost and forbidden:
        raise forbidden
    if lost:
        told = "dataset.datadir" + (f" ({datadir})" if datadir else "")
        raise FileNotFoundError(
            f"{path}: of its {len(texts)} stacks {len(lost)} cannot be found, such as {lost[0]}; "
            f"set {told} to the folder that these paths start from"
        )
    return found


def _open(path: Path) -> mrc.MrcHeader | _Array:
    """The header of a stack, checked against the file."""
    try:
        if path.suffix != ".npy":
            return mrc.read_header(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except IsADirectoryError:
        raise ValueError(f"{path}: expected a stack, found a folder") from None
    except (ValueError, EOFError) as error:
        if path.suffix != ".npy":
            raise
        raise ValueError(f"{path}: no whole .npy file ({error})") from error
    if array.ndim not in (2, 3) or array.dtype.kind not in "buif" or not array.size:
        raise ValueError(
            f"{path}: expected images (N, H, W) of numbers, got {array.dtype} of shape "
            f"{array.shape}"
        )
    return _Array(path, *((1,) * (3 - array.ndim) + array.shape))


def _heads(path: Path, stacks: list[Path], stack: np.ndarray) -> list[mrc.MrcHeader | _Array]:
    """The header of every stack; all are good, and all images of one size."""
    heads, errors = [], []
    for file in stacks:
        try:
            heads.append(_open(file))
        except (ValueError, OSError) as error:
            errors.append(error)
    if errors:
        more = f" ({len(errors)} of the {len(stacks)} stacks are bad)" * (len(errors) > 1)
        if isinstance(errors[0], PermissionError):
            raise errors[0]
        raise ValueError(f"{errors[0]}{more}") from errors[0]
    sizes = np.array([(head.height, head.width) for head in heads])
    other = (sizes != sizes[0]).any(axis=1)
    if other.any():
        first = int(np.flatnonzero(other)[0])
        height, width = sizes[0]
        raise ValueError(
            f"{path}: images of different sizes: {stacks[0]} has {height}x{width}, "
            f"{stacks[first]} has {sizes[first][0]}x{sizes[first][1]} "
            f"({int(other[stack].sum())} of {len(stack)} particles have another than the first)"
        )
    return heads


def _check_places(
    path: Path, heads: list[mrc.MrcHeader | _Array], stack: np.ndarray, place: np.ndarray
) -> None:
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
    listed: _Listed,
    rows: np.ndarray,
    heads: list[mrc.MrcHeader | _Array],
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


# ---- what is known of them


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


def _with_sane_ctf(particles: ParticleSet, bad_ctf: str | None) -> ParticleSet:
    """The particles, without those whose CTF is absurd where these are to be dropped."""
    assert particles.ctf is not None
    bad = np.zeros(len(particles), bool)
    first = ""
    for name, known in _CTF.items():
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
