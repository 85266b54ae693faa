"""A user's own pictures: a folder of files, a stack, or an array."""

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from svae.checks import at_least, one_of, positive, truth_or_auto
from svae.datasets.base import (
    SPLITS,
    Batch,
    ImageDataModule,
    ImageSource,
    contents_of,
    split_index,
    split_numbers,
    split_rows,
)
from svae.datasets.picture_arrays import ArrayFile
from svae.datasets.picture_files import (
    SUFFIXES,
    TIFF,
    PictureFiles,
    Source,
    Unusable,
    list_pictures,
)
from svae.datasets.picture_labels import read_labels
from svae.datasets.picture_pixels import (
    NORMALIZE,
    Normalization,
    Shaping,
    from_pixels,
    from_type,
)
from svae.datasets.pictures import (
    Pictures,
    PicturesOnDisk,
    in_several,
    in_threads,
    split_by_file,
    unusable,
)
from svae.distributed import following, place
from svae.hardware import memory_at_hand
from svae.noise import Noise

__all__ = ["Images"]

log = logging.getLogger(__name__)

KINDS = f"a folder of pictures ({', '.join(SUFFIXES)}), a multi-page TIFF, an .npy or .npz file"

#: How many pixels decide about a normalization, in all and of one image at least.
SAMPLE, SAMPLE_PER_IMAGE = 2**22, 16

#: Of the machine's memory, what images that are kept may take: to split them takes as much again.
_PART_FOR_IMAGES = 0.25

#: The normalizations with constants for all images.
CONSTANT = ("depth", "range", "standard")


class Seen(NamedTuple):
    """What is kept of an image that was looked at."""

    low: float
    high: float
    sample: np.ndarray


class Survey(NamedTuple):
    """What is known of all images together."""

    #: The usable ones.
    rows: Tensor
    #: The rows of each split, if there are enough.
    splits: dict[str, Tensor] | None
    normalization: Normalization


class Images(ImageDataModule):
    """Pictures from a folder, a multi-page TIFF, an `.npy` or an `.npz`.

    In a folder and its sub-folders, PNG, JPEG and TIFF files count, in natural order (`img2`
    before `img10`); each page of a TIFF is an image. All pages of a file are in one split where
    that leaves images for every split. Transparent pixels are laid over black, palettes expanded,
    and turned photographs put upright. Arrays are (N, H, W), (N, H, W, C) or (N, C, H, W) with one
    or three channels. `index` is an image's place in this list, usable or not.

    Arguments:
        path: The folder or file.
        array: The name of the array in an `.npz`; by default the one that looks like images.
        channel: The one channel that is read, from 0 (of RGB, 0 is red); by default all of RGB.
            It must be given for a TIFF that has several in pages of their own, as the metadata of
            ImageJ or OME tell; there, `all` makes each an image.
        labels: `auto` (from sub-folders' names, or `labels`, `label` or `y` in the `.npz`),
            `none`, or a `.csv` (file name and label, or label alone), `.npy` or `.npz` file.
            Labels alone are in the order of the images, and are refused where that of files
            differs from the plain one (`img10` before `img2`).
        crop: The side in pixels of the central square that is cut out of each image first.
        resize: The side in pixels of the squares that are made of them.
        fit: How what is no square becomes one when it is resized: `crop` cuts the longer side,
            `pad` fills up the shorter one with the median of the border.
        color: `keep`, `grey` or `rgb`.
        normalize: `depth` (integers by their type's largest value), `range` (the 0.1 and 99.9
            percentiles of the training images to 0 and 1, clipped), `image_range` (the same for
            each image by itself), `standard` (mean and standard deviation of the training images
            to 0 and 1), `image_standard`, `none`, or `auto`: depth for 8 bits, none for floats
            within [0, 1], range for all else.
        offset: What becomes 0 in `depth`, `range` and `standard`; by default found from the data.
        scale: What, above the offset, becomes 1; likewise.
        invert: Whether bright becomes dark: 1 - x, or -x for a normalization to mean 0.
        skip_unusable: Whether images that cannot be read, hold NaN or infinite pixels, or are of
            one value throughout are left out (each is named in the log) instead of ending all.
        val_fraction: The fraction of the images that validates.
        test_fraction: The fraction that tests.
        in_memory: Whether a training holds all images, or reads those of a batch from their files;
            `auto`: if they take at most a quarter of the machine's memory, which its processes
            share. No result depends on it.
        contents: Which images there are, as a run found it: others are refused.
        batch_size: As in `ImageDataModule`.
        eval_batch_size: As in `ImageDataModule`.
        workers: As in `ImageDataModule`; of images that are not in memory.
        seed: As in `ImageDataModule`; it also decides which image is in which split.
    """

    reading = (
        *("channel", "crop", "resize", "fit", "color"),
        *("invert", "normalize", "offset", "scale"),
    )

    def __init__(
        self,
        path: str | None = None,
        array: str | None = None,
        channel: int | str | None = None,
        labels: str = "auto",
        crop: int | None = None,
        resize: int | None = None,
        fit: str = "crop",
        color: str = "keep",
        normalize: str = "auto",
        offset: float | None = None,
        scale: float | None = None,
        invert: bool = False,
        skip_unusable: bool = False,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        in_memory: bool | str = "auto",
        contents: str | None = None,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        workers: int = 1,
        seed: int = 1,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, workers)
        if not path:
            raise ValueError(f"path: write dataset.path=FOLDER; expected {KINDS}")
        self.path = Path(path).expanduser().absolute()
        self.array = array
        if isinstance(channel, int):
            at_least("channel", channel, 0)
        elif channel not in (None, "all"):
            raise ValueError(f"channel: expected a number from 0, all or null, got {channel!r}")
        self.channel = channel
        is_file = labels not in ("auto", "none")
        self.labels = str(Path(labels).expanduser().absolute()) if is_file else labels
        self.shaping = Shaping(
            None if crop is None else at_least("crop", crop, 2),
            None if resize is None else at_least("resize", resize, 2),
            one_of("fit", fit, ("crop", "pad")),
            one_of("color", color, ("keep", "grey", "rgb")),
        )
        self.wanted = _wanted(normalize, offset, scale, invert)
        self.skip_unusable = skip_unusable
        self.in_memory = truth_or_auto("in_memory", in_memory)
        self.contents = contents
        self.fractions = (val_fraction, test_fraction)
        split_rows(len(SPLITS), *self.fractions, seed)  # are these fractions?
        self._pictures: Pictures | None = None
        self._survey: Survey | None = None
        self._labels: Tensor | None = None

    def read(self) -> dict[str, Batch | ImageSource]:
        pictures = self._opened()
        self._split(torch.arange(len(pictures.source)))  # fails before much is read
        keep = self._to_be_kept()
        # The first of several processes looks for all, where that decides nothing.
        unseen = self._unseen() if following() and not keep else None
        survey, image = (unseen, torch.empty(0)) if unseen else self._look(keep)
        self._survey = survey
        splits = survey.splits or self._split(survey.rows)
        self._tell_of_shared_files(splits)
        known = {split: {"index": rows} | self._known(rows) for split, rows in splits.items()}
        if keep:
            return {split: {"image": image[splits[split]]} | known[split] for split in splits}
        return {
            split: PicturesOnDisk(pictures, survey.normalization, tensors)
            for split, tensors in known.items()
        }

    def everything(self) -> ImageSource:
        """The usable images in the order of their index, read when they are asked for.

        All are read once before, if their pixels have to say how they are normalised, or which of
        them are to be skipped. `split` is there where there are enough images to be split.
        """
        pictures = self._opened()
        survey = self._survey or self._unseen() or self._look(keep=False)[0]
        self._survey = survey
        tensors = {"index": survey.rows} | self._known(survey.rows)
        if survey.splits is not None:
            tensors["split"] = split_numbers(survey.splits, len(pictures.source))[survey.rows]
        return PicturesOnDisk(pictures, survey.normalization, tensors)

    def found(self) -> dict[str, Any]:
        if self._survey is None:
            return {}
        normalization = self._survey.normalization
        return {
            "path": str(self.path),
            "labels": self.labels,
            "normalize": normalization.kind,
            "offset": normalization.offset,
            "scale": normalization.scale,
            "contents": self.contents,
        }

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of every image, (C, H, W)."""
        channels, height, width = self._opened().first().shape
        return channels, height, width

    def _opened(self) -> Pictures:
        if self._pictures is None:
            source = _source(self.path, self.array, self.channel)
            names = map(source.name, range(len(source)))
            self.contents = contents_of(self.path, names, self.contents)
            self.file_names = source.file_names
            if (labels := read_labels(self.labels, source)) is not None:
                self._labels, self.label_names = labels
                self.num_labels = len(self.label_names)
            by_itself = self.wanted.kind in ("none", "image_range", "image_standard")
            self._pictures = Pictures(source, self.shaping, one_type=not by_itself)
        return self._pictures

    def _to_be_kept(self) -> bool:
        """Whether a training holds all images.

        Raises:
            ValueError: It is to, and the machine has not so much memory.
        """
        if self.in_memory is False:
            return False
        count = len(self._opened().source)
        needed = 4 * count * math.prod(self.image_shape)
        memory = memory_at_hand("cpu")
        if self.in_memory == "auto":
            here = place()
            processes = 1 if here is None else here.world_size
            if needed <= memory * _PART_FOR_IMAGES / processes:
                return True
            log.info(
                "the %d images in %s, as a model sees them, take %.3g GB: they are read from "
                "there in every epoch (dataset.in_memory=true keeps them)",
                *(count, self.path, needed / 2**30),
            )
            return False
        if needed > memory:
            raise ValueError(
                f"dataset.in_memory: the {count} images in {self.path}, as a model sees them, "
                f"take {needed / 2**30:.3g} GB, and there are {memory / 2**30:.3g} GB here; "
                "expected auto or false, or a smaller dataset.resize"
            )
        return True

    def _known(self, rows: Tensor) -> Batch:
        return {} if self._labels is None else {"label": self._labels[rows]}

    def _split(self, rows: Tensor) -> dict[str, Tensor]:
        splits = split_index(rows, self.fractions, self.seed, self.path)
        files = self._opened().source.files
        return splits if files is None else split_by_file(splits, files, self.seed)

    def _tell_of_shared_files(self, splits: dict[str, Tensor]) -> None:
        files = self._opened().source.files
        if files is not None and (shared := in_several(splits, files)):
            log.info(
                "the pages of %s%s are shared out over train, val and test: what is measured in "
                "test is too good if they show one object, as slices and time points do",
                *(shared[0], f" and {len(shared) - 1} more" if len(shared) > 1 else ""),
            )

    def _split_if_enough(self, rows: Tensor) -> dict[str, Tensor] | None:
        return self._split(rows) if len(rows) >= len(SPLITS) else None

    def _unseen(self) -> Survey | None:
        """What is known from the first image alone, or None where all must be looked at."""
        pictures = self._opened()
        if self.skip_unusable:
            return None
        first = pictures.first()
        self._usable(pictures.before)
        normalization = from_type(self.wanted, first.dtype, first.name)
        if normalization is None:
            return None
        rows = torch.arange(len(pictures.source))
        return Survey(rows, self._split_if_enough(rows), normalization)

    def _look(self, keep: bool) -> tuple[Survey, Tensor]:
        """Read every image once.

        Arguments:
            keep: Whether the normalised images are kept.

        Returns:
            What was found, and the images by their index (N, C, H, W), none if not kept.

        Raises:
            ValueError: Images differ in size, channels or type, or one is unusable and none are
                to be skipped.
        """
        pictures = self._opened()
        first, count = pictures.first(), len(pictures.source)
        normalization = from_type(self.wanted, first.dtype, first.name)
        sampled = max(SAMPLE_PER_IMAGE, SAMPLE // count) if normalization is None else 0
        image = torch.empty(count if keep else 0, *first.shape)

        def look(row: int) -> Seen | str:
            try:
                pixels = pictures.read(row)
            except Unusable as error:
                return str(error)
            if keep:
                image[row] = torch.from_numpy(pixels)
            low, high = float(pixels.min()), float(pixels.max())
            return Seen(low, high, self._sample(row, pixels, sampled))

        # Nothing is shown of what takes no time.
        every = in_threads(look, range(count))
        looked = list(tqdm(every, "looking at all images", count, delay=3, disable=None))
        rows = self._usable({row: why for row, why in enumerate(looked) if isinstance(why, str)})
        splits = self._split_if_enough(rows)
        if normalization is None:
            seen = {row: what for row, what in enumerate(looked) if isinstance(what, Seen)}
            deciding = (rows if splits is None else splits["train"]).tolist()
            normalization = from_pixels(
                self.wanted,
                first.dtype,
                np.concatenate([seen[row].sample for row in deciding]),
                min(what.low for what in seen.values()),
                max(what.high for what in seen.values()),
            )
        survey = self._survey = Survey(rows, splits, normalization)

        def normalise(row: int) -> None:
            pixels = image[row].numpy()
            pixels[:] = survey.normalization(pixels, pictures.source.name(row))

        if keep:
            list(in_threads(normalise, rows.tolist()))
        return survey, image

    def _sample(self, row: int, pixels: np.ndarray, count: int) -> np.ndarray:
        """Some pixels of an image, the same ones every time."""
        if count >= pixels.size:
            return pixels.ravel()
        places = Noise(self.seed, "normalization", torch.tensor([row])).uniform("pixel", count)
        return pixels.ravel()[(places[0] * pixels.size).long().numpy()]

    def _usable(self, bad: dict[int, str]) -> Tensor:
        """The rows of the others, if unusable images may be skipped."""
        source = self._opened().source
        if bad and not self.skip_unusable:
            row = min(bad)
            raise unusable(source.name(row), bad[row], len(bad) - 1)
        for row, why in bad.items():
            log.warning("%s is left out: %s", source.name(row), why)
        return torch.tensor([row for row in range(len(source)) if row not in bad])


def _wanted(
    normalize: str, offset: float | None, scale: float | None, invert: bool
) -> Normalization:
    """The normalization that was asked for, if its parts fit together."""
    one_of("normalize", normalize, NORMALIZE)
    if (offset is None) != (scale is None):
        raise ValueError(f"offset, scale: expected both or none, got {offset!r} and {scale!r}")
    if offset is None or scale is None:
        return Normalization(normalize, invert=invert)
    if normalize not in CONSTANT:
        raise ValueError(
            f"normalize: expected one of {', '.join(CONSTANT)} beside offset and scale, got "
            f"{normalize!r}"
        )
    if not abs(offset) < float("inf"):
        raise ValueError(f"offset: expected a number, got {offset!r}")
    return Normalization(normalize, float(offset), positive("scale", scale), invert)


def _source(path: Path, array: str | None, channel: int | str | None) -> Source:
    """The images at a path.

    Arguments:
        path: A folder, or a TIFF, `.npy` or `.npz` file.
        array: The name of the array in an `.npz`; None for the one that looks like images.
        channel: The one that is read of images with several, as in `Images`.

    Raises:
        FileNotFoundError: There is no such path.
        PermissionError: It may not be read.
        ValueError: There is no image in it, or not this channel.
    """
    kind = path.suffix.lower()
    if not path.exists():
        raise FileNotFoundError(f"dataset.path: {path} does not exist")
    if array is not None and (path.is_dir() or kind != ".npz"):
        raise ValueError(
            f"dataset.array: {array!r} names an array of an .npz, but dataset.path is {path}; "
            "write dataset.array=null"
        )
    if path.is_dir():
        return PictureFiles(path, list_pictures(path), channel)
    if kind in TIFF:
        return PictureFiles(path.parent, [path.name], channel)
    if kind in (".npy", ".npz"):
        return ArrayFile(path, array, channel if isinstance(channel, int) else None)
    what = "a single picture" if kind in SUFFIXES else f"a file of another kind ({kind or 'none'})"
    raise ValueError(f"dataset.path: {path} is {what}; expected {KINDS}")
