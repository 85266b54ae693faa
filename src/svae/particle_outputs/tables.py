"""What was inferred from particles as RELION's and cryoSPARC's tables have it."""

from dataclasses import dataclass, replace

import numpy as np

from svae.formats.cryosparc import CsTable
from svae.formats.particle_lists import STAR_CTF, numbers
from svae.formats.particles import ParticleSet
from svae.formats.star import StarTable, new_star

__all__ = [
    "PIXEL_SIZES",
    "PLACEHOLDERS",
    "Found",
    "check_units",
    "cs_table",
    "in_3d",
    "model_classes",
    "new_table",
    "star_table",
    "with_given_pixel_size",
]

#: Of the CTF, what particles of one optics group share in a star of RELION 3.1, which reads none
#: without it; and what is written where it is not known: usual values that nobody measured.
PLACEHOLDERS = {"voltage_kV": 300.0, "cs_mm": 2.7, "amplitude_contrast": 0.1}

#: Å per pixel, or µm of the detector, to which that is proportional.
PIXEL_SIZES = ("rlnImagePixelSize", "rlnPixelSize", "rlnDetectorPixelSize")

#: What a star says of angle and offset, in pixels and in Å: what was found, and its prior.
_POSE = {"rlnAnglePsi", "rlnAnglePsiPrior"} | {
    f"rlnOrigin{axis}{prior}{unit}"
    for axis in "XY"
    for prior in ("", "Prior")
    for unit in ("", "Angst")
}


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

    Priors of the poses that these replace are left out. A pixel size that was given is written.

    Of particles that no star listed, one with their names, as RELION 3.1 has it, and with their
    CTFs where these are known. Where there is neither a star nor a pixel size, it is one of RELION
    3.0, whose offsets are in pixels.

    Arguments:
        particles: N particles.
        found: Of these, in their order.
    """
    table = particles.table
    if isinstance(table, StarTable):
        own = with_given_pixel_size(table.select(particles.rows), particles)
    else:
        own = new_table(particles)
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
        # The rest is of the pose that was there before.
        own = own.without(_POSE - columns.keys())
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
    if particles.pixel_size_given and particles.pixel_size is not None:
        columns["blob/psize_A"] = particles.pixel_size.astype(np.float32)
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


def in_3d(particles: ParticleSet) -> int:
    """How many particles a star sees from somewhere: `rlnAngleRot` or `rlnAngleTilt` is not 0.

    Raises:
        ValueError: One is no number.
    """
    seen = np.zeros(len(particles), bool)
    for tag in ("rlnAngleRot", "rlnAngleTilt"):
        table = particles.table
        values = table.column(tag) if isinstance(table, StarTable) else None
        if values is not None:
            seen |= numbers(particles.source, tag, values)[particles.rows] != 0
    return int(seen.sum())


def with_given_pixel_size(star: StarTable, particles: ParticleSet) -> StarTable:
    """A star with the pixel size of its particles, where somebody gave it in place of its own."""
    if not particles.pixel_size_given or particles.pixel_size is None:
        return star
    loop = star.loops[star.particles if star.optics is None else star.optics]
    given = np.full(len(loop), particles.pixel_size[0])
    if star.optics is not None:
        return star.with_columns({"rlnImagePixelSize": given}, optics=True)
    # Before optics groups, only their quotient counted; RELION itself wrote this magnification.
    sizes = {tag: given for tag in PIXEL_SIZES if tag in loop.columns}
    detector = {"rlnDetectorPixelSize": given, "rlnMagnification": np.full(len(loop), 1e4)}
    return star.with_columns(sizes | detector)


def new_table(particles: ParticleSet) -> StarTable:
    """A star of particles that none listed, under the paths that their stacks have.

    It holds the CTF where all of it is known. Where voltage, spherical aberration or amplitude
    contrast are not, they are `PLACEHOLDERS`. Without a pixel size it is a star of RELION 3.0.
    """
    stacks = np.array([str(path) for path in particles.stacks])[particles.stack]
    names = [f"{i + 1:06d}@{stack}" for i, stack in zip(particles.place, stacks, strict=True)]
    columns: dict[str, np.ndarray | list[str]] = {"rlnImageName": names}
    ctf = particles.ctf or {}
    # RELION would take what is missing for 0.
    if ctf.keys() == STAR_CTF.keys():
        own = PLACEHOLDERS if particles.pixel_size is not None else {}
        columns |= {tag: ctf[name] for name, tag in STAR_CTF.items() if name not in own}
    if particles.pixel_size is None:
        return StarTable([replace(new_star(columns, {}).loops[1], block="images", comment="")], 0)
    shared = {"rlnImagePixelSize": particles.pixel_size}
    shared |= {
        STAR_CTF[name]: ctf.get(name, np.full(len(particles), value))
        for name, value in PLACEHOLDERS.items()
    }
    values, group = np.unique(np.stack(list(shared.values()), 1), axis=0, return_inverse=True)
    columns["rlnOpticsGroup"] = group.reshape(-1) + 1
    group_numbers = np.arange(1, len(values) + 1)
    optics: dict[str, np.ndarray | list[str]] = {
        "rlnOpticsGroupName": [f"opticsGroup{number}" for number in group_numbers],
        "rlnOpticsGroup": group_numbers,
        "rlnImageSize": np.full(len(values), particles.width),
        "rlnImageDimensionality": np.full(len(values), 2),
    }
    optics |= dict(zip(shared, values.T, strict=True))
    return new_star(columns, optics)
