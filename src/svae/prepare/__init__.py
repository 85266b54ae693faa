"""`python -m svae.prepare dataset.path=in.star output=FOLDER`: particles ready for a model."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from svae.checks import at_least, one_of, within
from svae.command import command
from svae.datasets.base import read_ahead
from svae.datasets.particle_pixels import Preparation, cropped_pixel_size
from svae.directories import held, lock
from svae.errors import UserError, one_line, told_in_one_line
from svae.files import write_atomic
from svae.formats.cryosparc import CsTable, write_cs
from svae.formats.particles import ParticleReader, ParticleSet, read_particles
from svae.formats.star import StarTable, write_star
from svae.particle_outputs.relion import tell_relion
from svae.prepare.stack import MODES, GrowingStack
from svae.prepare.tables import prepared_table
from svae.signals import Signals

__all__ = ["main", "prepare"]

log = logging.getLogger(__name__)

#: What is written beside the table, which is `particles.star` or `particles.cs`.
STACK, RECORD = "particles.mrcs", "prepare.json"

#: How many pixels of the input each worker prepares at once.
AT_ONCE = 2**22


class Interrupted(UserError):
    """Somebody asked for the end."""

    exit_status = 130


def prepare(cfg: DictConfig) -> None:
    """Write the particles of `cfg.dataset` into `cfg.output`, as a model is to see them."""
    with told_in_one_line():
        workers = at_least("workers", cfg.workers, 1)
        with one_thread_each(), Signals() as signals:
            work = Work.of(cfg)
            if work.finished:
                log.info("%s: all of it is there already", work.folder)
                return
            work.write_images(workers, cfg.progress_bar, signals)
            work.write_table(cfg.skip_unusable)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let no operation use several threads: whole images are shared out instead."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class Work:
    """One preparation.

    Arguments:
        folder: Where everything is written.
        particles: What is prepared.
        preparation: How, with nothing left open.
        dtype: The type of the new pixels.
        record: What `prepare.json` says.
    """

    folder: Path
    particles: ParticleSet
    preparation: Preparation
    dtype: str
    record: dict[str, Any]

    @classmethod
    def of(cls, cfg: DictConfig) -> "Work":
        """What a config asks for, after its folder was claimed for it.

        Raises:
            OSError: A file cannot be read, or the folder not be made.
            ValueError: A setting or a file is wrong, or the folder is another's.
        """
        dtype, folder = one_of("dtype", cfg.dtype, list(MODES)), Path(cfg.output).expanduser()
        given: Any = OmegaConf.to_container(cfg.dataset, resolve=True, throw_on_missing=True)
        settings = {"dtype": dtype} | {
            f"dataset.{name}": value
            for name, value in given.items()
            if name not in ("path", "datadir", "select", "passthrough")  # told by `identity`
        }
        files = {name: given.pop(name) for name in ("path", "datadir", "select", "passthrough")}
        files["pixel_size"] = given.pop("pixel_size")
        with within("dataset"):
            preparation = Preparation(**given)
        # Nothing here depends on the CTF.
        particles = read_particles(**files, bad_ctf=None)
        source = {"source": str(particles.source), "identity": identity(particles)}
        work = cls(folder, particles, preparation, dtype, source | {"settings": settings})
        work.check()
        work.claim()
        return work

    @property
    def finished(self) -> bool:
        return self.record["finished"]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the new images."""
        side = self.preparation.size
        return (self.particles.height, self.particles.width) if side is None else (side, side)

    @property
    def stack(self) -> GrowingStack:
        """What is there of the new stack."""
        pixel_size = self.particles.one_pixel_size
        if pixel_size is not None:
            pixel_size = cropped_pixel_size(pixel_size, self.particles.width, self.size[1])
        return GrowingStack(
            self.folder / STACK, len(self.particles), *self.size, self.dtype, pixel_size
        )

    # ---- what is asked for

    def check(self) -> None:
        """Raise ValueError for what would otherwise fail in the middle or at the end."""
        with within("dataset"):
            self.preparation.check(self.particles.height, self.particles.width)
        self._table(np.arange(len(self.particles)))

    def claim(self) -> None:
        """Take the folder, and decide what was left open, or take over what was decided.

        Raises:
            OSError: The folder cannot be made or written into.
            ValueError: It is another's.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"output: {self.folder} cannot be made: {error.strerror}") from error
        if not lock(self.folder):
            raise ValueError(f"output: {self.folder} is in use by another process")
        if (self.folder / RECORD).exists():
            known = read_record(self.folder)
            if other := difference(known, self.record):
                raise ValueError(
                    f"output: {self.folder} holds another preparation: {other}; "
                    "name another folder"
                )
            self.record = known
            missing = [name for name in known["written"] if not (self.folder / name).exists()]
            if missing:
                raise ValueError(
                    f"output: {missing[0]} is not in {self.folder} any more; name another folder"
                )
        else:
            # Of a start that was killed, the beginning of the record may be there.
            names = [name for name in held(self.folder) if not name.startswith(f".{RECORD}.")]
            if names:
                raise ValueError(
                    f"output: {self.folder} is not empty (it holds {names[0]}); expected a new or "
                    "an empty folder, so that nothing is overwritten"
                )
            self._decide()
        self.preparation = replace(self.preparation, **self.record["decided"])

    def _decide(self) -> None:
        reader = ParticleReader(self.particles, check=False)
        try:
            settled = self.preparation.settled(reader, len(self.particles))
        except ValueError as error:
            raise ValueError(f"{self.particles.source}: {one_line(error)}") from error
        decided = {name: getattr(settled, name) for name in ("mean", "std", "invert")}
        self.record |= {"decided": decided, "finished": False, "written": []}
        self._write_record()

    def _write_record(self) -> None:
        write_atomic(self.folder / RECORD, json.dumps(self.record, indent=2) + "\n")

    # ---- what is written

    def write_images(self, workers: int, progress_bar: bool, signals: Signals) -> None:
        """Write the stack, or what is missing of it.

        Raises:
            OSError: The disk is full, or a file is not there any more.
            Interrupted: Somebody asked for the end.
        """
        if (self.folder / STACK).exists():
            return
        particles, count = self.particles, len(self.particles)
        reader = ParticleReader(particles, check=False)

        def part(rows: Tensor) -> tuple[np.ndarray, dict[int, str]]:
            images, unusable = self.preparation.prepared(reader[rows])
            return as_type(images.numpy(), self.dtype, unusable)

        stack = self.stack
        rows = torch.arange(stack.written, count)
        parts = rows.split(max(1, AT_ONCE // (particles.height * particles.width)))
        if stack.written:
            log.info("%s: going on after %d images", self.folder, stack.written)
        with (
            tqdm(
                total=count, initial=stack.written, unit=" images", disable=not progress_bar
            ) as bar,
            stack,
        ):
            # Threads, of which each prepares other images: torch lets the others run.
            for images, unusable in read_ahead(part, parts if len(rows) else (), workers):
                stack.add(images, unusable)
                bar.update(len(images))
                if signals.received is not None and stack.written < count:
                    raise Interrupted(
                        f"interrupted after {stack.written} of {count} images; the same command "
                        "goes on"
                    )
            stack.finish()

    def write_table(self, skip_unusable: bool) -> None:
        """Write the table of all images that can be used, and note that all is done.

        Raises:
            OSError: The disk is full.
            ValueError: Some cannot be used and are not to be skipped, or none can.
        """
        stack, count = self.stack, len(self.particles)
        kept = np.setdiff1d(np.arange(count), np.array(list(stack.unusable), np.int64))
        if stack.unusable:
            first, why = min(stack.unusable.items())
            told = (
                f"{self.particles.source}: {len(stack.unusable)} of {count} images cannot be "
                f"used, the first of them {self.particles.name(first)}: {why}"
            )
            if not len(kept):
                raise ValueError(told)
            if not skip_unusable:
                raise ValueError(
                    f"{told}; all others are ready, and the same command with skip_unusable=true "
                    "leaves these out"
                )
            log.warning("%s; they are left out", told)
        table = self._table(kept)
        if isinstance(table, CsTable):
            path = self.folder / "particles.cs"
            write_cs(path, table)
        else:
            path = self.folder / "particles.star"
            write_star(path, table)
        names = {self.particles.name(place): why for place, why in stack.unusable.items()}
        self.record |= {"finished": True, "written": [STACK, path.name], "left_out": names}
        self._write_record()
        stack.forget()
        height, width = self.size
        log.info("%d images of %d x %d pixels: %s", len(kept), width, height, path)
        if self.particles.table is None:
            tell_relion(path, self.particles, [self.folder / STACK])

    def _table(self, kept: np.ndarray) -> StarTable | CsTable:
        inverted = self.preparation.invert is True
        name = self.folder / STACK  # relative where the user's is, as RELION's projects have it
        return prepared_table(self.particles, name, kept, self.size, inverted)


def as_type(
    images: np.ndarray, dtype: str, unusable: dict[int, str]
) -> tuple[np.ndarray, dict[int, str]]:
    """Images of another type, and which cannot be used, now also for their values; 0 instead."""
    largest = float(np.finfo(dtype).max)
    too_large = np.flatnonzero(np.abs(images).max(axis=(1, 2)) > largest).tolist()
    images[too_large] = 0
    return images.astype(dtype), unusable | dict.fromkeys(
        too_large, f"its values are too large for {dtype}"
    )


def identity(particles: ParticleSet) -> str:
    """What tells particles from others, as a hash: their files, as these are now, and the rows."""
    files = [particles.source, *particles.stacks]
    stats = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    found = hashlib.sha256(json.dumps(stats).encode())
    for rows in (particles.stack, particles.place, particles.rows):
        found.update(np.ascontiguousarray(rows, np.int64).tobytes())
    return found.hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """What `prepare.json` says.

    Raises:
        ValueError: It is something else.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text())
        for name in ("source", "identity", "settings", "decided", "finished", "written"):
            record[name]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the record of a preparation ({error!r})") from error
    return record


def difference(known: dict[str, Any], new: dict[str, Any]) -> str:
    """In what two preparations differ; nothing if they do not."""
    if known["source"] != new["source"]:
        return f"of {known['source']}, and not of {new['source']}"
    if known["identity"] != new["identity"]:
        return f"{new['source']} or its stacks have changed since, or other particles are selected"
    for name, value in new["settings"].items():
        if (there := known["settings"].get(name)) != value:
            return f"{name} is {json.dumps(there)} there and {json.dumps(value)} here"
    return ""


main = command("prepare")(prepare)
