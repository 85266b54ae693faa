"""Pictures as a model sees them, all alike, whether held in memory or read when asked for."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from svae.datasets.base import SPLITS, Batch
from svae.datasets.picture_files import Source, Unusable
from svae.datasets.picture_pixels import Normalization, Shaping

__all__ = [
    "First",
    "Pictures",
    "PicturesOnDisk",
    "in_several",
    "in_threads",
    "split_by_file",
    "unusable",
]

#: Decoders let other threads run; more than a few only wait for the disk.
WORKERS = min(8, os.cpu_count() or 1)

#: How many images the threads may be ahead of who uses them.
AHEAD = 256

T = TypeVar("T")


def in_threads(function: Callable[[int], T], rows: Sequence[int]) -> Iterator[T]:
    """What a function makes of each row, in their order."""
    with ThreadPoolExecutor(WORKERS) as pool:
        for start in range(0, len(rows), AHEAD):
            yield from pool.map(function, rows[start : start + AHEAD])


def unusable(name: str, why: str, others: int = 0) -> ValueError:
    """The error that ends all because of one image, unless such images are to be skipped."""
    more = f" ({others} other image{'s are' if others > 1 else ' is'} unusable as well)"
    return ValueError(
        f"{name}: {why}{more if others else ''}; mend or remove it, or leave out what is unusable "
        "with dataset.skip_unusable=true"
    )


def split_by_file(splits: dict[str, Tensor], files: Sequence[str], seed: int) -> dict[str, Tensor]:
    """The same images shared out so that all of one file are in one split.

    Pages of a file often show one object, which a split that is held back must not share with the
    training. Validation and test get no more images than before, and maybe some fewer: a file that
    is too large for them trains. Where every file is, the splits remain as they are.

    Arguments:
        splits: The rows of each split.
        files: The file of each row.
        seed: The seed of the order in which files are taken.
    """
    rows = torch.cat(list(splits.values())).sort().values.tolist()
    pages: dict[str, list[int]] = {}
    for row in rows:
        pages.setdefault(files[row], []).append(row)
    if len(pages) == len(rows):
        return splits
    groups = list(pages.values())
    shared: dict[str, list[int]] = {name: [] for name in SPLITS}
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    for number in order.tolist():
        group = groups[number]
        held_back = (
            name for name in ("val", "test") if len(shared[name]) + len(group) <= len(splits[name])
        )
        shared[next(held_back, "train")] += group
    if not all(shared.values()):
        return splits
    return {name: torch.tensor(of_split) for name, of_split in shared.items()}


def in_several(splits: dict[str, Tensor], files: Sequence[str]) -> list[str]:
    """The files whose images are in more than one split, in order."""
    names = ({files[row] for row in rows.tolist()} for rows in splits.values())
    counts = Counter(name for of_split in names for name in of_split)
    return [name for name in dict.fromkeys(files) if counts[name] > 1]


class First(NamedTuple):
    """The first usable image, which all others must be like."""

    name: str
    dtype: np.dtype
    #: Width and height in the file.
    size: tuple[int, int]
    #: (C, H, W) as the model sees it.
    shape: tuple[int, ...]


class Pictures:
    """The images of a source, cut to shape; it pickles without their pixels.

    Arguments:
        source: The images.
        shaping: What is done to each.
        one_type: Whether all integers must be of one type.
    """

    def __init__(self, source: Source, shaping: Shaping, one_type: bool) -> None:
        self.source, self.shaping, self.one_type = source, shaping, one_type
        #: Why those before the first usable one are not.
        self.before: dict[int, str] = {}
        self._first: First | None = None

    def first(self) -> First:
        """The first image that is usable.

        Raises:
            ValueError: There is none.
        """
        if self._first is None:
            for row in range(len(self.source)):
                try:
                    self._first = self._read(row)[1]
                    return self._first
                except Unusable as error:
                    self.before[row] = str(error)
            raise ValueError(
                f"dataset.path: none of the {len(self.source)} images in {self.source.path} can "
                f"be used; {self.source.name(0)}: {self.before[0]}"
            )
        return self._first

    def read(self, row: int) -> np.ndarray:
        """An image (C, H, W), float32, not yet normalised.

        Raises:
            Unusable: As `Source.read` and `Shaping`.
            ValueError: It is not like the first one.
        """
        first = self.first()
        pixels, this = self._read(row)
        both = f"{first.name} is {{}} and {this.name} {{}}"
        if this.shape[0] != first.shape[0]:
            kinds = {1: "grey", 3: "RGB"}
            both = both.format(kinds[first.shape[0]], kinds[this.shape[0]])
            raise ValueError(f"{both}; make them alike with dataset.color=grey (or rgb)")
        if this.shape != first.shape:
            sizes = ("{} x {}".format(*size) for size in (first.size, this.size))
            raise ValueError(
                f"{both.format(*sizes)} pixels (width x height); make them alike with "
                "dataset.resize=64 (or another side in pixels)"
            )
        types = {self._kind(first.dtype), self._kind(this.dtype)}
        if self.one_type and len(types) > 1:
            raise ValueError(
                f"{both.format(first.dtype, this.dtype)}, whose values do not compare; convert "
                "them, or scale each by itself with dataset.normalize=image_range"
            )
        return pixels

    def _read(self, row: int) -> tuple[np.ndarray, First]:
        raw, name = self.source.read(row), self.source.name(row)
        pixels = self.shaping(raw, name)
        size = (raw.shape[1], raw.shape[0])
        return pixels, First(name, raw.dtype, size, pixels.shape)

    @staticmethod
    def _kind(dtype: np.dtype) -> str:
        return "float" if dtype.kind == "f" else dtype.name


class PicturesOnDisk(Dataset[Batch]):
    """Images that are read when they are asked for; an item is the batch of the given rows.

    Arguments:
        pictures: The images.
        normalization: What is done to their values.
        tensors: `index` (N,), the place of each in the source, and what else goes into a batch.
    """

    def __init__(self, pictures: Pictures, normalization: Normalization, tensors: Batch) -> None:
        self.pictures, self.normalization, self.tensors = pictures, normalization, tensors

    def __len__(self) -> int:
        return len(self.tensors["index"])

    def __getitem__(self, rows: Tensor) -> Batch:
        batch = {name: tensor[rows] for name, tensor in self.tensors.items()}
        image = torch.empty(len(rows), *self.pictures.first().shape)
        read = in_threads(self._read, batch["index"].tolist())
        for place, pixels in enumerate(read):
            image[place] = torch.from_numpy(pixels)
        return {"image": image} | batch

    def _read(self, row: int) -> np.ndarray:
        name = self.pictures.source.name(row)
        try:
            pixels = self.pictures.read(row)
        except Unusable as error:
            raise unusable(name, str(error)) from error
        return self.normalization(pixels, name)
