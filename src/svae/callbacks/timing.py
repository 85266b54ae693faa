"""How fast training goes, validation not counted."""

import logging
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

__all__ = ["Timing"]

log = logging.getLogger(__name__)


class Timing(Callback):
    """Logs `train/seconds_per_epoch`, `train/images_per_second` and the total so far.

    An epoch that is resumed in its middle takes the time of its parts.
    """

    def __init__(self) -> None:
        self.total_seconds, self.seconds, self.images = 0.0, 0.0, 0
        self.started = perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # An epoch that is resumed in its middle has no start of its own.
        self.started = perf_counter() - self.seconds
        self.seconds = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started, self.images, self.seconds = perf_counter(), 0, 0.0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: dict[str, torch.Tensor],
        batch_idx: int,
    ) -> None:
        if not self.images and not trainer.current_epoch:
            # What is compiled is compiled in it.
            log.info("the first step took %.1f s", perf_counter() - self.started)
        self.images += len(batch["index"]) * trainer.world_size
        if trainer.is_last_batch or trainer.global_step == trainer.max_steps:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()  # kernels that are still queued belong to the epoch
            self.seconds = perf_counter() - self.started
            self.total_seconds += self.seconds

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.seconds:
            pl_module.log("train/seconds_per_epoch", self.seconds)
            pl_module.log("train/images_per_second", self.images / self.seconds)
            pl_module.log("train/total_seconds", self.total_seconds)

    def state_dict(self) -> dict[str, Any]:
        # What there is of an epoch that is not over.
        seconds = self.seconds or perf_counter() - self.started
        return {"total_seconds": self.total_seconds, "seconds": seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total_seconds = state_dict["total_seconds"]
        self.seconds = state_dict.get("seconds", 0.0)
        self.images = state_dict.get("images", 0)
