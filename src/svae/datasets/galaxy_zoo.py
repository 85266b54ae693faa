"""Galaxy Zoo: the pictures of the Kaggle challenge, each cut out at a random shift."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from svae.checks import at_least, not_negative
from svae.datasets.base import (
    SPLITS,
    Batch,
    ImageDataModule,
    ImageSource,
    split_numbers,
    split_rows,
)
from svae.datasets.picture_files import PictureFiles, Unusable, list_pictures
from svae.datasets.picture_pixels import Shaping
from svae.datasets.pictures import in_threads, unusable
from svae.geometry import pixel_size
from svae.noise import Noise
from svae.paths import data_dir as default_data_dir

__all__ = ["FOLDER", "ByteImages", "GalaxyZoo"]

log = logging.getLogger(__name__)

FOLDER = "images_training_rev1"
ORIGIN = "www.kaggle.com/c/galaxy-zoo-the-galaxy-challenge/data"


class ByteImages(Dataset[Batch]):
    """Images held as bytes, a quarter of what floats take; an item is the batch of some rows.

    In a batch, pixels are float32 from 0 to 1.

    Arguments:
        pixels: All images by their index, uint8, with shape (N, C, H, W).
        tensors: `index` (M,), which of them are meant, and what else goes into a batch.
    """

    def __init__(self, pixels: Tensor, tensors: Batch) -> None:
        self.pixels, self.tensors = pixels, tensors

    def __len__(self) -> int:
        return len(self.tensors["index"])

    def __getitem__(self, rows: Tensor) -> Batch:
        batch = {name: tensor[rows] for name, tensor in self.tensors.items()}
        return {"image": self.pixels[batch["index"]].float() / 255} | batch


class Cut(NamedTuple):
    """A window of a picture, made small."""

    #: Width and height of the picture in its file.
    size: tuple[int, int]
    #: uint8, with shape (3, size, size).
    pixels: np.ndarray
    #: The picture's centre as seen from the window's, x right and y up, in pixels of the file.
    centre: tuple[float, float]


class GalaxyZoo(ImageDataModule):
    """61,578 galaxies of the Sloan Digital Sky Survey in colour, as in section 4.4 of the paper.

    Each picture, 424 pixels wide and with its galaxy at the centre, is cut out around a random
    point and made small. The shift is a function of the seed and of the picture's place in the
    list of files alone. The paper gives neither the side of the square nor the distribution: here
    they are 256 pixels, which hold all but the largest galaxies, and a normal one with the
    standard deviation of its prior, 8 pixels of the small image, that ends at the picture's edge.

    A batch holds beside `image` (B, 3, H, W), from 0 to 1, and `index`: `shift` (B, 2), where the
    centre of the picture lies. The survey put the galaxy there.

    All pictures are read once at the start (500 a second on one core) and held as bytes, 757 MB
    for 64 pixels.

    References:
        Explicitly disentangling image content from translation and rotation with spatial-VAE
        (Bepler et al., 2019), section 4.4. Galaxy Zoo - The Galaxy Challenge (Kaggle, 2013).

    Arguments:
        path: The folder of pictures; by default `images_training_rev1` in `data_dir` or in its
            sub-folder `galaxy_zoo`.
        data_dir: By default `$SVAE_DATA_DIR`, else the user's cache folder.
        crop: The side of the square that is cut out, in pixels of the file.
        size: The side of the square that is made of it, in pixels.
        shift_std_px: The standard deviation of the shift along each axis, in pixels of what is
            made; 0 for none.
        skip_unusable: Whether pictures that cannot be read, or are of one colour throughout, are
            left out (each is named in the log) instead of ending all.
        val_fraction: The fraction of the pictures that validates.
        test_fraction: The fraction that tests.
        batch_size: As in `ImageDataModule`.
        eval_batch_size: As in `ImageDataModule`.
        seed: As in `ImageDataModule`; it also decides the shifts.
    """

    reading = ("crop", "size")

    def __init__(
        self,
        path: str | None = None,
        data_dir: str | None = None,
        crop: int = 256,
        size: int = 64,
        shift_std_px: float = 8.0,
        skip_unusable: bool = False,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        seed: int = 1,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.path = None if path is None else Path(path).expanduser().absolute()
        self.root = Path(data_dir).expanduser() if data_dir else default_data_dir()
        self.crop, self.size = at_least("crop", crop, 2), at_least("size", size, 2)
        self.shift_std = not_negative("shift_std_px", shift_std_px) * crop / size
        self.skip_unusable = skip_unusable
        self.fractions = (val_fraction, test_fraction)
        split_rows(len(SPLITS), *self.fractions, seed)  # are these fractions?
        self._all: ByteImages | None = None

    def read(self) -> dict[str, Batch | ImageSource]:
        known = self._everyone()
        return {
            name: ByteImages(known.pixels, {key: t[rows] for key, t in known.tensors.items()})
            for name, rows in self._split(len(known)).items()
        }

    def everything(self) -> ImageSource:
        known = self._everyone()
        tensors = dict(known.tensors)
        if len(known) >= len(SPLITS):
            tensors["split"] = split_numbers(self._split(len(known)), len(known))
        return ByteImages(known.pixels, tensors)

    def found(self) -> dict[str, Any]:
        return {} if self.path is None else {"path": str(self.path)}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of every image, (3, H, W)."""
        return 3, self.size, self.size

    def _split(self, count: int) -> dict[str, Tensor]:
        return split_rows(count, *self.fractions, self.seed)

    def _everyone(self) -> ByteImages:
        """The usable images in the order of their index, with the shift of each."""
        if self._all is not None:
            return self._all
        folder = self._folder()
        source = PictureFiles(folder, list_pictures(folder))
        self.file_names = source.file_names
        count = len(source)
        self._split(max(count, len(SPLITS)))
        log.info("reading %s pictures of %s", f"{count:,}", folder)
        wanted = Noise(self.seed, "galaxy", torch.arange(count)).normal("shift", 2)
        wanted *= self.shift_std
        shaping = Shaping(crop=self.crop, resize=self.size, color="rgb")

        def cut(row: int) -> Cut | str:
            try:
                return _cut(source.read(row), wanted[row].tolist(), shaping, source.name(row))
            except Unusable as error:
                return str(error)

        pixels = torch.empty(count, *self.image_shape, dtype=torch.uint8)
        centre = torch.zeros(count, 2, dtype=torch.float64)
        usable: list[int] = []
        size: tuple[int, int] | None = None
        cuts = tqdm(in_threads(cut, range(count)), "reading", count, delay=3, disable=None)
        for row, found in enumerate(cuts):
            name = source.name(row)
            if isinstance(found, str):
                if not self.skip_unusable:
                    raise unusable(name, found)
                log.warning("%s is left out: %s", name, found)
                continue
            size = size or found.size
            if found.size != size:
                first, this = ("{} x {}".format(*s) for s in (size, found.size))
                raise ValueError(
                    f"dataset.path: {source.name(usable[0])} is {first} and {name} {this} pixels "
                    f"(width x height) in {folder}; galaxies of different scales are for "
                    "dataset=images"
                )
            usable.append(row)
            pixels[row] = torch.from_numpy(found.pixels)
            centre[row] = torch.tensor(found.centre)
        if not usable:
            raise ValueError(f"dataset.path: none of the {count} pictures in {folder} can be used")
        index = torch.tensor(usable)
        step = pixel_size(self.size, self.size) * self.size / self.crop
        shift = (centre[index] * step).float()
        self._all = ByteImages(pixels, {"index": index, "shift": shift})
        return self._all

    def _folder(self) -> Path:
        if self.path is not None:
            if not self.path.is_dir():
                raise FileNotFoundError(
                    f"dataset.path: {self.path} is no folder; expected that of the pictures"
                )
            return self.path
        places = (self.root / "galaxy_zoo" / FOLDER, self.root / FOLDER)
        for folder in places:
            if folder.is_dir():
                return folder
        raise FileNotFoundError(
            f"Galaxy Zoo: {FOLDER} is neither in {places[0].parent} nor in {self.root}. Unpack "
            f"{FOLDER}.zip of {ORIGIN} there, or write dataset.path=FOLDER; other pictures of "
            "galaxies: python -m svae.train dataset=images dataset.path=FOLDER"
        )


def _cut(raw: np.ndarray, wanted: list[float], shaping: Shaping, name: str) -> Cut:
    """The window of a picture in which its centre is as far off as wanted, or as there is room.

    Arguments:
        raw: The picture, (H, W) or (H, W, 3).
        wanted: The shift, x right and y up, in pixels of the file.
        shaping: What is done to the window; its `crop` is the window's side.
        name: What messages call it.

    Raises:
        Unusable: As `Shaping`, or the pixels are no bytes.
        ValueError: The picture is smaller than the window.
    """
    if raw.dtype != np.uint8:
        raise Unusable(f"expected 8 bits per colour, got {raw.dtype}")
    height, width = raw.shape[:2]
    side = shaping.crop or min(height, width)
    # What moves right in the window is what the window moves left of; rows run downwards.
    left = _within((width - side) / 2 - wanted[0], width - side)
    top = _within((height - side) / 2 + wanted[1], height - side)
    small = shaping(raw[top : top + side, left : left + side], name)
    centre = (width - side) / 2 - left, top - (height - side) / 2
    return Cut((width, height), np.rint(small).astype(np.uint8), centre)


def _within(place: float, last: int) -> int:
    return max(0, min(round(place), last))
