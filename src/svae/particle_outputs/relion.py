"""What RELION asks of a star that was made anew, and of the stacks that it names."""

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

from svae.formats.particle_lists import STAR_CTF
from svae.formats.particles import ParticleSet
from svae.formats.star import StarTable
from svae.particle_outputs.tables import PLACEHOLDERS

__all__ = ["linked", "tell_relion"]

log = logging.getLogger(__name__)


def linked(particles: ParticleSet, folder: Path) -> ParticleSet:
    """Particles in stacks under names that RELION reads.

    RELION takes a `.mrc` for a 3D map: of every stack that is not named `.mrcs` a link is made
    that is, those of equal names numbered. Particles of a star keep the names that it gives them,
    and an `.npy` is nothing that RELION reads under any name.

    Arguments:
        particles: Where they lie.
        folder: Of the links; it is made if there are any.

    Returns:
        The particles with the links as their stacks; as they were where the file system has none.
    """
    if isinstance(particles.table, StarTable):
        return particles
    stacks, copies, taken = list(particles.stacks), Counter[str](), set[str]()
    for number, stack in enumerate(particles.stacks):
        if stack.suffix in (".mrcs", ".npy"):
            continue
        name = stack.stem
        # Some file systems tell no A from an a.
        while name.casefold() in taken:
            copies[stack.stem] += 1
            name = f"{stack.stem}_{copies[stack.stem] + 1}"
        taken.add(name.casefold())
        stacks[number] = folder.absolute() / f"{name}.mrcs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stacks[number].symlink_to(stack)
        except OSError:
            return particles
    return replace(particles, stacks=stacks)


def tell_relion(star: Path, particles: ParticleSet, stacks: list[Path]) -> None:
    """Log where RELION's users find a star, or why RELION does not read it.

    Arguments:
        star: The file.
        particles: What it lists.
        stacks: Those that it names.
    """
    new = not isinstance(particles.table, StarTable)
    suffixes = {stack.suffix for stack in stacks}
    if ".npy" in suffixes:
        log.info(
            "particles: %s (RELION reads no .npy: python -m svae.prepare writes a stack that it "
            "reads)",
            star,
        )
    elif new and ".mrc" in suffixes:
        log.warning(
            "%s: RELION takes a .mrc for a 3D map, and no links named .mrcs could be made beside "
            "the star; rename the stacks to .mrcs, or let python -m svae.prepare write a new one",
            star,
        )
    elif new and particles.pixel_size is None:
        log.info(
            "particles: %s (RELION 3.1 and later read no star without a pixel size: give "
            "dataset.pixel_size)",
            star,
        )
    else:
        log.info("for RELION: %s", star)
        unknown = [name for name in PLACEHOLDERS if name not in (particles.ctf or {})]
        if new and unknown:
            log.info(
                "in it are placeholders, which RELION needs to read it, and no measurements: %s",
                ", ".join(f"{STAR_CTF[name]} {PLACEHOLDERS[name]:g}" for name in unknown),
            )
