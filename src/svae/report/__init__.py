"""`python -m svae.report run=...`: `report.html` in a run directory, for a browser or a wiki."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from svae.command import command
from svae.errors import told_in_one_line
from svae.files import write_atomic
from svae.report.contents import read_contents
from svae.report.page import page

__all__ = ["main", "report", "write_report"]

log = logging.getLogger(__name__)


def write_report(run: str | Path) -> Path:
    """Write `report.html` into a run directory, from what lies there.

    The run may be going on or interrupted, or be an evaluation: the report says what is missing.

    Arguments:
        run: The run directory.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: There is no such folder, or nothing of a run in it.
    """
    path = Path(run) / "report.html"
    write_atomic(path, page(read_contents(run)))
    return path


def report(cfg: DictConfig) -> Path:
    """Write the report of `cfg.run`."""
    with told_in_one_line():
        path = write_report(str(cfg.run))
    log.info("report: %s", path)
    return path


main = command("report")(report)
