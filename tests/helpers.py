"""What several tests use."""

from pathlib import Path

import numpy as np
from pytorch_lightning.callbacks import Callback

__all__ = ["Anything", "StopAfter", "write_mnist"]


class StopAfter(Callback):
    """Ends a training early, as a time limit would."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


class Anything:
    """Somebody's class without annotations."""

    def __init__(self, folder, **more):
        self.folder, self.more = folder, more


def write_mnist(folder: Path) -> None:
    """Files of MNIST's form with 60 and 20 random images."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.integers(0, 10, count, dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (raw / f"{part}-{name}-ubyte").write_bytes(head + array.tobytes())
