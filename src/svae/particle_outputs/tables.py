"""What was inferred from particles as RELION's and cryoSPARC's tables have it."""

from dataclasses import dataclass, replace

import numpy as np

from svae.formats.cryosparc import CsTable
from svae.formats.particle_lists import STAR_CTF
from svae.formats.particles import ParticleSet
from svae.formats.star import StarTable, new_star

__all__ = ["Found", "check_units", "cs_table", "model_classes", "new_table", "star_table"]

#: Of the CTF, what particles of one optics group share in a star of RELION 3.1.
_PER_GROUP = ("voltage_kV", "cs_mm", "amplitude_contrast")


@dataclass(frozen=True)
class Found:
    """What was inferred from N particles; None for what was not.

    Arguments:
        psi_deg: `rlnAnglePsi` (`svae.formats.poses`), with shape (N,).
        offset_px: `rlnOriginX`, `rlnOriginY` in pixels of the file, with shape (N, 2).
        classes: The class of each, from 0, with shape (N,).
        peak: How probable the most probable pose is, with shape (N,).
        z: The content, with shape (N, z_dim).
        z_std: Its standard deviations, with shape (N, z_dim).
        scale: The size as a factor, with shape (N,).
        scale_std: Its standard deviations, with shape (N,).
    """

    psi_deg: np.ndarray | None
    offset_px: np.ndarray | None
    classes: np.ndarray | None
    peak: np.ndarray | None
    z: np.ndarray
    z_std: np.ndarray
    scale: np.ndarray | None = None
    scale_std: np.ndarray | None = None

    def __getitem__(self, rows: np.ndarray) -> "Found":
        def some(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[rows]

        pose = some(self.psi_deg), some(self.offset_px)
        size = some(self.scale), some(self.scale_std)
        z = self.z[rows], self.z_std[rows]
        return Found(*pose, some(self.classes), some(self.peak), *z, *size)


def check_units(particles: ParticleSet) -> None:
    """Raise ValueError if a star in Å cannot be written because Å per pixel are not known."""
    table = particles.table
    if particles.pixel_size is None and isinstance(table, StarTable) and _in_angstrom(table):
        raise ValueError(
            f"{particles.source}: expected a pixel size, because offsets are written in Å; "
            "give dataset.pixel_size"
        )


def star_table(particles: ParticleSet, found: Found) -> StarTable:
    """The particles' star with all its columns and those that were inferred.

    Of particles that no star listed, one with their names, as RELION 3.1 has it, and with their
    CTFs where these are known. Where there is neither a star nor a pixel size, it is one of RELION
    3.0, whose offsets are in pixels.

    Arguments:
        particles: N particles.
        found: Of these, in their order.
    """
    table = particles.table
    own = table.select(particles.rows) if isinstance(table, StarTable) else new_table(particles)
    angstrom = _in_angstrom(own)
    columns: dict[str, np.ndarray] = {}
    if found.psi_deg is not None and found.offset_px is not None:
        columns["rlnAnglePsi"] = found.psi_deg
        offset = found.offset_px
        if angstrom:
            assert particles.pixel_size is not None
            offset = offset * particles.pixel_size[:, None]
        for column, axis in enumerate("XY"):
            columns[f"rlnOrigin{axis}{'Angst' if angstrom else ''}"] = offset[:, column]
    if found.classes is not None:
        columns["rlnClassNumber"] = found.classes + 1
    if found.peak is not None:
        columns["rlnMaxValueProbDistribution"] = found.peak
    for number in range(found.z.shape[1]):
        columns[f"svaeZ{number}"] = found.z[:, number]
        columns[f"svaeZ{number}Std"] = found.z_std[:, number]
    if found.scale is not None and found.scale_std is not None:
        columns |= {"svaeScale": found.scale, "svaeScaleStd": found.scale_std}
    return own.with_columns(columns)


def cs_table(particles: ParticleSet, found: Found) -> CsTable:
    """The particles' `.cs` with all its fields and those that were inferred, as `star_table`."""
    table = particles.table
    assert isinstance(table, CsTable)
    columns: dict[str, np.ndarray] = {}
    if found.psi_deg is not None and found.offset_px is not None:
        columns["alignments2D/pose"] = np.deg2rad(found.psi_deg).astype(np.float32)
        columns["alignments2D/shift"] = found.offset_px.astype(np.float32)
        if particles.pixel_size is not None:
            columns["alignments2D/psize_A"] = particles.pixel_size.astype(np.float32)
    if found.classes is not None:
        columns["alignments2D/class"] = found.classes.astype(np.uint32)
    for number in range(found.z.shape[1]):
        columns[f"svae/z{number}"] = found.z[:, number].astype(np.float32)
        columns[f"svae/z{number}_std"] = found.z_std[:, number].astype(np.float32)
    if found.scale is not None and found.scale_std is not None:
        columns["svae/scale"] = found.scale.astype(np.float32)
        columns["svae/scale_std"] = found.scale_std.astype(np.float32)
    return table.select(particles.rows).with_columns(columns)


def model_classes(averages: str, counts: np.ndarray, z: np.ndarray) -> StarTable:
    """The star that lists class averages.

    Arguments:
        averages: The name of their stack.
        counts: The particles of each class, with shape (K,).
        z: The mean content of each class, with shape (K, z_dim).
    """
    columns: dict[str, np.ndarray | list[str]] = {
        "rlnReferenceImage": [f"{i + 1:06d}@{averages}" for i in range(len(counts))],
        "rlnClassDistribution": counts / counts.sum(),
        "svaeParticles": counts,
    }
    columns |= {f"svaeZ{number}": z[:, number] for number in range(z.shape[1])}
    loop = new_star(columns, {}).loops[1]
    return StarTable([replace(loop, block="model_classes")], particles=0)


def _in_angstrom(table: StarTable) -> bool:
    return table.optics is not None or table.column("rlnOriginXAngst") is not None


def new_table(particles: ParticleSet) -> StarTable:
    """A star of particles that none listed, their stacks with whole paths."""
    stacks = np.array([str(path) for path in particles.stacks])[particles.stack]
    names = [f"{i + 1:06d}@{stack}" for i, stack in zip(particles.place, stacks, strict=True)]
    columns: dict[str, np.ndarray | list[str]] = {"rlnImageName": names}
    ctf = particles.ctf or {}
    columns |= {tag: ctf[n] for n, tag in STAR_CTF.items() if n in ctf and n not in _PER_GROUP}
    if particles.pixel_size is None:
        return StarTable([replace(new_star(columns, {}).loops[1], block="images", comment="")], 0)
    shared = {"rlnImagePixelSize": particles.pixel_size}
    shared |= {STAR_CTF[name]: ctf[name] for name in _PER_GROUP if name in ctf}
    values, group = np.unique(np.stack(list(shared.values()), 1), axis=0, return_inverse=True)
    columns["rlnOpticsGroup"] = group.reshape(-1) + 1
    numbers = np.arange(1, len(values) + 1)
    optics: dict[str, np.ndarray | list[str]] = {
        "rlnOpticsGroupName": [f"opticsGroup{number}" for number in numbers],
        "rlnOpticsGroup": numbers,
        "rlnImageSize": np.full(len(values), particles.width),
        "rlnImageDimensionality": np.full(len(values), 2),
    }
    optics |= dict(zip(shared, values.T, strict=True))
    return new_star(columns, optics)
