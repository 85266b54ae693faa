"""MNIST, plain or turned and moved."""

import gzip
import zlib
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.datasets.utils import check_integrity

from svae.datasets.posed import PosedImages
from svae.paths import data_dir as default_data_dir

__all__ = ["MNIST"]

_MD5 = dict(torchvision.datasets.MNIST.resources)


class MNIST(PosedImages):
    """70,000 handwritten digits of 28x28 pixels: 50,000 for training, 10,000 each for the rest.

    The test split is MNIST's own; validation is drawn from its training set. The transformed sets
    of the papers differ only in their numbers.

    References:
        Explicitly disentangling image content from translation and rotation with spatial-VAE
        (Bepler et al., 2019), section 4.2: rotated, and rotated and translated MNIST.

    Arguments:
        data_dir: The folder that holds `MNIST/raw/`, or where to download to; by default
            `$SVAE_DATA_DIR`, else the user's cache folder.
        val_images: How many training images are set aside for validation.
        image_size: As in `PosedImages`, like all that follow.
        theta_distribution: `normal` or `uniform`.
        theta_std_deg: The standard deviation of a normal angle in degrees.
        shift_std_px: The standard deviation of the shift along each axis in pixels.
        scale_std: The standard deviation of the logarithm of the size.
        train_copies: How many poses each training digit is shown in.
        eval_copies: The same for each validation and test digit.
        batch_size: As in `ImageDataModule`.
        eval_batch_size: As in `ImageDataModule`.
        seed: As in `ImageDataModule`; it also decides which digits validate.
    """

    num_labels = 10

    def __init__(
        self,
        data_dir: str | None = None,
        val_images: int = 10_000,
        image_size: int = 28,
        theta_distribution: str = "normal",
        theta_std_deg: float = 0.0,
        shift_std_px: float = 0.0,
        scale_std: float = 0.0,
        train_copies: int = 1,
        eval_copies: int = 1,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        seed: int = 1,
    ) -> None:
        super().__init__(
            image_size,
            theta_distribution,
            theta_std_deg,
            shift_std_px,
            scale_std,
            train_copies,
            eval_copies,
            batch_size,
            eval_batch_size,
            seed,
        )
        self.root = Path(data_dir).expanduser() if data_dir else default_data_dir()
        if not 0 < val_images < 60_000:
            raise ValueError(f"val_images: expected 1 to 59999, got {val_images!r}")
        self.val_images = val_images

    def prepare_data(self) -> None:
        """Download what is missing; one process does this."""
        raw = self.root / "MNIST" / "raw"
        if all(_existing(raw / name) for name in _MD5):
            return
        try:
            torchvision.datasets.MNIST(str(self.root), download=True)
        except (RuntimeError, URLError, OSError) as error:
            raise FileNotFoundError(
                f"MNIST: {', '.join(_MD5)} are not in {raw} and could not be downloaded. Put the "
                "four files there, or set SVAE_DATA_DIR to the folder that holds MNIST/raw/; "
                "without them: python -m svae.train dataset=rot_digits "
                f"({type(error).__name__})"
            ) from error

    def objects(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        raw = self.root / "MNIST" / "raw"
        train_images, train_labels, test_images, test_labels = (
            _read_idx(raw / name) for name in _MD5
        )
        images = np.concatenate([train_images, test_images])
        labels = np.concatenate([train_labels, test_labels])
        order = torch.randperm(
            len(train_images), generator=torch.Generator().manual_seed(self.seed)
        )
        rows = {
            "train": order[self.val_images :],
            "val": order[: self.val_images],
            "test": torch.arange(len(train_images), len(images)),
        }
        objects = torch.from_numpy(images).unsqueeze(1).float() / 255
        return objects, torch.from_numpy(labels).long(), rows


def _existing(packed: Path) -> Path | None:
    """The file as torchvision extracts it, or packed as it is distributed, or nothing."""
    return next((path for path in (packed.with_suffix(""), packed) if path.is_file()), None)


def _read_idx(packed: Path) -> np.ndarray:
    """An array of bytes in the IDX format, without leaving an extracted copy behind."""
    path = _existing(packed)
    if path is None:
        raise FileNotFoundError(
            f"MNIST: neither {packed} nor {packed.with_suffix('').name} exists"
        )
    try:
        if path == packed and not check_integrity(str(path), _MD5[packed.name]):
            raise ValueError("its checksum differs from the published one")
        content = path.read_bytes()
        content = gzip.decompress(content) if path == packed else content
        zero, kind, dims = int.from_bytes(content[:2], "big"), content[2], content[3]
        if zero != 0 or kind != 8:
            raise ValueError("it does not begin as an IDX file of bytes does")
        shape = np.frombuffer(content, ">i4", dims, offset=4).astype(int)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()
    except (ValueError, IndexError, OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"MNIST: {path} is damaged ({error}); delete it to fetch it anew"
        ) from None
