"""A callback that ends a training early, as a time limit would."""

from pytorch_lightning.callbacks import Callback

__all__ = ["StopAfter"]


class StopAfter(Callback):
    """Stop after so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs
