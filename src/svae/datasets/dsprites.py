"""dSprites as published: 737,280 black-and-white images in one compressed file."""

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from svae.checks import at_least
from svae.datasets.base import Batch, ImageDataModule
from svae.datasets.picture_arrays import headers_of, load_array
from svae.datasets.sprites import SHAPES
from svae.geometry import pixel_size, wrap_angle
from svae.paths import data_dir as default_data_dir

__all__ = ["FILE_NAME", "DSprites"]

FILE_NAME = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
ORIGIN = "github.com/google-deepmind/dsprites-dataset"

#: The columns of `latents_values`; the first, the colour, is always the same.
SHAPE, SCALE, ORIENTATION, POSITION = 1, 2, 3, slice(4, 6)

#: How many images are unpacked at once: 16 MiB of 64x64 pixels.
BLOCK = 4096


class DSprites(ImageDataModule):
    """Some of the images of dSprites, drawn at random without repetition.

    A batch holds beside `image` and `index` (the row in the file): `label` (the shape), `theta`,
    `shift`, `scale` (B,), from 0.5 to 1, and `symmetry` (B,), how many different turns leave the
    shape the same; a square at orientation 0 lies along the axes, an ellipse along the horizontal
    one, and a heart has its notch up. The test split also holds `untransformed` (N, 1, H, W): the
    same shape in the same size at orientation 0 and the position nearest to the centre, which is
    half a pixel away from it along each axis.

    What the file does not say was measured on the authors' animation of the images
    (`dsprites.gif` in their repository: a heart, then an ellipse and a square, over all values of
    one latent after the other) and on the figures of their notebook:

    * **posX** runs from left to right and **posY** from top to bottom, both over half the image:
      a shape's place is in column and row 15.5 at 0 and 47.5 at 1, of 0 to 63.
    * **orientation** is counter-clockwise as seen: the long axis of the ellipses at the sixth of
      the 40 values, 46.2 degrees, is at 45 to 48 degrees, and the heart's notch moves from the
      top to the left.
    * The last of the 40 orientations is 2 pi, and these 18,432 images are the first's once more.
      They are left out: the same image would be in two splits.
    * A heart's place is a point below its centre of mass, by 1.9 pixels at scale 1.

    References:
        dSprites: disentanglement testing sprites dataset (Matthey et al., 2017),
        github.com/google-deepmind/dsprites-dataset.

    Arguments:
        data_dir: The folder that holds the file, or holds it in `dsprites/`; by default
            `$SVAE_DATA_DIR`, else the user's cache folder.
        train_images: The number of training images.
        val_images: The number of validation images.
        test_images: The number of test images.
        batch_size: As in `ImageDataModule`.
        eval_batch_size: As in `ImageDataModule`.
        seed: As in `ImageDataModule`; it also decides which images are drawn.
    """

    num_labels = len(SHAPES)

    def __init__(
        self,
        data_dir: str | None = None,
        train_images: int = 50_000,
        val_images: int = 5_000,
        test_images: int = 10_000,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        seed: int = 1,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.label_names = list(SHAPES)
        self.root = Path(data_dir).expanduser() if data_dir else default_data_dir()
        self.counts = {
            "train": at_least("train_images", train_images, 1),
            "val": at_least("val_images", val_images, 1),
            "test": at_least("test_images", test_images, 1),
        }

    def read(self) -> dict[str, Batch]:
        path = self._path()
        shape = _shape_of_images(path)
        latents = _read_latents(path)
        different = np.flatnonzero(latents[:, ORIENTATION] < 2 * math.pi - 1e-6)
        wanted = sum(self.counts.values())
        if wanted > len(different):
            raise ValueError(
                f"train_images, val_images, test_images: expected at most the {len(different)} "
                f"different images of {path} together, got {wanted}"
            )
        order = torch.randperm(
            len(different), generator=torch.Generator().manual_seed(self.seed)
        ).numpy()
        drawn = different[order[:wanted]]
        ends = np.cumsum(list(self.counts.values()))[:-1]
        rows = dict(zip(self.counts, np.split(drawn, ends), strict=True))
        upright = _upright(latents, rows["test"])
        # In the order of the file, which is unpacked from its beginning to its end once.
        read = np.unique(np.concatenate([drawn, upright]))
        images = _read_images(path, shape, read)

        def image(rows: np.ndarray) -> Tensor:
            return torch.from_numpy(images[np.searchsorted(read, rows)]).unsqueeze(1).float()

        splits = {
            name: {"image": image(some)} | _known(latents, some, shape[-1])
            for name, some in rows.items()
        }
        splits["test"]["untransformed"] = image(upright)
        return splits

    def _path(self) -> Path:
        places = (self.root / "dsprites" / FILE_NAME, self.root / FILE_NAME)
        for path in places:
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"dSprites: {FILE_NAME} is neither in {places[0].parent} nor in {self.root}. Put it "
            f"there (it is in {ORIGIN}), or set SVAE_DATA_DIR to the folder that holds it; "
            "without it: python -m svae.train dataset=sprites"
        )


def _known(latents: np.ndarray, rows: np.ndarray, side: int) -> Batch:
    """What the latents (N, 6) say of the images of some rows, whose side in pixels is given."""
    of = torch.from_numpy(latents[rows])
    label = of[:, SHAPE].long() - 1
    symmetries = torch.tensor([shape.symmetry for shape in SHAPES.values()])
    # Positions run over half the image, and downwards.
    shift_px = (of[:, POSITION] - 0.5) * of.new_tensor([side / 2, -side / 2])
    return {
        "index": torch.from_numpy(rows),
        "label": label,
        "theta": wrap_angle(of[:, ORIENTATION]).float(),
        "shift": (shift_px * pixel_size(side, side)).float(),
        "scale": of[:, SCALE].float(),
        "symmetry": symmetries[label],
    }


def _upright(latents: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For each of some rows, that of the same shape and scale upright and next to the centre."""
    _, kinds = np.unique(latents[:, [SHAPE, SCALE]], axis=0, return_inverse=True)
    kinds = kinds.reshape(-1)
    turned = wrap_angle(torch.from_numpy(latents[:, ORIENTATION])).abs().numpy()
    away = np.square(latents[:, POSITION] - 0.5).sum(1)
    order = np.lexsort((away, turned))
    _, first = np.unique(kinds[order], return_index=True)
    return order[first][kinds[rows]]


def _shape_of_images(path: Path) -> tuple[int, ...]:
    """(N, H, H), if the file's arrays are what is expected."""
    headers = headers_of(path)
    imgs, latents = headers.get("imgs"), headers.get("latents_values")
    if (
        imgs is None
        or latents is None
        or (imgs.dtype, imgs.fortran, len(imgs.shape)) != (np.uint8, False, 3)
        or imgs.shape[1] != imgs.shape[2]
        or (latents.shape, latents.dtype.kind) != ((imgs.shape[0], 6), "f")
    ):
        there = ", ".join(f"{name} ({header})" for name, header in headers.items())
        raise ValueError(
            f"dSprites: expected imgs (N, H, H) in uint8 and latents_values (N, 6) in {path}, "
            f"got {there or 'nothing'}; fetch it anew from {ORIGIN}"
        )
    return imgs.shape


def _read_latents(path: Path) -> np.ndarray:
    """`latents_values` (N, 6), float64."""
    latents = load_array(path, "latents_values").astype(np.float64)
    shapes = np.isin(latents[:, SHAPE], np.arange(1, len(SHAPES) + 1))
    # So that what is no number fails as well.
    positions = np.abs(latents[:, POSITION] - 0.5) <= 0.5
    if not (shapes.all() and positions.all()):
        raise ValueError(
            f"dSprites: expected shapes 1, 2 and 3 and positions from 0 to 1 in latents_values of "
            f"{path}; fetch it anew from {ORIGIN}"
        )
    return latents


def _read_images(path: Path, shape: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
    """Rows of `imgs` in ascending order, with shape (len(rows), H, H); never all 3 GB of it."""
    images = np.empty((len(rows), *shape[1:]), np.uint8)
    image_bytes = shape[1] * shape[2]
    try:
        with zipfile.ZipFile(path) as archive, archive.open("imgs.npy") as member:
            header_bytes = archive.getinfo("imgs.npy").file_size - shape[0] * image_bytes
            if header_bytes <= 0:
                raise EOFError("imgs has fewer bytes than its shape says")
            member.read(header_bytes)
            for start in range(0, shape[0], BLOCK):
                count = min(BLOCK, shape[0] - start)
                block = np.frombuffer(member.read(count * image_bytes), np.uint8)
                block = block.reshape(count, *shape[1:])
                first, end = np.searchsorted(rows, (start, start + count))
                images[first:end] = block[rows[first:end] - start]
        if images.max() > 1:
            raise ValueError(f"imgs: expected 0 and 1, got {images.max()}")
    except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(
            f"dSprites: {path} is damaged ({error}); fetch it anew from {ORIGIN}"
        ) from None
    return images
