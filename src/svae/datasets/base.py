"""The base of every data set: splits in memory or on disk, served in whole batches."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from svae.checks import at_least
from svae.errors import UserError, one_line

__all__ = [
    "SPLITS",
    "AllSplits",
    "Batch",
    "EpochBatches",
    "ImageDataModule",
    "ImageSource",
    "InMemory",
    "Loader",
    "contents_of",
    "read_ahead",
    "split_index",
    "split_numbers",
    "split_rows",
]

#: What every loader yields: `image` (B, C, H, W) and `index` (B,), and what else is known.
Batch = dict[str, Tensor]

SPLITS = ("train", "val", "test")

#: Of the free memory of a GPU, what the images may take; the rest is for the training.
_PART_FOR_DATA = 0.25

#: Of a split that is not in memory, how many images stand for all, and how many numbers they
#: hold at most.
_SAMPLE_IMAGES, _SAMPLE_NUMBERS = 1000, 2**23

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

T = TypeVar("T")
Part = TypeVar("Part")


class _Known(NamedTuple):
    """What a split may know of each image: one of these for each, and what values it may have."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    values: str
    good: Callable[[Tensor], Tensor]


#: The truth that figures and metrics look for, as `ImageDataModule.read` tells of it.
_TRUTH = {
    "label": _Known((), torch.int64, "labels from 0", lambda value: value >= 0),
    "theta": _Known((), torch.float32, "finite numbers", torch.isfinite),
    "shift": _Known((2,), torch.float32, "finite numbers", torch.isfinite),
    "symmetry": _Known((), torch.int64, "numbers from 1", lambda value: value >= 1),
    "scale": _Known(
        (),
        torch.float32,
        "finite numbers above 0",
        lambda value: value.isfinite() & (value > 0),
    ),
    "conformation": _Known((), torch.float32, "finite numbers", torch.isfinite),
}


class ImageSource(Protocol):
    """Images in the order of their index; an item is the batch of the given rows."""

    #: What is known of all images without reading them: `index` (N,), `split` (N,), ...; of
    #: images in memory everything.
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


def split_index(
    index: Tensor, fractions: tuple[float, float], seed: int, path: Path
) -> dict[str, Tensor]:
    """Numbers of images (N,) shared out over the splits by `split_rows`.

    Raises:
        ValueError: There are too few; the message names `path`, where they come from.
    """
    try:
        parts = split_rows(len(index), *fractions, seed)
    except ValueError as error:
        raise ValueError(f"dataset.path: {path}: {error}") from None
    return {name: index[part] for name, part in parts.items()}


def split_numbers(splits: Mapping[str, Tensor], count: int) -> Tensor:
    """The place in `SPLITS` of each of the images 0 to `count` - 1, int64, by those of each split.

    It is 0 for images that are in none.
    """
    numbers = torch.zeros(count, dtype=torch.int64)
    for number, name in enumerate(SPLITS):
        numbers[splits[name]] = number
    return numbers


def contents_of(path: Path, names: Iterable[str], expected: str | None) -> str:
    """What tells images from others: how many there are, and a hash of their names in order.

    A split is a function of the number of images, so that with one more in a folder other images
    are tested, most of which were trained on.

    Arguments:
        path: Where they are, for messages.
        names: What they are called.
        expected: What it is to be; None: whatever it is.

    Raises:
        ValueError: It is another.
    """
    listed = list(names)
    found = hashlib.sha256("\n".join(listed).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    here = f"{len(listed)} images ({found})"
    if expected not in (None, here):
        raise ValueError(
            f"dataset.contents: {path} has other images than at the training, {here} and not "
            f"{expected}, so that other ones would be held back for the test; expected those of "
            "then (svae.encode takes any)"
        )
    return here


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


class AllSplits(Dataset[Batch]):
    """The images of all splits in the order of their index; an item is the batch of given rows.

    `split` is there in addition, the place of an image's split in `SPLITS`. What not all splits
    know is left out.

    Arguments:
        sources: The splits.
    """

    def __init__(self, sources: Mapping[str, ImageSource]) -> None:
        self.sources = [sources[name] for name in SPLITS]
        parts = [
            source.tensors | {"split": torch.full_like(source.tensors["index"], number)}
            for number, source in enumerate(self.sources)
        ]
        known = [name for name in parts[0] if all(name in part for part in parts)]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in known}
        order = tensors["index"].argsort()
        self.tensors = {name: tensor[order] for name, tensor in tensors.items()}
        # Where each image is: its split, and its row there.
        self._split = self.tensors["split"]
        self._row = torch.cat([torch.arange(len(source)) for source in self.sources])[order]

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, rows: Tensor) -> Batch:
        batch = {name: tensor[rows] for name, tensor in self.tensors.items()}
        if "image" in batch:  # all splits are in memory
            return batch
        split, row = self._split[rows], self._row[rows]
        images: Tensor | None = None
        for number, source in enumerate(self.sources):
            places = (split == number).nonzero()[:, 0]
            if len(places):
                read = source[row[places]]["image"]
                if images is None:
                    images = read.new_empty(len(split), *read.shape[1:])
                images[places] = read
        return batch if images is None else {"image": images} | batch


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
        device: Where the rows are wanted; None for the processor.
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
        device: torch.device | None = None,
    ) -> None:
        self.rows, self.shuffle, self.seed, self.device = rows, shuffle, seed, device
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
        # As a whole, and not by batches: each copy to a GPU is waited for.
        for rows in order.to(device=self.device).tensor_split(self.batches)[self.served :]:
            self.served += 1
            yield rows[self.rank :: self.world_size]


def read_ahead(read: Callable[[Part], T], parts: Iterable[Part], threads: int) -> Iterator[T]:
    """What is read of each part, in their order; the next ones are read while one is in use.

    Threads and not processes: reading and preparing images lets other threads run, nothing is
    copied or held twice, and an error comes as it is.

    Arguments:
        read: Reads a part; called by several threads at once.
        parts: What is to be read; at most one part more than there are threads is ahead.
        threads: How many read; 0 for whoever asks.
    """
    if not threads:
        yield from map(read, parts)
        return
    with ThreadPoolExecutor(threads, "reading") as pool:
        ahead: deque[Future[T]] = deque()
        try:
            for part in parts:
                ahead.append(pool.submit(read, part))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


class Loader(DataLoader[Batch]):
    """The batches of a split.

    Arguments:
        source: The split.
        sampler: The rows of each batch.
        workers: How many threads read ahead; 0 for none.
    """

    sampler: EpochBatches

    def __init__(self, source: ImageSource, sampler: EpochBatches, workers: int = 0) -> None:
        # A sampler that yields whole batches of rows: nothing goes image by image through Python.
        super().__init__(source, batch_size=None, sampler=sampler)  # type: ignore[arg-type]
        self.source, self.workers = source, workers
        #: How many batches of the epoch were received: the sampler is ahead of it.
        self.served = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.served = self.sampler.skipped
        for batch in read_ahead(self._read, self.sampler, self.workers):
            self.served += 1
            yield batch

    def _read(self, rows: Tensor) -> Batch:
        try:
            return self.source[rows]
        except (ValueError, OSError) as error:  # a file that was whole when training began
            raise UserError(one_line(error)) from error


def _source(name: str, split: Any) -> ImageSource:
    """The images of a split.

    Raises:
        ValueError: They are not what `ImageDataModule.read` is to give.
    """
    if isinstance(split, dict):
        _check_tensors(name, split, ("image", "index"))
        return InMemory(split)
    if not isinstance(getattr(split, "tensors", None), dict):
        raise ValueError(
            f"dataset: the split {name} is of type {type(split).__name__}; expected a dict of "
            "tensors, or an ImageSource with a dict called tensors"
        )
    source: ImageSource = split
    _check_tensors(name, source.tensors, ("index",))
    if len(source) != len(source.tensors["index"]):
        raise ValueError(
            f"dataset: the split {name} has {len(source)} images and "
            f"{len(source.tensors['index'])} numbers in index; expected one for each"
        )
    return source


def _first(name: str, source: ImageSource) -> Batch:
    """The first image of a split, with what is known of it.

    Raises:
        ValueError: The split reads something else than `ImageDataModule.read` is to give.
    """
    rows = torch.tensor([0])
    batch = source[rows]
    if isinstance(source, InMemory):
        return batch  # all of it was checked
    known = ", ".join(sorted({"image", *source.tensors}))
    if not isinstance(batch, dict) or batch.keys() != {"image", *source.tensors}:
        given = ", ".join(sorted(batch)) if isinstance(batch, dict) else type(batch).__name__
        raise ValueError(
            f"dataset: a batch of the split {name} holds {given}; expected {known}: the image, "
            "and what tensors of its source has"
        )
    _check_tensors(name, batch, ("image", "index"))
    if not torch.equal(batch["index"].cpu(), source.tensors["index"][rows].cpu()):
        raise ValueError(
            f"dataset: row 0 of the split {name} was asked for, and the images with index "
            f"{batch['index'].tolist()} were given; expected "
            f"{source.tensors['index'][rows].tolist()}"
        )
    return batch


def _check_tensors(name: str, split: Batch, needed: Sequence[str]) -> None:
    """Raise ValueError if the tensors of a split are not what `ImageDataModule.read` is to give.

    Arguments:
        name: Of the split, for messages.
        split: Its tensors.
        needed: Those that must be there.
    """
    for key, tensor in split.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"dataset: {key} of the split {name}: expected a tensor, got "
                f"{type(tensor).__name__}"
            )
    for key, axes, dtype in (("image", "N, C, H, W", torch.float32), ("index", "N,", torch.int64)):
        if key in needed and key not in split:
            raise ValueError(f"dataset: the split {name} holds no {key}; expected {key} ({axes})")
        ndim = axes.count(",") + (key == "image")
        if key in split and (split[key].ndim != ndim or split[key].dtype != dtype):
            raise _other(name, key, axes, dtype, split[key])
    count = len(split["index"])
    for key, tensor in split.items():
        numbers = len(tensor) if tensor.ndim else 1
        if numbers != count:
            raise ValueError(
                f"dataset: the split {name} holds {count} numbers in index and {numbers} of "
                f"{key}; expected one for each image"
            )
    for key, known in _TRUTH.items():
        if key in split:
            _check_truth(name, key, known, split)
    if "untransformed" in split:
        if name != "test":
            raise ValueError(
                f"dataset: the split {name} holds untransformed; expected it in test alone"
            )
        this, image = split["untransformed"], split.get("image", split["untransformed"])
        if this.shape != image.shape or this.dtype != image.dtype:
            raise ValueError(
                f"dataset: untransformed of the split {name}: expected what image is, "
                f"{image.dtype} of shape {tuple(image.shape)}, got {this.dtype} of shape "
                f"{tuple(this.shape)}"
            )


def _check_truth(name: str, key: str, known: _Known, split: Batch) -> None:
    """Raise ValueError if a truth is not of its shape and kind, or has a value that is none."""
    tensor = split[key]
    # Of whatever precision: truth in float64 is as good.
    floats, integers = tensor.is_floating_point(), tensor.dtype in _INTEGERS
    kind = floats if known.dtype.is_floating_point else integers
    if not kind or tensor.shape != (len(split["index"]), *known.shape):
        axes = ", ".join(["N", *map(str, known.shape)]) + "," * (not known.shape)
        raise _other(name, key, axes, known.dtype, tensor)
    good = known.good(tensor)
    if not good.all():
        row = int((~good).nonzero()[0, 0])
        raise ValueError(
            f"dataset: {key} of the split {name}: expected {known.values}, got "
            f"{tensor[row].tolist()} for index {int(split['index'][row])}"
        )


def _other(name: str, key: str, axes: str, dtype: torch.dtype, tensor: Tensor) -> ValueError:
    return ValueError(
        f"dataset: {key} of the split {name}: expected {dtype} of shape ({axes}), got "
        f"{tensor.dtype} of shape {tuple(tensor.shape)}"
    )


def _check_alike(firsts: Mapping[str, Batch]) -> None:
    """Raise ValueError if splits differ in the shape of their images, or in what test needs.

    Arguments:
        firsts: The first image of each split, with what is known of it.
    """
    shape = firsts["train"]["image"].shape[1:]
    for name, first in firsts.items():
        if (this := first["image"].shape[1:]) != shape:
            raise ValueError(
                f"dataset: images of the split {name} have the shape {tuple(this)} and those of "
                f"train {tuple(shape)}; expected one shape"
            )
        # In test it is what is compared with; a truth of test alone is enough for that.
        if missing := [key for key in _TRUTH if key in first and key not in firsts["test"]]:
            raise ValueError(
                f"dataset: the split {name} holds {missing[0]} and test does not; expected it in "
                "all splits, or in test alone"
            )


def _check_indices(sources: Mapping[str, "ImageSource"]) -> None:
    """Raise ValueError if an index stands for two images."""
    index = torch.cat([source.tensors["index"] for source in sources.values()])
    values, counts = index.unique(return_counts=True)
    if len(values) < len(index):
        raise ValueError(
            f"dataset: index {values[counts > 1][0]} is that of {counts.max()} images of train, "
            "val and test; expected disjoint splits and a number of its own for each image"
        )


def fits(tensors: Sequence[Tensor], device: torch.device) -> bool:
    """Whether a device is a GPU that tensors take little of: a quarter of its free memory."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(tensor.nbytes for tensor in tensors) <= free * _PART_FOR_DATA


class ImageDataModule(pl.LightningDataModule, ABC):
    """Images of three splits. A data set is a subclass that says how they are read.

    Arguments:
        batch_size: Images per training step, over all processes together.
        eval_batch_size: The same in validation and test; no result depends on it.
        seed: The seed of the splits, of whatever is generated, and of the order of training.
        workers: How many threads read the next batches of images that are not in memory, while
            one is trained on; 0 for none. No result depends on it.
    """

    #: How many labels there are, where the data set knows labels; None for as many as have names,
    #: else as the images have. More than one are compared with as many clusters in the test.
    num_labels: int | None = None
    #: What the labels are called, by their number, where they have names: one for each.
    label_names: list[str] | None = None
    #: The settings that say how pixels are made from what is read: other images of this kind that
    #: are given to a trained model are read with the values of its run.
    reading: tuple[str, ...] = ()
    #: The file that each image came from, by the image's index, where it came from one.
    file_names: list[str] | None = None

    def __init__(
        self,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        seed: int = 1,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.eval_batch_size = at_least("eval_batch_size", eval_batch_size, 1)
        self.seed = seed
        self.workers = at_least("workers", workers, 0)
        #: The images of each split, after `setup`.
        self.sources: dict[str, ImageSource] = {}
        self._training: Loader | None = None
        self._served = 0

    @abstractmethod
    def read(self) -> Mapping[str, Batch | ImageSource]:
        """The splits `train`, `val` and `test`: their tensors, or what reads them.

        Each split holds `image` (N, C, H, W), float32, and `index` (N,), int64, which no two
        images of the data set share; a source has the latter among its `tensors`, and images need
        not fit into memory. Where they are known, it also holds

        * `label` (N,), int64, from 0; what is not known is a label of its own;
        * `theta` (N,), the angle in radians, counter-clockwise;
        * `shift` (N, 2), the object's centre in grid units, x to the right and y up;
        * `symmetry` (N,), int64, the order of the object's rotational symmetry (1 none, 2 an
          ellipse, 4 a square);
        * `scale` (N,), the object's relative size, a factor above 0;
        * `conformation` (N,), where a molecule is between its two ends, from 0 to 1;
        * `untransformed` (N, C, H, W), in the test split alone: the same objects upright and
          centred.

        Other tensors with one row for each image are let be. What is known of `train` or `val` is
        known of `test`, too. A batch of a source has `image` and all of its `tensors`, nothing
        else. The splits are disjoint.
        """

    def setup(self, stage: str | None = None) -> None:
        if not hasattr(self, "sources"):
            raise ValueError(
                f"dataset: __init__ of {type(self).__name__} does not call super().__init__(); "
                "expected super().__init__(batch_size, eval_batch_size, seed, workers)"
            )
        if not self.sources:
            splits = self.read()
            if not isinstance(splits, Mapping) or splits.keys() != set(SPLITS):
                given = ", ".join(map(str, splits)) if isinstance(splits, Mapping) else ""
                raise ValueError(
                    f"dataset: read() of {type(self).__name__} gave the splits "
                    f"{given or 'none'}; expected {', '.join(SPLITS)}"
                )
            sources = {name: _source(name, split) for name, split in splits.items()}
            if empty := [name for name in SPLITS if not len(sources[name])]:
                raise ValueError(f"dataset: no images are left for {', '.join(empty)}")
            _check_indices(sources)
            _check_alike({name: _first(name, source) for name, source in sources.items()})
            self._settle_labels(sources)
            self.sources = sources

    def _settle_labels(self, sources: Mapping[str, ImageSource]) -> None:
        """Find out how many labels there are where the data set does not say it.

        Raises:
            ValueError: An image has a label beyond those that it says there are.
        """
        known = [one.tensors["label"] for one in sources.values() if "label" in one.tensors]
        if not known:
            return
        labels = torch.cat(known).unique()
        names = None if self.label_names is None else len(self.label_names)
        for what, count in (("num_labels", self.num_labels), ("label_names", names)):
            if count is not None and labels[-1] >= count:
                raise ValueError(
                    f"dataset: {what} of {type(self).__name__} stands for {count} labels; "
                    f"expected labels from 0 to {count - 1}, got {labels[-1]}"
                )
        # What all images share tells nothing.
        if self.num_labels is None and len(labels) > 1:
            self.num_labels = len(labels) if names is None else names

    @property
    def splits(self) -> dict[str, Batch]:
        """What is known of each split without reading images; of splits in memory everything."""
        return {name: source.tensors for name, source in self.sources.items()}

    def shares(self) -> str | None:
        """Which images each split has: how many, and a hash of their indices.

        A run writes it into its `config.yaml`, to notice that images were added or taken away.
        None where `contents` among the settings tells more, and before `setup`.
        """
        if not self.sources or "contents" in self.found():
            return None
        told = hashlib.sha256()
        for name in SPLITS:
            # Of the indices and not of pixels, whose last bits may differ by the machine.
            index = self.splits[name]["index"].cpu().sort().values
            told.update(f"{name} {len(index)} ".encode() + index.numpy().astype("<i8").tobytes())
        counts = ", ".join(f"{len(self.sources[name])} {name}" for name in SPLITS)
        return f"{counts} ({told.hexdigest()[:12]})"

    def sample(self) -> list[Tensor]:
        """Images (B, C, H, W) of each split that stand for all: all of them, if in memory."""
        return [
            source.tensors["image"] if "image" in source.tensors else self._some(source)
            for source in self.sources.values()
        ]

    def _some(self, source: ImageSource) -> Tensor:
        numbers = math.prod(self.image_shape)
        count = max(1, min(_SAMPLE_IMAGES, _SAMPLE_NUMBERS // numbers))
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randperm(len(source), generator=generator)[:count].sort().values
        return source[rows]["image"]

    def found(self) -> dict[str, Any]:
        """Settings that were left open and that the data decided, by their constructor's names.

        A run writes them into its `config.yaml`, so that other images are read as its own were.
        Known after `setup` or `everything`.
        """
        return {}

    def everything(self) -> "ImageSource":
        """The images of all splits in the order of their index, to be encoded.

        An item is the batch of the given rows (a tensor); `split` (B,) is there in addition, the
        place of an image's split in `SPLITS`; what not all splits know is not. A subclass may read
        them without sharing them out, so that fewer than there are splits can be encoded.
        """
        self.setup()
        return AllSplits(self.sources)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of every image, (C, H, W)."""
        first = self.sources["train"][torch.tensor([0])]["image"]
        _, channels, height, width = first.shape
        return channels, height, width

    def check_shares(self, processes: int, splits: Iterable[str]) -> None:
        """Raise ValueError if a batch of a split has fewer images than processes that share it."""
        for split in splits:
            name = "batch_size" if split == "train" else "eval_batch_size"
            rows, size = len(self.sources[split]), getattr(self, name)
            smallest = rows // -(-rows // size) if rows else 0
            if smallest < processes:
                raise ValueError(
                    f"dataset.{name}: {size} makes batches of {smallest} of the {rows} images of "
                    f"{split}, fewer than the {processes} processes that share them"
                )

    def loader(self, split: str) -> Loader:
        """The batches of a split: shuffled for training, in order otherwise."""
        train = split == "train"
        trainer = self.trainer
        source = self._near(self.sources[split])
        sampler = EpochBatches(
            len(source),
            self.batch_size if train else self.eval_batch_size,
            shuffle=train,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            device=source.tensors["index"].device if isinstance(source, InMemory) else None,
        )
        loader = Loader(source, sampler, 0 if isinstance(source, InMemory) else self.workers)
        if train:
            sampler.skipped, self._served = self._served, 0
            self._training = loader
        return loader

    def _near(self, source: ImageSource) -> ImageSource:
        """A split on the device that the trainer uses, if that is a GPU with room for all.

        One that is not in memory stays where it is.
        """
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        held = [one for one in self.sources.values() if isinstance(one, InMemory)]
        tensors = [tensor for one in held for tensor in one.tensors.values()]
        if not isinstance(source, InMemory) or not fits(tensors, device):
            return source
        return InMemory({name: tensor.to(device) for name, tensor in source.tensors.items()})

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

    def train_dataloader(self) -> Loader:
        return self.loader("train")

    def val_dataloader(self) -> Loader:
        return self.loader("val")

    def test_dataloader(self) -> Loader:
        return self.loader("test")
