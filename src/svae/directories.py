"""Every run in a folder of its own: none writes into another's."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf, read_write

from svae.status import read_status

try:
    import fcntl
except ImportError:  # Windows; there, a folder that the user names twice at once is not noticed
    fcntl = None  # type: ignore[assignment]

__all__ = ["JOBS", "OwnDirectory", "add_override", "as_typed", "held", "lock", "locked", "release"]

log = logging.getLogger(__name__)

#: In the folder of a sweep, what became of its jobs.
JOBS = ".jobs"

# The folders that this process has locked, as file descriptors.
_locked: list[int] = []


def release() -> None:
    """Let others use the folders that this process named as its own."""
    while _locked:
        os.close(_locked.pop())


class OwnDirectory(Callback):
    """Claims the output folder before Hydra writes anything into it.

    A folder named by the time is made by this process alone: where two start at the same moment,
    one of them gets another name. A folder that the user names may exist, but it must hold
    nothing, except what a start that failed leaves, and no other process may be using it.

    `output_dir=FOLDER` names that of a single run as `hydra.run.dir=FOLDER` does.

    Arguments:
        resumes: Whether the command goes on with what it finds. Then the folder may also hold a
            run with `status.json`, or a sweep of such runs.
    """

    def __init__(self, resumes: bool = False) -> None:
        self.resumes = resumes

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._claim(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._claim(config, "sweep")

    def _claim(self, config: DictConfig, kind: str) -> None:
        node = config.hydra[kind]
        overrides = config.hydra.overrides
        named = any(o.startswith(f"hydra.{kind}.dir=") for o in as_typed(overrides.hydra))
        if any(o.startswith("output_dir=") for o in as_typed(overrides.task)):
            if kind == "sweep":
                sys.exit(
                    "svae: output_dir: expected none in a sweep, whose runs have a folder each; "
                    "hydra.sweep.dir=FOLDER names where those lie"
                )
            if named and node.dir != config.output_dir:
                sys.exit(
                    f"svae: output_dir: expected that of hydra.run.dir, {node.dir}, or only one "
                    f"of both, got {config.output_dir!r}"
                )
            named, chosen = True, config.output_dir
            if not isinstance(chosen, str) or not chosen:
                sys.exit(f"svae: output_dir: expected a folder, got {chosen!r}")
            with read_write(config):
                node.dir = chosen
                # As where it was not set: an absolute path, once Hydra knows it.
                config.output_dir = "${hydra:runtime.output_dir}"
        # Hydra turns an exception of a callback into a warning; SystemExit passes.
        try:
            wanted = Path(node.dir)
            path = self._open_named(wanted, kind) if named else _make_new(wanted)
        except OSError as error:
            sys.exit(f"svae: the output folder {node.dir} cannot be made: {error.strerror}")
        except ValueError as error:
            sys.exit(f"svae: {error}")
        with read_write(config.hydra):
            node.dir = str(path)
        if kind == "sweep" and path != wanted:
            add_override(config, "hydra.sweep.dir", str(path))

    def _open_named(self, path: Path, kind: str) -> Path:
        """Take a folder that the user named, made if need be; `.` is nobody's and always free."""
        if path == Path():
            return path
        path.mkdir(parents=True, exist_ok=True)
        names = held(path)
        resumable = _holds_sweep if kind == "sweep" else read_status
        if names and not (self.resumes and resumable(path)):
            sys.exit(
                f"svae: the output folder {path} is not empty (it holds {names[0]}); expected a "
                "new or an empty one, so that nothing is overwritten"
            )
        if not lock(path):
            sys.exit(f"svae: the output folder {path} is in use by another process")
        return path


def held(path: Path) -> list[str]:
    """What a folder holds, except for what a start that failed leaves; sorted."""
    return sorted(p.name for p in path.iterdir() if p.name != ".hydra" and p.suffix != ".log")


def as_typed(overrides: ListConfig) -> list[str]:
    """Overrides as they were typed: what is interpolated in one need not be there yet."""
    return list(map(str, OmegaConf.to_container(overrides, resolve=False) or ()))


def add_override(config: DictConfig, key: str, value: str) -> None:
    """Set something in a sweep's jobs, whose configs are composed again from the overrides."""
    with read_write(config.hydra):
        text = QuotedString(value, Quote.single).with_quotes()
        config.hydra.overrides.hydra.append(f"{key}={text}")


def _holds_sweep(path: Path) -> bool:
    """Whether a folder holds a sweep, of which every run has a status."""
    if not (path / JOBS).is_dir():
        return False
    runs = [p for p in path.iterdir() if (p / "config.yaml").is_file()]
    return all(read_status(run) for run in runs)


def _make_new(path: Path) -> Path:
    """Make a folder that was not there, under the first free of the names path, path-1, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    candidate, number = path, 0
    while True:
        try:
            candidate.mkdir()
            break
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")
    lock(candidate)  # whoever names it, to go on with it, must wait for its end
    return candidate


def lock(path: str | Path) -> bool:
    """Hold a folder until the command ends, without a file of its own; whether it was free."""
    return _lock(path)[1]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a folder for a while, after waiting for any other process that does."""
    file, free = _lock(path)
    if not free:
        log.info("%s is in use by another process: waiting for its end", path)
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if file in _locked:
            _locked.remove(file)
            os.close(file)


def _lock(path: str | Path) -> tuple[int, bool]:
    if fcntl is None:
        return -1, True
    file = os.open(path, os.O_RDONLY)
    _locked.append(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return file, False
    except OSError:
        pass  # a file system without locks
    return file, True


def _hydra_folder() -> str | None:
    """Where Hydra writes its part of the config; nowhere if a run lies there already."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        status = read_status(folder)
    except ValueError:
        return None
    # A job of a sweep has a status also where it failed before there was a run.
    there = (folder / "config.yaml").exists() or (status is not None and status.ended)
    return None if there else ".hydra"


OmegaConf.register_new_resolver("svae.hydra_folder", _hydra_folder, replace=True)
