"""The two checkpoints of a run: the best by validation, and the last."""

import io
import logging
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from svae.files import write_atomic

__all__ = ["AtomicCheckpointIO", "BestCheckpoint", "LastCheckpoint"]

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all.

    Lightning's own writes to the system's temporary folder and moves the file from there, which
    copies it where that is another disk: killed or out of space half-way, it would leave half a
    checkpoint in the place of the one before.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomic(Path(path), content.getvalue())


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`, from the epoch with the highest validation bound.

    A run that resumes another one has a directory of its own. Lightning then forgets what was
    best before; here the earlier best checkpoint comes along, so that the resumed run ends as an
    uninterrupted one would have.

    Arguments:
        dirpath: The folder for the checkpoint.
    """

    def __init__(self, dirpath: str) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor="val/elbo",
            mode="max",
            save_top_k=1,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        #: All that was logged of validation at the best epoch.
        self.best_metrics: dict[str, float] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before = self.best_model_score
        super().on_validation_end(trainer, pl_module)
        if self.best_model_score is not before:
            logged = trainer.callback_metrics.items()
            self.best_metrics = {k: v.item() for k, v in logged if k.startswith("val/")}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"best_metrics": self.best_metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        old = Path(state_dict["best_model_path"])
        if state_dict["dirpath"] != self.dirpath:
            if self.dirpath is None or not old.is_file():
                return  # the best of before is gone; the resumed run finds its own
            new = Path(self.dirpath) / old.name
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(old, new)
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_model_path": str(new),
                "kth_best_model_path": str(new),
                "best_k_models": {str(new): state_dict["best_model_score"]},
            }
        self.best_metrics = state_dict["best_metrics"]
        super().load_state_dict(state_dict)


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt`, from the end of the newest epoch: where a run resumes.

    Arguments:
        dirpath: The folder for the checkpoint.
    """

    def __init__(self, dirpath: str) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="last",
            save_top_k=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        # Interrupted in its first epoch, a run has no checkpoint yet. Later, the one from the end
        # of an epoch is better: a run goes on from it exactly.
        assert self.dirpath is not None
        path = Path(self.dirpath) / "last.ckpt"
        if isinstance(exception, KeyboardInterrupt) and not path.is_file():
            trainer.save_checkpoint(path)
            log.warning(
                "interrupted in the first epoch: last.ckpt is from its middle, and a run that "
                "goes on from there sees some images of that epoch twice and others not"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The last checkpoint of another run stays where it is.
        if state_dict["dirpath"] == self.dirpath:
            super().load_state_dict(state_dict)
