"""What a star or a `.cs` says of particles after they were prepared."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from svae.formats.cryosparc import CsTable
from svae.formats.particle_lists import numbers
from svae.formats.particles import ParticleSet
from svae.formats.star import StarTable
from svae.particle_outputs.tables import PIXEL_SIZES, new_table, with_given_pixel_size

__all__ = ["prepared_table"]

#: Offsets in pixels, of RELION 3.0 and before; those in Å stay as they are.
_IN_PIXELS = ("rlnOriginX", "rlnOriginY", "rlnOriginXPrior", "rlnOriginYPrior")

#: Offsets of cryoSPARC in pixels, beside which the size of these may be written.
_SHIFTS = ("alignments2D", "alignments3D")


def prepared_table(
    particles: ParticleSet,
    stack: Path,
    kept: np.ndarray,
    size: tuple[int, int],
    inverted: bool,
) -> StarTable | CsTable:
    """The particles' own table, every column kept, of the images of a new stack.

    Particles without a table get a star with their names and pixel size (`new_table`).

    Arguments:
        particles: What was prepared, in the order of the stack.
        stack: The new stack, as tables are to name it.
        kept: The places in it that are to be listed.
        size: Height and width of its images.
        inverted: Whether bright and dark were exchanged.

    Raises:
        ValueError: A column does not hold numbers; the message names the file and the row.
    """
    ratio = particles.width / size[1]
    chosen = particles.select(kept)
    if chosen.pixel_size is not None:
        chosen.pixel_size = chosen.pixel_size * ratio
    if isinstance(chosen.table, StarTable):
        names = [f"{place + 1:06d}@{stack.as_posix()}" for place in kept.tolist()]
        star = chosen.table.select(chosen.rows).with_columns({"rlnImageName": names})
        return with_given_pixel_size(_star(star, particles.source, size[1], ratio), chosen)
    if isinstance(chosen.table, CsTable):
        return _cs(chosen, chosen.table.select(chosen.rows), stack, kept, size, ratio, inverted)
    new = replace(chosen, stacks=[stack], stack=np.zeros_like(kept), place=kept)
    new.height, new.width = size
    return new_table(new)


def _star(star: StarTable, source: Path, side: int, ratio: float) -> StarTable:
    for optics in (True, False):
        columns: dict[str, np.ndarray] = {}
        # Words stay as they were written where nothing was cropped.
        factors = dict.fromkeys(PIXEL_SIZES, ratio) | dict.fromkeys(_IN_PIXELS, 1 / ratio)
        for tag, factor in factors.items() if ratio != 1 else ():
            if (values := star.column(tag, optics=optics)) is not None:
                columns[tag] = numbers(source, tag, values) * factor
        if (values := star.column("rlnImageSize", optics=optics)) is not None:
            columns["rlnImageSize"] = np.full(len(values), side)
        if columns:
            star = star.with_columns(columns, optics=optics)
    return star


def _cs(
    chosen: ParticleSet,
    table: CsTable,
    stack: Path,
    kept: np.ndarray,
    size: tuple[int, int],
    ratio: float,
    inverted: bool,
) -> CsTable:
    columns: dict[str, np.ndarray] = {
        "blob/path": np.full(len(kept), stack.as_posix()),
        "blob/idx": kept.astype(np.uint32),
        "blob/shape": np.tile(np.array(size, np.uint32), (len(kept), 1)),
    }
    if chosen.pixel_size is not None:
        columns["blob/psize_A"] = chosen.pixel_size.astype(np.float32)
    if inverted and (sign := table.column("blob/sign")) is not None:
        columns["blob/sign"] = -sign
    for group in _SHIFTS:
        shift = table.column(f"{group}/shift")
        if shift is not None and table.column(f"{group}/psize_A") is None:
            columns[f"{group}/shift"] = shift / ratio
    return table.with_columns(columns)
