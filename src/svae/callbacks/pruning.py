"""Ending the jobs of a sweep that are worse than most others."""

import csv
import logging
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from svae.checks import at_least
from svae.directories import JOBS

__all__ = ["MedianPruning"]

log = logging.getLogger(__name__)


class MedianPruning(Callback):
    """Ends a job of a sweep whose best `val/elbo` so far is below the median of the others.

    The others are the jobs with a folder beside this one's, ended or not, that have come as far;
    of each, the best `val/elbo` up to the same epoch is taken, from its `metrics.csv`. In a run
    by itself nothing happens.

    This is the median stopping rule (Golovin et al., Google Vizier, KDD 2017) with the best value
    in the place of the running mean.

    The values must be comparable: a sweep over data sets or likelihoods is none to prune.

    Arguments:
        folder: The run directory.
        warmup_epochs: Epochs in which no job ends.
        min_jobs: How many others must have come as far.
    """

    def __init__(self, folder: str, warmup_epochs: int = 5, min_jobs: int = 5) -> None:
        self.folder = Path(folder)
        self.warmup_epochs = at_least("warmup_epochs", warmup_epochs, 0)
        self.min_jobs = at_least("min_jobs", min_jobs, 1)
        self.best = -math.inf
        #: Why the job ended, in one line; empty as long as it has not.
        self.reason = ""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = trainer.callback_metrics["val/elbo"].item()
        self.best = max(self.best, value)
        epoch = trainer.current_epoch
        if trainer.state.fn != "fit" or epoch < self.warmup_epochs:
            return
        # The first process alone looks, since what it sees may change at any moment.
        reason = self.worse(epoch) if trainer.is_global_zero else ""
        reason = trainer.strategy.broadcast(reason)
        if reason:
            self.reason = reason
            trainer.should_stop = True
            log.info("ended early: %s", reason)

    def worse(self, epoch: int) -> str:
        """That this job is worse than most others, in words; empty where it is not."""
        others = list(self.others(epoch))
        if len(others) < self.min_jobs or self.best >= (median := statistics.median(others)):
            return ""
        return (
            f"after {epoch + 1} epochs the best val/elbo is {self.best:.5g}, below the median "
            f"{median:.5g} of {len(others)} other jobs"
        )

    def others(self, epoch: int) -> Iterator[float]:
        """The best `val/elbo` up to an epoch of each other job that has come as far."""
        own = self.folder.absolute()
        if not (own.parent / JOBS).is_dir():
            return
        for path in sorted(own.parent.glob("*/metrics.csv")):
            if path.parent == own:
                continue
            with path.open(newline="") as file:
                rows = [(int(row["epoch"]), row.get("val/elbo")) for row in csv.DictReader(file)]
            if not rows or rows[-1][0] < epoch:
                continue
            values = [float(value) for number, value in rows if value and number <= epoch]
            if finite := [value for value in values if math.isfinite(value)]:
                yield max(finite)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
