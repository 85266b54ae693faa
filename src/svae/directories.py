"""Every run in a folder of its own: none writes into another's."""

import os
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write

try:
    import fcntl
except ImportError:  # Windows; there, a folder that the user names twice at once is not noticed
    fcntl = None  # type: ignore[assignment]

__all__ = ["OwnDirectory", "release"]

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
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._claim(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._claim(config, "sweep")

    def _claim(self, config: DictConfig, kind: str) -> None:
        if "LOCAL_RANK" in os.environ:
            return  # a process of a distributed training shares the folder of its first process
        node = config.hydra[kind]
        named = any(o.startswith(f"hydra.{kind}.dir=") for o in config.hydra.overrides.hydra)
        # Hydra turns an exception of a callback into a warning; SystemExit passes.
        try:
            path = Path(node.dir)
            path = _open_named(path) if named else _make_new(path)
        except OSError as error:
            sys.exit(f"svae: the output folder {node.dir} cannot be made: {error.strerror}")
        with read_write(config.hydra):
            node.dir = str(path)


def _make_new(path: Path) -> Path:
    """Make a folder that was not there, under the first free of the names path, path-1, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    candidate, number = path, 0
    while True:
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")


def _open_named(path: Path) -> Path:
    """Take a folder that the user named, made if need be; `.` is nobody's and always free."""
    if path == Path():
        return path
    path.mkdir(parents=True, exist_ok=True)
    held = [p.name for p in path.iterdir() if p.name != ".hydra" and p.suffix != ".log"]
    if held:
        sys.exit(
            f"svae: the output folder {path} is not empty (it holds {min(held)}); expected a new "
            "or an empty one, so that nothing is overwritten"
        )
    if fcntl is not None:
        # Held until the command ends, and without a file of its own.
        _locked.append(os.open(path, os.O_RDONLY))
        try:
            fcntl.flock(_locked[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"svae: the output folder {path} is in use by another process")
        except OSError:
            pass  # a file system without locks
    return path
