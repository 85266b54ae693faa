"""The two checkpoints of a run: the best by validation, and the last."""

import io
from collections import OrderedDict
from pathlib import Path
from time import monotonic
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from svae.checks import positive
from svae.errors import UserError
from svae.files import write_atomic

__all__ = ["AtomicCheckpointIO", "BestCheckpoint", "LastCheckpoint"]

#: What `trainer.save_checkpoint` is told so that a checkpoint stays in memory.
HOLD = "hold"

#: What `torch.load` reads back without running code; of other types it is tried.
_PLAIN = (type(None), bool, int, float, str, torch.Tensor, torch.nn.Parameter)


def check_readable(checkpoint: Any, where: str = "") -> None:
    """Find what could be written into a checkpoint but not be read back.

    Only what is not plain is tried, and by itself: this costs nothing beside writing the file.

    Raises:
        UserError: There is something; the message names its place.
    """
    kind = type(checkpoint)
    if kind in _PLAIN:
        return
    if kind in (dict, OrderedDict):
        for key, value in checkpoint.items():
            inside = f"{where}.{key}" if where else str(key)
            check_readable(key, f"{inside} (the key)")
            check_readable(value, inside)
    elif kind in (list, tuple):
        for i, value in enumerate(checkpoint):
            check_readable(value, f"{where}[{i}]")
    elif not _comes_back(checkpoint):
        raise UserError(
            f"checkpoint: {where} is {kind.__module__}.{kind.__qualname__}, which could not be "
            "read back; expected tensors, numbers, text, lists and dictionaries"
        )


def _comes_back(value: Any) -> bool:
    content = io.BytesIO()
    try:
        torch.save(value, content)
        content.seek(0)
        torch.load(content, weights_only=True)
    except Exception:  # whatever a class of somebody's raises while it is pickled
        return False
    return True


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all.

    Lightning's own writes to the system's temporary folder and moves the file from there, which
    copies it where that is another disk: killed or out of space half-way, it would leave half a
    checkpoint in the place of the one before.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: tuple[Path, bytes] | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        check_readable(checkpoint)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        if storage_options == HOLD:
            self._held = Path(path), content.getvalue()
            return
        if self._held is not None and self._held[0] == Path(path):
            self._held = None
        write_atomic(Path(path), content.getvalue())

    def write_held(self) -> None:
        """Write the checkpoint that was held back, unless a newer one has taken its place."""
        if self._held is not None:
            write_atomic(*self._held)
            self._held = None


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`, from the epoch with the highest validation bound.

    A run that resumes another one, or whose folder was moved, has another directory than its
    checkpoint remembers. Lightning then forgets what was best before; here the best checkpoint is
    looked for beside the one that training goes on from, so that the resumed run ends as an
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
        self._beside: Path | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before = self.best_model_score
        super().on_validation_end(trainer, pl_module)
        if self.best_model_score is not before:
            logged = trainer.callback_metrics.items()
            self.best_metrics = {k: v.item() for k, v in logged if k.startswith("val/")}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._beside = Path(trainer.ckpt_path).parent if trainer.ckpt_path else None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"best_metrics": self.best_metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not state_dict["best_model_path"]:
            return
        assert self.dirpath is not None
        remembered = Path(state_dict["best_model_path"])
        new = Path(self.dirpath, remembered.name)
        beside = (self._beside or remembered.parent) / remembered.name
        old = next((path for path in (beside, remembered) if path.is_file()), None)
        if old is None:
            return  # the best of before is gone; the resumed run finds its own
        if not (new.is_file() and new.samefile(old)):
            copy_on_first_process(old, new)
        self.best_metrics = state_dict["best_metrics"]
        super().load_state_dict(
            state_dict
            | {
                "dirpath": self.dirpath,
                "best_model_path": str(new),
                "kth_best_model_path": str(new),
                "best_k_models": {str(new): state_dict["best_model_score"]},
            }
        )


@rank_zero_only
def copy_on_first_process(old: Path, new: Path) -> None:
    """Copy a checkpoint into a folder, made if need be."""
    write_atomic(new, old.read_bytes())


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt`, from which a run goes on: the end of the newest epoch, or its middle.

    Arguments:
        dirpath: The folder for the checkpoint.
        every_minutes: How often it is saved within an epoch that takes longer; null for never.
    """

    def __init__(self, dirpath: str, every_minutes: float | None = 30.0) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="last",
            save_top_k=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        if every_minutes is not None:
            positive("every_minutes", every_minutes)
        self.every_minutes = every_minutes
        self._saved_at = monotonic()

    @property
    def due(self) -> bool:
        """Whether the newest checkpoint is so old that the epoch's end should not be awaited."""
        minutes = (monotonic() - self._saved_at) / 60
        return self.every_minutes is not None and minutes > self.every_minutes

    def save(self, trainer: pl.Trainer) -> None:
        """Save the state between two steps; every process calls this."""
        trainer.save_checkpoint(self._path)
        self._saved_at = monotonic()

    def hold(self, trainer: pl.Trainer) -> None:
        """Keep the state between two steps in memory, for `write_held`; every process does."""
        trainer.save_checkpoint(self._path, storage_options=HOLD)

    def write_held(self, trainer: pl.Trainer) -> None:
        """Save the state that was held, if it is newer than the file."""
        output = trainer.strategy.checkpoint_io
        assert isinstance(output, AtomicCheckpointIO)
        output.write_held()

    @property
    def _path(self) -> Path:
        assert self.dirpath is not None
        return Path(self.dirpath, "last.ckpt")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved_at = monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._saved_at = monotonic()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if trainer.max_steps != -1:
            _begin_next_epoch(checkpoint["loops"]["fit_loop"], trainer.check_val_every_n_epoch)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = checkpoint["callbacks"].get(callback.state_key, {})
            if isinstance(callback, EarlyStopping) and state:
                # Lightning forgets that it had stopped, and would train for another epoch; and it
                # would take the patience of before in the place of this run's.
                state["patience"] = callback.patience
                trainer.should_stop |= state["wait_count"] >= callback.patience

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The last checkpoint of another run stays where it is.
        if state_dict["dirpath"] == self.dirpath:
            super().load_state_dict(state_dict)


def _begin_next_epoch(loop: dict[str, Any], validated_every: int | None) -> None:
    """Make of a state at the end of an epoch one at the start of the next.

    With a limit on steps, Lightning 2.6 takes the former for one in the middle of an epoch, and
    ends that epoch a second time.
    """
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    done = epochs["current"]["processed"]
    if done < epochs["current"]["started"]:
        return
    for part in ("total", "current"):
        epochs[part]["completed"] = epochs[part]["processed"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False
    if (done + 1) % (validated_every or 1) == 0:
        # Then its first round does no more than count a step for the loggers.
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
