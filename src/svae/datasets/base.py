"""The base of every data set: splits in memory, served in whole batches."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from svae.checks import at_least

__all__ = [
    "SPLITS",
    "Batch",
    "EpochBatches",
    "ImageDataModule",
    "ImageSource",
    "InMemory",
    "split_rows",
]

#: What every loader yields: `image` (B, C, H, W) and `index` (B,), and what else is known.
Batch = dict[str, Tensor]

SPLITS = ("train", "val", "test")

#: Of the free memory of a GPU, what the images may take; the rest is for the training.
_PART_FOR_DATA = 0.25


class ImageSource(Protocol):
    """Images in the order of their index; an item is the batch of the given rows."""

    #: What is known of all images without reading them: `index` (N,), `split` (N,), ...
    tensors: Batch

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> Batch: ...


def split_rows(count: int, val: float, test: float, seed: int) -> dict[str, Tensor]:
    """Rows from 0 to `count` - 1 shared out at random over the splits.

    Arguments:
        count: The number of rows.
        val: The fraction of them that validates; at least one row.
        test: The fraction of them that tests; at least one row.
        seed: The seed of the order.

    Raises:
        ValueError: A fraction is not one, or fewer rows than splits.
    """
    for name, fraction in (("val_fraction", val), ("test_fraction", test)):
        if not 0 < fraction < 1:
            raise ValueError(f"{name}: expected a fraction between 0 and 1, got {fraction!r}")
    if val + test >= 1:
        raise ValueError(
            f"val_fraction, test_fraction: expected less than 1 together, got {val + test:g}"
        )
    if count < len(SPLITS):
        raise ValueError(
            f"expected at least {len(SPLITS)} images, one each for {', '.join(SPLITS)}, "
            f"got {count}"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    vals, tests = max(1, round(val * count)), max(1, round(test * count))
    if vals + tests >= count:
        vals = tests = 1
    return {
        "train": order[vals + tests :],
        "val": order[:vals],
        "test": order[vals : vals + tests],
    }


class InMemory(Dataset[Batch]):
    """Tensors that share their first axis; an item is the batch of the given rows."""

    def __init__(self, tensors: Batch) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["index"])

    def __getitem__(self, rows: Tensor) -> Batch:
        if isinstance(rows, Tensor):
            rows = rows.to(self.tensors["index"].device)  # once, and not for each of them
        return {name: tensor[rows] for name, tensor in self.tensors.items()}


class EpochBatches(Sampler[Tensor]):
    """The rows of every batch of an epoch: each row exactly once, over all processes together.

    An epoch is cut into batches of nearly equal size, so that no batch is tiny and none is
    dropped; process r of R takes every R-th row of each. The order of epoch e is a function of
    the seed and e alone, so that a resumed run goes on with the same batches: the number of those
    that were served is all that it has to know.

    Arguments:
        rows: The number of rows.
        batch_size: The most rows in a batch, over all processes together.
        shuffle: Whether every epoch has another order.
        seed: The seed of the orders.
        rank: The number of this process.
        world_size: The number of processes.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.rows, self.shuffle, self.seed = rows, shuffle, seed
        self.rank, self.world_size, self.epoch = rank, world_size, 0
        #: How many batches of the epoch were served, and how many the next iteration leaves out.
        self.served, self.skipped = 0, 0
        self.batches = -(-rows // at_least("batch_size", batch_size, 1))
        if rows // self.batches < world_size:
            raise ValueError(
                f"batch_size: {batch_size} leaves batches of {rows // self.batches} images, "
                f"fewer than the {world_size} processes that share them"
            )

    def __len__(self) -> int:
        return self.batches

    def images_in(self, batch: int) -> int:
        """The number of images in a batch, over all processes together."""
        return self.rows // self.batches + (batch < self.rows % self.batches)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls this at the start of every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.arange(self.rows)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.rows, generator=generator)
        self.served, self.skipped = self.skipped, 0
        for rows in order.tensor_split(self.batches)[self.served :]:
            self.served += 1
            yield rows[self.rank :: self.world_size]


def fits(tensors: Sequence[Tensor], device: torch.device) -> bool:
    """Whether a device is a GPU that tensors take little of: a quarter of its free memory."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(tensor.nbytes for tensor in tensors) <= free * _PART_FOR_DATA


class ImageDataModule(pl.LightningDataModule):
    """Images in memory. A data set is a subclass that says how they are read.

    Arguments:
        batch_size: Images per training step, over all processes together.
        eval_batch_size: The same in validation and test; no result depends on it.
        seed: The seed of the splits, of whatever is generated, and of the order of training.
    """

    #: How many labels there are, where the data set knows labels.
    num_labels: int | None = None
    #: What the labels are called, by their number, where they have names.
    label_names: list[str] | None = None
    #: The settings that say how pixels are made from what is read: other images of this kind that
    #: are given to a trained model are read with the values of its run.
    reading: tuple[str, ...] = ()
    #: The file that each image came from, by the image's index, where it came from one.
    file_names: list[str] | None = None

    def __init__(self, batch_size: int = 100, eval_batch_size: int = 500, seed: int = 1) -> None:
        super().__init__()
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.eval_batch_size = at_least("eval_batch_size", eval_batch_size, 1)
        self.seed = seed
        self.splits: dict[str, Batch] = {}
        self._training: EpochBatches | None = None
        self._served = 0

    @abstractmethod
    def read(self) -> dict[str, Batch]:
        """The tensors of each of the splits `train`, `val` and `test`.

        Each split holds `image` (N, C, H, W), float32, and `index` (N,), int64, which no two
        images of the data set share. Where they are known, it also holds

        * `label` (N,), int64;
        * `theta` (N,), the angle in radians, counter-clockwise;
        * `shift` (N, 2), the object's centre in grid units, x to the right and y up;
        * `symmetry` (N,), int64, the order of the object's rotational symmetry (1 none, 2 an
          ellipse, 4 a square);
        * `scale` (N,), the object's relative size;
        * `untransformed` (N, C, H, W), in the test split alone: the same objects upright and
          centred.

        The splits are disjoint.
        """

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            splits = self.read()
            if empty := [name for name in SPLITS if not len(splits[name]["index"])]:
                raise ValueError(f"dataset: no images are left for {', '.join(empty)}")
            self.splits = splits

    def found(self) -> dict[str, Any]:
        """Settings that were left open and that the data decided, by their constructor's names.

        A run writes them into its `config.yaml`, so that other images are read as its own were.
        Known after `setup` or `everything`.
        """
        return {}

    def everything(self) -> "ImageSource":
        """The images of all splits in the order of their index, to be encoded.

        An item is the batch of the given rows (a tensor); `split` (B,) is there in addition, the
        place of an image's split in `SPLITS`. A subclass may read them only when they are asked
        for.
        """
        self.setup()
        parts = [
            batch | {"split": torch.full_like(batch["index"], number)}
            for number, batch in enumerate(self.splits[name] for name in SPLITS)
        ]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        order = tensors["index"].argsort()
        return InMemory({name: tensor[order] for name, tensor in tensors.items()})

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of every image, (C, H, W)."""
        _, channels, height, width = self.splits["train"]["image"].shape
        return channels, height, width

    def check_shares(self, processes: int, splits: Iterable[str]) -> None:
        """Raise ValueError if a batch of a split has fewer images than processes that share it."""
        for split in splits:
            name = "batch_size" if split == "train" else "eval_batch_size"
            rows, size = len(self.splits[split]["index"]), getattr(self, name)
            smallest = rows // -(-rows // size) if rows else 0
            if smallest < processes:
                raise ValueError(
                    f"dataset.{name}: {size} makes batches of {smallest} of the {rows} images of "
                    f"{split}, fewer than the {processes} processes that share them"
                )

    def loader(self, split: str) -> "DataLoader[Batch]":
        """The batches of a split: shuffled for training, in order otherwise."""
        train = split == "train"
        trainer = self.trainer
        dataset = InMemory(self._near(self.splits[split]))
        sampler = EpochBatches(
            len(dataset),
            self.batch_size if train else self.eval_batch_size,
            shuffle=train,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        if train:
            sampler.skipped, self._served = self._served, 0
            self._training = sampler
        # A sampler that yields whole batches of rows: nothing goes image by image through Python.
        return DataLoader(dataset, batch_size=None, sampler=sampler)

    def _near(self, split: Batch) -> Batch:
        """A split on the device that the trainer uses, if that is a GPU with room for all."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        tensors = [tensor for batch in self.splits.values() for tensor in batch.values()]
        if not fits(tensors, device):
            return split
        return {name: tensor.to(device) for name, tensor in split.items()}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: how many batches were served of an epoch that is not over."""
        if self._training is None or self.trainer is None:
            return {}
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        # Lightning saves the state of a loader too, but restores it only where the number of
        # steps was not asked for before; ours is restored before the loader is made.
        return {"served": self._training.served * (epochs.processed < epochs.started)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Leave out what was served before a checkpoint."""
        self._served = state_dict["served"]

    def train_dataloader(self) -> "DataLoader[Batch]":
        return self.loader("train")

    def val_dataloader(self) -> "DataLoader[Batch]":
        return self.loader("val")

    def test_dataloader(self) -> "DataLoader[Batch]":
        return self.loader("test")
