"""What a file lists of particles: where their images lie, and the columns that are understood."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from svae.formats.cryosparc import CsTable, read_cs
from svae.formats.indices import SUFFIXES, read_indices
from svae.formats.stacks import STACKS, find_stacks, open_stack
from svae.formats.star import StarTable, read_star

__all__ = [
    "CTF_COLUMNS",
    "STAR_CTF",
    "Listed",
    "has_ctf",
    "list_particles",
    "numbers",
    "select_particles",
]

log = logging.getLogger(__name__)

#: Opened as stacks are, which tells what to do about them.
_COMPRESSED = (".gz", ".bz2", ".xz", ".zip")


class Column(NamedTuple):
    """A parameter of the CTF: where it is written, and what it can be."""

    star: str
    cs: str
    low: float
    high: float
    default: float | None = None


#: The parameters of the CTF, by their names in a `ParticleSet`.
CTF_COLUMNS = {
    "defocus_u_A": Column("rlnDefocusU", "ctf/df1_A", 1, 2e5),
    "defocus_v_A": Column("rlnDefocusV", "ctf/df2_A", 1, 2e5),
    "astigmatism_deg": Column("rlnDefocusAngle", "ctf/df_angle_rad", -720, 720),
    "voltage_kV": Column("rlnVoltage", "ctf/accel_kv", 10, 3000),
    "cs_mm": Column("rlnSphericalAberration", "ctf/cs_mm", -20, 20),
    "amplitude_contrast": Column("rlnAmplitudeContrast", "ctf/amp_contrast", 0, 1),
    "phase_shift_deg": Column("rlnPhaseShift", "ctf/phase_shift_rad", -720, 720, 0.0),
    "b_factor_A2": Column("rlnCtfBfactor", "ctf/bfactor", -1e4, 1e5, 0.0),
}

#: The column of a star that holds each parameter of the CTF.
STAR_CTF = {name: known.star for name, known in CTF_COLUMNS.items()}


@dataclass
class Listed:
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


def has_ctf(table: StarTable | CsTable) -> bool:
    """Whether a table says something of the CTF: a defocus, if nothing else."""
    defoci = (CTF_COLUMNS["defocus_u_A"], CTF_COLUMNS["defocus_v_A"])
    tags = [known.star if isinstance(table, StarTable) else known.cs for known in defoci]
    return any(table.column(tag) is not None for tag in tags)


def list_particles(
    path: Path, datadir: Path | None, passthrough: Path | None, *, with_ctf: bool
) -> Listed:
    """What a file lists, as `read_particles` takes it; stacks are sought for a `.txt` alone.

    Without `with_ctf`, the CTF of a `.star` is not read. That of a `.cs` always is: whoever makes
    a star of it needs it.

    Raises:
        OSError: A file is missing or cannot be read.
        ValueError: A file is damaged or not what it should be; the message names it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.suffix == ".star":
        return _listed_star(path, with_ctf)
    if path.suffix == ".cs":
        return _listed_cs(path, passthrough)
    if path.suffix == ".txt":
        lines = [line.strip() for line in path.read_text().splitlines()]
        stacks = find_stacks(path, [line for line in lines if line], datadir)
    elif path.suffix in STACKS + _COMPRESSED:
        stacks = [path]
    else:
        raise ValueError(
            f"{path}: expected one of {', '.join(STACKS)}, .txt, .star, .cs, .csg, "
            f"got {path.suffix or 'no suffix'!r}"
        )
    counts = [open_stack(stack).count for stack in stacks]
    place = [np.arange(count) for count in counts]
    return Listed(
        [str(stack) for stack in stacks],
        np.repeat(np.arange(len(stacks)), counts),
        np.concatenate([np.zeros(0, np.int64), *place]),
        np.zeros(sum(counts), np.int64),
    )


def _listed_star(path: Path, with_ctf: bool) -> Listed:
    table = read_star(path)
    paths, which, place = _image_names(path, table)
    optics = _optics_rows(path, table)

    def column(tag: str) -> np.ndarray | None:
        values = table.column(tag, optics=True)
        if values is not None and optics is not None:
            return numbers(path, tag, values)[optics]
        values = table.column(tag)
        return None if values is None else numbers(path, tag, values)

    size = column("rlnImagePixelSize")
    size = column("rlnPixelSize") if size is None else size
    detector, magnification = column("rlnDetectorPixelSize"), column("rlnMagnification")
    if size is None and detector is not None and magnification is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            size = detector * 1e4 / magnification  # µm on the detector
    listed = Listed(paths, which, place, np.zeros(len(place), np.int64), table, size)
    for value, tag in ((1, "rlnCtfDataArePhaseFlipped"), (2, "rlnCtfDataAreCtfPremultiplied")):
        if (done := column(tag)) is not None:
            listed.applied[done > 0] = value
    if with_ctf and has_ctf(table):
        ctf = {name: column(known.star) for name, known in CTF_COLUMNS.items()}
        listed.ctf, listed.missing = _completed(
            ctf, len(place), [k.star for k in CTF_COLUMNS.values()]
        )
    return listed


def _listed_cs(path: Path, passthrough: Path | None) -> Listed:
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
    listed = Listed(
        paths,
        which,
        places.astype(np.int64),
        np.zeros(len(table), np.int64),
        table,
        None if size is None else size.astype(np.float64),
    )
    if any(column(name) is not None for name in ("ctf/df1_A", "ctf/df2_A")):
        ctf: dict[str, np.ndarray | None] = {}
        for name, known in CTF_COLUMNS.items():
            values = column(known.cs)
            ctf[name] = None if values is None else values.astype(np.float64)
            if values is not None and known.cs.endswith("_rad"):
                ctf[name] = np.degrees(values.astype(np.float64))
        listed.ctf, listed.missing = _completed(
            ctf, len(table), [k.cs for k in CTF_COLUMNS.values()]
        )
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
    rows, lost = _rows_of(uids, others)
    if lost.any():
        raise ValueError(
            f"{passthrough}: {int(lost.sum())} of the {len(uids)} particles of {path} are not "
            f"there, such as uid {uids[lost][0]}"
        )
    return other, rows


def _rows_of(wanted: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in `known` (M,) each of `wanted` (N,) first is, and which are nowhere, (N,) each."""
    order = np.argsort(known, kind="stable")
    rows = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
    return rows, known[rows] != wanted


def _completed(
    columns: dict[str, np.ndarray | None], count: int, tags: list[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns of the CTF with those that have a default filled in, and the tags that lack."""
    there, missing = {}, []
    for (name, known), tag in zip(CTF_COLUMNS.items(), tags, strict=True):
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
    known = numbers(path, "rlnOpticsGroup", groups)
    wanted = numbers(path, "rlnOpticsGroup", mine)
    rows, lost = _rows_of(wanted, known)
    if lost.any():
        raise ValueError(
            f"{path}: rlnOpticsGroup {wanted[lost][0]:g} is not among the optics groups "
            f"({int(lost.sum())} of {len(wanted)} particles)"
        )
    return rows


def numbers(path: Path, tag: str, values: np.ndarray) -> np.ndarray:
    """The numbers in a column of a star, float64.

    Raises:
        ValueError: A value is none; the message names the file, the column and the row.
    """
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


def select_particles(path: Path, listed: Listed) -> np.ndarray:
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
        other = _listed_star(path, False) if star else _listed_cs(path, None)
        # Where stacks are named .mrc, the stars of `svae.encode` name links to them.
        keys, asked = _keys(listed, _target), _keys(other, _target)
        # Another program may have moved the stacks; their names still tell them apart.
        for known_by in (_name, _name_of_target):
            names = {known_by(text) for text in listed.paths}
            if len(names) == len(listed.paths) and not set(asked) <= set(keys):
                keys, asked = _keys(listed, known_by), _keys(other, known_by)
    rows = {key: i for i, key in reversed(list(enumerate(keys)))}
    lost = [key for key in asked if key not in rows]
    if lost:
        first = lost[0] if isinstance(lost[0], int) else f"{lost[0][0] + 1:06d}@{lost[0][1]}"
        raise ValueError(
            f"{path}: {len(lost)} of its {len(asked)} particles are not among those of the "
            f"data set, such as {first}"
        )
    return np.array([rows[key] for key in dict.fromkeys(asked)], dtype=np.int64)


def _target(path: str) -> str:
    return os.readlink(path) if os.path.islink(path) else path


def _name(path: str) -> str:
    return PurePosixPath(path).name


def _name_of_target(path: str) -> str:
    return _name(_target(path))


def _keys(listed: Listed, known_by: Callable[[str], str]) -> list[Any]:
    """What tells particles apart: place and stack, by what is made of its path."""
    names = [known_by(str(PurePosixPath(text))) for text in listed.paths]
    places, which = listed.place.tolist(), listed.path.tolist()
    return [(place, names[i]) for place, i in zip(places, which, strict=True)]
