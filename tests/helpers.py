"""What several tests use."""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from svae.datasets import ImageDataModule
from svae.datasets.base import split_rows
from svae.encoders import MLP
from svae.formats.mrc import write_stack

__all__ = [
    "Anything",
    "Die",
    "Dropout",
    "FullDisk",
    "Interrupt",
    "LinearGenerator",
    "OwnArray",
    "SlowDisk",
    "StopAfter",
    "on_plateau",
    "run_command",
    "write_mnist",
    "write_own_array",
    "write_particles",
    "write_pictures",
]


def run_command(main: Callable[[], None], *overrides: str) -> None:
    """Run a command in this process, as if it had been typed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["svae", *overrides])
        main()


class LinearGenerator(nn.Module):
    """Pixels that are a linear function of the content, so that all is known in closed form."""

    coordinate_based = True

    def __init__(self, loading, offset):
        super().__init__()
        self.loading, self.offset = loading, offset

    def forward(self, coords, z):
        return (z @ self.loading.T + self.offset).unsqueeze(-1)


class Dropout(MLP):
    """An encoder that draws from torch's own generator in training."""

    def forward(self, image):
        return nn.functional.dropout(super().forward(image), training=self.training)


class Interrupt(Callback):
    """A signal in the given epoch, in the given batch.

    Arguments:
        epoch: Its number.
        batch: Its number; -1 for validation, -2 for the end of the epoch, -3 for the test.
        name: Of the signal.
    """

    def __init__(self, epoch: int, batch: int, name: str = "SIGINT") -> None:
        self.place, self.signal = (epoch, batch), signal.Signals[name]

    def _send(self, trainer, batch: int) -> None:
        if (trainer.current_epoch, batch) == self.place:
            signal.raise_signal(self.signal)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._send(trainer, batch_idx)

    def on_validation_start(self, trainer, pl_module):
        self._send(trainer, -1)

    def on_train_epoch_end(self, trainer, pl_module):
        self._send(trainer, -2)

    def on_test_start(self, trainer, pl_module):
        if self.place[1] == -3:
            signal.raise_signal(self.signal)


class FullDisk(Callback):
    """From the given epoch on, no file can grow beyond some bytes: less than a checkpoint has."""

    def __init__(self, epoch: int, limit: int) -> None:
        self.epoch, self.limit = epoch, limit

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))


class SlowDisk(Callback):
    """Every file takes so many seconds more to be written."""

    def __init__(self, seconds: float) -> None:
        def slow(descriptor: int, fsync: Callable[[int], None] = os.fsync) -> None:
            time.sleep(seconds)
            fsync(descriptor)

        os.fsync = slow


class StopAfter(Callback):
    """Ends a training early, as a time limit would."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


class Die(Callback):
    """Kills the process of the given rank in the middle of the given epoch.

    The process of every rank leaves its number in `pid<rank>` of the working directory.
    """

    def __init__(self, rank: int, epoch: int) -> None:
        self.rank, self.epoch = rank, epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        Path(f"pid{trainer.global_rank}").write_text(str(os.getpid()))
        if (trainer.global_rank, trainer.current_epoch) == (self.rank, self.epoch):
            os.kill(os.getpid(), signal.SIGKILL)


class Told(Callback):
    """The process of every rank adds what it trains to `told<rank>` of the working directory."""

    def on_train_start(self, trainer, pl_module):
        rate = trainer.optimizers[0].param_groups[0]["initial_lr"]
        with Path(f"told{trainer.global_rank}").open("a") as file:
            file.write(f"{pl_module.model.z_dim} {pl_module.model.beta} {rate}\n")


def on_plateau(optimizer, total_steps, monitor):
    """A schedule of one's own that looks at a metric."""
    return {"scheduler": ReduceLROnPlateau(optimizer), "monitor": monitor}


class Anything:
    """Somebody's class without annotations."""

    def __init__(self, folder, **more):
        self.folder, self.more = folder, more


class OwnArray(ImageDataModule):
    """Somebody's images in an .npy (N, H, W), in memory or read a batch at a time."""

    def __init__(self, path: str, lazy: bool = False, batch_size: int = 20, seed: int = 1) -> None:
        super().__init__(batch_size, seed=seed)
        self.path, self.lazy = path, lazy

    def read(self):
        images = torch.from_numpy(np.load(self.path)).unsqueeze(1)
        splits = split_rows(len(images), 0.2, 0.2, self.seed)
        if self.lazy:
            return {name: OwnSplit(images, rows) for name, rows in splits.items()}
        return {name: {"image": images[rows], "index": rows} for name, rows in splits.items()}


class OwnSplit:
    """Somebody's split that is not in memory."""

    def __init__(self, images: torch.Tensor, index: torch.Tensor) -> None:
        self.images, self.tensors = images, {"index": index}

    def __len__(self) -> int:
        return len(self.tensors["index"])

    def __getitem__(self, rows):
        index = self.tensors["index"][rows]
        return {"image": self.images[index], "index": index}


def write_own_array(path: Path, count: int, **options: object) -> list[str]:
    """Random images in a file, and the last settings of a training on them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.random.default_rng(0).random((count, 12, 12), np.float32))
    (path.parent / "configs/dataset").mkdir(parents=True, exist_ok=True)
    config = {"_target_": "tests.helpers.OwnArray", "path": str(path), **options}
    (path.parent / "configs/dataset/own.yaml").write_text(yaml.safe_dump(config))
    return ["dataset=own", f"--config-dir={path.parent / 'configs'}"]


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


def write_particles(folder: Path, count: int = 24, side: int = 16, stacks: int = 2) -> Path:
    """A RELION 3.1 star with bars in noise, stack by stack in turn, and the CTF of each."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    images = random.standard_normal((count, side, side), dtype=np.float32)
    images[:, side // 4 : -side // 4, side // 2 - 1 : side // 2 + 1] += 3
    for stack in range(stacks):
        own = images[stack::stacks]
        write_stack(folder / f"stack{stack}.mrcs", [own], len(own), side, side, pixel_size=2.0)
    lines = ["# version 30001", "", "data_optics", "", "loop_"]
    lines += ["_rlnOpticsGroup #1", "_rlnImagePixelSize #2", "_rlnImageSize #3"]
    lines += ["_rlnVoltage #4", "_rlnSphericalAberration #5", "_rlnAmplitudeContrast #6"]
    lines += [f"1 2.000000 {side} 300.000000 2.700000 0.100000", ""]
    lines += ["# version 30001", "", "data_particles", "", "loop_"]
    lines += ["_rlnImageName #1", "_rlnOpticsGroup #2", "_rlnDefocusU #3", "_rlnDefocusV #4"]
    lines += ["_rlnDefocusAngle #5"]
    lines += [
        f"{i // stacks + 1:06d}@stack{i % stacks}.mrcs 1 {10000 + 100 * i} {9800 + 100 * i} 30.0"
        for i in range(count)
    ]
    path = folder / "particles.star"
    path.write_text("\n".join([*lines, ""]))
    return path


def write_pictures(folder: Path, count: int = 12, size: int = 16, labels: int = 0) -> None:
    """Grey PNG pictures of a bright bar, in as many sub-folders as there are labels."""
    random = np.random.default_rng(0)
    for i in range(count):
        place = folder / f"kind{i % labels}" if labels else folder
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 40, (size, size), dtype=np.uint8)
        pixels[size // 4 : -size // 4, size // 2 - 1 : size // 2 + 2] = 220
        Image.fromarray(pixels).rotate(30 * i).save(place / f"img{i}.png")
