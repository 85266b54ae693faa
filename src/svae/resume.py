"""A run that is started again in its own folder: what is there, and whether it can go on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from svae import directories
from svae.errors import UserError
from svae.run import first_difference, read_config
from svae.status import Status

try:
    import fcntl
except ImportError:  # Windows; there, a job that is started twice at once is not noticed
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "alone",
    "last_checkpoint",
    "nothing_to_do",
    "other_setting",
    "refuse_other_settings",
    "remove_unfinished_files",
]

#: A run has these in common with the one that it goes on with.
ALIKE = ("seed", "dataset", "model", "prior", "optimizer", "scheduler", "max_gradient_spike")

#: A run that has ended goes on if one of these asks for more.
_LIMITS = ("max_epochs", "max_steps", "max_time")


@contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """Keep other processes out of the folder of a sweep's job.

    A folder that the user names was locked before.

    Raises:
        UserError: Another process is in it.
    """
    of_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if fcntl is None or not of_sweep:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not any(os.path.sameopenfile(descriptor, other) for other in directories._locked):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{folder} is in use by another process, which is at this very run"
                ) from error
            except OSError:
                pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def last_checkpoint(run: str | Path) -> Path | None:
    """What the run of a folder goes on from; None if it begins anew."""
    path = Path(run, "checkpoints", "last.ckpt")
    return path if path.is_file() else None


def other_setting(run: str | Path, cfg: DictConfig) -> tuple[str, Any, Any] | None:
    """The first setting in which another run differs from this one: its name and both values."""
    old: Any = OmegaConf.to_container(read_config(run), resolve=True)
    new: Any = OmegaConf.to_container(cfg, resolve=True)
    return first_difference(old, new, ALIKE)


def refuse_other_settings(run: str | Path, cfg: DictConfig) -> None:
    """Raise ValueError if a folder holds a run of other settings than a finished config."""
    if not Path(run, "config.yaml").is_file():
        return  # it failed before it had its settings
    if found := other_setting(run, cfg):
        name, old, new = found
        raise ValueError(
            f"{run} holds a run with {name}={old!r}, not {new!r}; expected the same settings, to "
            "go on with it, or another folder"
        )


def nothing_to_do(run: str | Path, status: Status, cfg: DictConfig) -> bool:
    """Whether the run of a folder has ended, and the config asks for no more than it did.

    More is another number of epochs or steps, more time, or the test.
    """
    if not status.ended:
        return False
    before = read_config(run)
    longer = any(before.trainer.get(name) != cfg.trainer.get(name) for name in _LIMITS)
    return not longer and (before.test or not cfg.test)


@rank_zero_only
def remove_unfinished_files(run: str | Path) -> None:
    """Remove what a process that was killed had not written to the end."""
    for path in Path(run).rglob(".*.part"):
        path.unlink(missing_ok=True)
