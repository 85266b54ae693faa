"""Images that the authors of the papers published, once they lie on this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svae.checks import at_least, one_of
from svae.datasets.base import Batch, ImageDataModule, ImageSource
from svae.datasets.galaxy_zoo import ByteImages
from svae.datasets.particles import Particles
from svae.datasets.picture_arrays import ArrayFile, load_array
from svae.paths import data_dir as default_data_dir

__all__ = ["EMPIAR10025", "PublishedArrays"]


class PublishedArrays(ImageDataModule):
    """Two `.npy` files, one to train on and one to test: (N, H, W) or (N, H, W, 3).

    Validation is taken from the first file, so that the second is the published test split.
    Numbers stay as they are, but bytes, of which 255 becomes 1. `index` counts the images of the
    first file, then those of the second.

    References:
        Explicitly disentangling image content from translation and rotation with spatial-VAE
        (Bepler et al., 2019), sections 4.3 and 4.4; github.com/tbepler/spatial-VAE.

    Arguments:
        folder: The name of the folder that the archive unpacks to.
        address: Where the archive is.
        train_file: The file to train on.
        test_file: The file to test on.
        path: The folder that holds the files; by default `folder` in `data_dir`.
        data_dir: By default `$SVAE_DATA_DIR`, else the user's cache folder.
        normalize: `none`, or `image_standard`: mean and standard deviation of each image to 0 and
            1, over all its pixels, as with the option `--normalize` of the published code.
        val_images: How many images of the first file validate.
        batch_size: As in `ImageDataModule`.
        eval_batch_size: As in `ImageDataModule`.
        seed: As in `ImageDataModule`; it also decides which images validate.
    """

    def __init__(
        self,
        folder: str,
        address: str,
        train_file: str = "processed_train.npy",
        test_file: str = "processed_test.npy",
        path: str | None = None,
        data_dir: str | None = None,
        normalize: str = "none",
        val_images: int = 1000,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        seed: int = 1,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.path = None if path is None else Path(path).expanduser().absolute()
        self.root = Path(data_dir).expanduser() if data_dir else default_data_dir()
        self.folder, self.address = folder, address
        self.files = (train_file, test_file)
        self.normalize = one_of("normalize", normalize, ("none", "image_standard"))
        self.val_images = at_least("val_images", val_images, 1)

    def read(self) -> Mapping[str, Batch | ImageSource]:
        train, test = (_images(self._find(name), self.normalize) for name in self.files)
        if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
            what = (f"{t.dtype} of shape {tuple(t.shape)}" for t in (train, test))
            both = " and ".join(f"{n} holds {w}" for n, w in zip(self.files, what, strict=True))
            raise ValueError(f"{self.folder}: {both}; expected images of one size and type")
        count = len(train)
        if self.val_images >= count:
            raise ValueError(
                f"val_images: expected fewer than the {count} images of {self.files[0]}, "
                f"got {self.val_images}"
            )
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        rows = {
            "train": order[self.val_images :],
            "val": order[: self.val_images],
            "test": torch.arange(count, count + len(test)),
        }
        pixels = torch.cat([train, test])
        if pixels.dtype == torch.uint8:
            return {name: ByteImages(pixels, {"index": some}) for name, some in rows.items()}
        return {name: {"image": pixels[some], "index": some} for name, some in rows.items()}

    def found(self) -> dict[str, Any]:
        return {} if self.path is None else {"path": str(self.path)}

    def _find(self, name: str) -> Path:
        place = self.root / self.folder if self.path is None else self.path
        if not (place / name).is_file():
            raise FileNotFoundError(
                f"{self.folder}: {name} is not in {place}. Unpack {self.address} in {self.root}, "
                "or write dataset.path=FOLDER with the folder that holds it"
            )
        return place / name


class EMPIAR10025(Particles):
    """Particles of the T20S proteasome, in `EMPIAR10025` of the data folder if no path is given.

    There, or in its sub-folder `mrcs`, lies one `.star`, else one `.cs`, else one `.mrcs` or
    `.mrc`. All else is as in `Particles`.

    References:
        Unsupervised object representation learning using translation and rotation group
        equivariant VAE (Nasiri and Bepler, 2022): 161,292 particles of 400x400 pixels of 0.66 Å,
        made into 100x100. The authors published no stack; github.com/SMLC-NYSBC/TARGET-VAE names
        this folder.
    """

    def default_path(self) -> str:
        folder = default_data_dir() / "EMPIAR10025"
        places = (folder, folder / "mrcs")
        for suffixes in ((".star",), (".cs",), (".mrcs", ".mrc")):
            found = [p for place in places for end in suffixes for p in place.glob(f"*{end}")]
            if len(found) == 1:
                return str(found[0])
            if found:
                names = ", ".join(sorted(path.name for path in found)[:3])
                raise ValueError(
                    f"path: which of the {len(found)} files {names}, ... in {folder} is it? Write "
                    "dataset.path=FILE; a .txt may name several stacks"
                )
        raise FileNotFoundError(
            f"EMPIAR-10025: there is no .star, .cs, .mrcs or .mrc in {folder}. Extract particles "
            "from https://www.ebi.ac.uk/empiar/EMPIAR-10025 (the authors of TARGET-VAE published "
            "no stack) and put them there, or write dataset.path=FILE; without them: python -m "
            "svae.train dataset=hinge"
        )


def _images(path: Path, normalize: str) -> Tensor:
    """The images of a file (N, C, H, W), uint8 or float32.

    Raises:
        ValueError: It holds no images, is damaged, or has pixels that are not finite.
    """
    channels_first = ArrayFile(path).channels_first  # and it is an array of images
    stored = load_array(path, "")
    if stored.ndim == 3:
        stored = stored[:, np.newaxis]
    elif not channels_first:
        stored = np.moveaxis(stored, -1, 1)
    if stored.dtype == np.uint8 and normalize == "none":
        return torch.from_numpy(np.array(stored, order="C"))
    with np.errstate(over="ignore"):  # of float64; what becomes infinite is refused below
        pixels = torch.from_numpy(np.array(stored, np.float32, order="C"))
    if normalize == "image_standard":
        std, mean = torch.std_mean(pixels, (1, 2, 3), correction=0, keepdim=True)
        pixels = (pixels - mean) / std
    bad = (~pixels.isfinite()).flatten(1).any(1).nonzero().flatten()
    if len(bad):
        why = " or are constant" if normalize == "image_standard" else ""
        raise ValueError(
            f"{path}: {len(bad)} of its {len(pixels)} images have pixels that are NaN or "
            f"infinite{why}, the first is number {bad[0]} (from 0)"
        )
    return pixels
