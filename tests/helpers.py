"""What several tests use."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.callbacks import Callback

__all__ = [
    "Anything",
    "FullDisk",
    "Interrupt",
    "StopAfter",
    "run_command",
    "write_mnist",
    "write_pictures",
]


def run_command(main: Callable[[], None], *overrides: str) -> None:
    """Run a command in this process, as if it had been typed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["svae", *overrides])
        main()


class Interrupt(Callback):
    """Ctrl-C in the given epoch, after the given batch; below 0, in the test."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.epoch, self.batch = epoch, batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            raise KeyboardInterrupt

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.epoch < 0:
            raise KeyboardInterrupt


class FullDisk(Callback):
    """From the given epoch on, no file can grow beyond some bytes: less than a checkpoint has."""

    def __init__(self, epoch: int, limit: int) -> None:
        self.epoch, self.limit = epoch, limit

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))


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


def write_pictures(folder: Path, count: int = 12, size: int = 16, labels: int = 0) -> None:
    """Grey PNG pictures of a bright bar, in as many sub-folders as there are labels."""
    random = np.random.default_rng(0)
    for i in range(count):
        place = folder / f"kind{i % labels}" if labels else folder
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 40, (size, size), dtype=np.uint8)
        pixels[size // 4 : -size // 4, size // 2 - 1 : size // 2 + 2] = 220
        Image.fromarray(pixels).rotate(30 * i).save(place / f"img{i}.png")
