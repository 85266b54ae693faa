"""Where a training may be saved and ended: between two steps."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from svae.callbacks.checkpoint import LastCheckpoint
from svae.signals import Signals

__all__ = ["BetweenSteps", "Interrupted"]

_SAVE, _END = 1, 2


class Interrupted(Exception):
    """A training or a test was asked to end, and what there was of it is saved."""


class BetweenSteps(Callback):
    """Saves `last.ckpt` within an epoch, when it is time or when a signal asks to end.

    A state is saved after a step of the optimiser only. After the last of an epoch it is not,
    because what Lightning then has in hand, the epoch's means for one, is in no checkpoint: the
    state before that step is kept in memory until the epoch is over, for when validation or
    figures are interrupted. A run that goes on from there repeats one step.

    All processes do so at the same step.

    Arguments:
        signals: The requests to end.
        last: What saves; None for nothing.
    """

    def __init__(self, signals: Signals, last: LastCheckpoint | None) -> None:
        self.signals, self.last = signals, last

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning has put handlers of its own by now: only one of the two may act.
        self.signals.listen()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.listen()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # At the end of an epoch checkpoints come last; here it is saved.
        if self._wanted(trainer) == _END:
            raise Interrupted

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        window = trainer.accumulate_grad_batches
        left = trainer.num_training_batches - (batch_idx + 1)
        steps_left = trainer.max_steps - trainer.global_step if trainer.max_steps > 0 else left
        if (batch_idx + 1) % window or left <= 0 or steps_left <= 0:
            return
        wanted = self._wanted(trainer)
        if wanted and self.last is not None:
            self.last.save(trainer)
        if wanted == _END:
            raise Interrupted
        if self.last is not None and (left <= window or steps_left == 1):
            self.last.hold(trainer)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any
    ) -> None:
        if self._wanted(trainer) == _END:
            if self.last is not None:
                self.last.write_held(trainer)
            raise Interrupted

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any
    ) -> None:
        if self._wanted(trainer) == _END:
            raise Interrupted

    def _wanted(self, trainer: pl.Trainer) -> int:
        """What some process wants: nothing, to save, or to end."""
        due = self.last is not None and self.last.due
        wanted = _END if self.signals.received else _SAVE * due
        if trainer.world_size == 1:
            return wanted
        everyones = torch.tensor(wanted, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(everyones, reduce_op="max"))
