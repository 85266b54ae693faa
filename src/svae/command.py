"""What every command shares: configs from `conf/`, and mistakes told in one line."""

import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from svae.directories import release
from svae.distributed import dismiss, follow, following, lead
from svae.errors import UserError, one_line
from svae.hardware import keep_freed_memory
from svae.multirun import alone, in_sweep, told_at_the_end
from svae.paths import conf_dir
from svae.typed import with_paths

__all__ = ["command", "given"]

log = logging.getLogger(__name__)

Task = Callable[[DictConfig], Any]


def given(group: str) -> set[str]:
    """The keys of a config group that the command line sets."""
    overrides = [o.lstrip("+~") for o in HydraConfig.get().overrides.task]
    return {o.partition("=")[0].removeprefix(f"{group}.") for o in overrides if f"{group}." in o}


def chosen(section: DictConfig) -> dict[str, Any]:
    """What a section of the config sets; null leaves it to the run."""
    return {str(name): value for name, value in section.items() if value is not None}


def not_installed(message: str) -> str:
    """What to install if an error says that a launcher or sweeper is not there; else nothing."""
    found = re.search("'hydra/(?:launcher|sweeper)/(joblib|submitit_[a-z]+|optuna)'", message)
    if not found:
        return ""
    return f"; pip install 'svae[{'optuna' if found[1] == 'optuna' else 'sweep'}]'"


def command(config_name: str) -> Callable[[Task], Callable[[], None]]:
    """Make a command of a function of the composed config.

    `HYDRA_FULL_ERROR=1` shows the traceback of a mistake.

    Arguments:
        config_name: The file in `conf/` that the command starts from.
    """

    def decorate(task: Task) -> Callable[[], None]:
        started: list[bool] = []
        show_all = os.environ.get("HYDRA_FULL_ERROR") == "1"

        @functools.wraps(task)
        def quiet(cfg: DictConfig) -> Any:
            # Lightning's advertisements and advice; its warnings stay.
            for name in ("pytorch_lightning", "lightning_fabric"):
                logging.getLogger(name).setLevel(logging.WARNING)
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            # What is logged is already the mean over all processes.
            warnings.filterwarnings("ignore", r".*sync_dist=True.* when logging on epoch level")
            warnings.filterwarnings("ignore", r"torch\.distributed\.nn\.functional\.all_gather")
            # Of a compiled network, a gradient with one channel may be laid out in another way.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            # The data set goes on in the middle of an epoch; Lightning does not know.
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended")
            keep_freed_memory()
            return task(cfg)

        @functools.wraps(task)
        def guarded(cfg: DictConfig) -> Any:
            started.append(True)
            if in_sweep():
                return alone(quiet, cfg, show_all)
            try:
                return quiet(cfg)
            except UserError as error:
                # In a sweep of which nobody keeps account, Hydra raises at its end.
                if show_all or HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise
                # SystemExit, because Hydra adds lines of its own to every other exception.
                log.error("%s", error)
                sys.exit(error.exit_status)

        def main() -> None:
            started.clear()
            typed = sys.argv
            try:
                if following():
                    sys.exit(follow(quiet))
                lead()
            except RuntimeError as error:
                sys.exit(f"svae: {one_line(error)}")
            sys.argv = [typed[0], *with_paths(typed[1:])]
            # Otherwise Hydra prints its errors itself, in several lines.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            run = hydra.main(version_base="1.3", config_path=conf_dir(), config_name=config_name)
            try:
                with told_at_the_end(show_all):
                    run(guarded)()
            except (HydraException, OmegaConfBaseException, UserError) as error:
                if show_all:
                    raise
                message = one_line(error)
                if isinstance(error, OverrideParseException):
                    message = f"{error.override}: {message}"
                sys.exit(f"svae: {message}{not_installed(message)}")
            except OSError as error:
                # Only a path that cannot be made is told here; not a pipe that was closed.
                if show_all or started or error.filename is None:
                    raise
                sys.exit(f"svae: the output folder cannot be made: {one_line(error)}")
            finally:
                dismiss()
                release()
                sys.argv = typed
                os.environ["HYDRA_FULL_ERROR"] = "1" if show_all else "0"

        return main

    return decorate
