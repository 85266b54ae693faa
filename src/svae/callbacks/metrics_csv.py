"""`metrics.csv`: one row per epoch."""

import csv
import io
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from svae.files import write_atomic

__all__ = ["MetricsCSV"]

log = logging.getLogger(__name__)


class MetricsCSV(Callback):
    """Writes what was logged in every epoch. A resumed run's file begins with the rows before it.

    Arguments:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []
        self.validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning keeps what earlier epochs logged: take only what this one did. An epoch that
        # a limit of steps or time cut short has no means of its own.
        fresh = ("train/",) * trainer.is_last_batch + ("val/",) * self.validated
        self.validated = False
        logged = {
            name: value.item()
            for name, value in trainer.callback_metrics.items()
            if fresh and name.startswith(fresh)
        }
        position = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        self.rows.append(position | dict(sorted(logged.items())))
        if trainer.is_global_zero:
            columns = list(dict.fromkeys(name for row in self.rows for name in row))
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            try:
                write_atomic(self.path, text.getvalue())
            except OSError as error:
                # The rows are in every checkpoint too, and the next epoch writes all of them.
                log.warning("%s is not up to date: %s", self.path, error.strerror)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
