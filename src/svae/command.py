"""What every command shares: configs from `conf/`, and mistakes told in one line."""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from svae.directories import release
from svae.errors import UserError, one_line
from svae.paths import conf_dir

__all__ = ["command", "given"]

log = logging.getLogger(__name__)

Task = Callable[[DictConfig], Any]


def given(group: str) -> set[str]:
    """The keys of a config group that the command line sets."""
    overrides = [o.lstrip("+~") for o in HydraConfig.get().overrides.task]
    return {o.partition("=")[0].removeprefix(f"{group}.") for o in overrides if f"{group}." in o}


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
        def guarded(cfg: DictConfig) -> Any:
            # Lightning's advertisements and advice; its warnings stay.
            logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            # What that means is said when the run is interrupted, in this program's words.
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended")
            started.append(True)
            try:
                return task(cfg)
            except UserError as error:
                # In a sweep Hydra goes on with the other jobs, and raises at its end.
                if show_all or HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise
                # SystemExit, because Hydra adds lines of its own to every other exception.
                log.error("%s", error)
                sys.exit(2)

        def main() -> None:
            started.clear()
            # Otherwise Hydra prints its errors itself, in several lines.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            run = hydra.main(version_base="1.3", config_path=conf_dir(), config_name=config_name)
            try:
                run(guarded)()
            except (HydraException, OmegaConfBaseException, UserError) as error:
                if show_all:
                    raise
                sys.exit(f"svae: {one_line(error)}")
            except OSError as error:
                # Only a path that cannot be made is told here; not a pipe that was closed.
                if show_all or started or error.filename is None:
                    raise
                sys.exit(f"svae: the output folder cannot be made: {one_line(error)}")
            finally:
                release()
                os.environ["HYDRA_FULL_ERROR"] = "1" if show_all else "0"

        return main

    return decorate
