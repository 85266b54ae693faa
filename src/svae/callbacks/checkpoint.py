"""The two checkpoints of a run: the best by validation, and the last."""

import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

__all__ = ["BestCheckpoint", "LastCheckpoint"]


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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The last checkpoint of another run stays where it is.
        if state_dict["dirpath"] == self.dirpath:
            super().load_state_dict(state_dict)
