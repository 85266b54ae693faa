"""`python -m svae.decode run=...`: pictures from a trained model."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from svae.checks import at_least, one_of
from svae.command import command, given
from svae.datasets import ImageDataModule
from svae.datasets.base import SPLITS, Batch, ImageSource
from svae.errors import told_in_one_line
from svae.figures import write_gif
from svae.gallery import Gallery, couples, spread
from svae.inferred import Inferred, infer_batch
from svae.model import SpatialVAE
from svae.run import images_to_encode, load, resolve_seed
from svae.tables import write_npz

__all__ = ["decode", "main"]

log = logging.getLogger(__name__)

#: What needs images, beside the model.
OF_IMAGES = ("interpolations", "pose_removed", "rotations")
#: How many images are shown where nobody chooses them; more do not fit into a figure.
SHOWN = 12


def decode(cfg: DictConfig) -> None:
    """Write what `cfg.what` names: figures, animations, and arrays of what they show."""
    with told_in_one_line():
        what: Any = plain(cfg.what) or None
        asked = what if isinstance(what, list) else [what]
        names = list(dict.fromkeys(one_of("what", name, tuple(MAKERS)) for name in asked))
        at_least("frames", cfg.frames, 2)
        resolve_seed(cfg)
        model = load(cfg.run, cfg.checkpoint)
        gallery = Gallery(model, SHOWN, cfg.manifold_side, cfg.steps, cfg.seed)
        left_out = {name: why for name in names if (why := impossible(gallery, name))}
        names = [name for name in names if name not in left_out]
        shown = Shown(cfg, model) if any(name in OF_IMAGES for name in names) else None
        if shown and cfg.pairs is None and len(shown.inferred) < 2 and "interpolations" in names:
            left_out["interpolations"] = "it needs two images"
            names.remove("interpolations")
        # All before anything is written: a wrong setting of the last must not leave half of them.
        made = {name: MAKERS[name](gallery, cfg, shown) for name in names}
    for name, why in left_out.items():
        log.info("%s is left out: %s", name, why)
    folder = Path(cfg.output_dir)
    (folder / "figures").mkdir(exist_ok=True)
    for name, (figure, arrays, frames) in made.items():
        figure.savefig(folder / "figures" / f"{name}.png")
        if frames is not None:
            path = folder / "figures" / f"{name}.gif"
            write_gif(path, gallery.drawn(frames), there_and_back=name != "rotations")
        write_npz(folder / f"{name}.npz", {k: v.cpu().numpy() for k, v in arrays.items()})
    log.info("decoded: %s", ", ".join(made) or "nothing")
    log.info("pictures: %s, the arrays beside it", folder / "figures")


class Shown:
    """The images that are decoded from, with what is inferred from them.

    Arguments:
        cfg: The config of the command.
        model: The model.

    Raises:
        ValueError: An index that no image has, or an image that cannot be used.
    """

    def __init__(self, cfg: DictConfig, model: SpatialVAE) -> None:
        self.model = model
        self.data: ImageDataModule
        self.images: ImageSource
        self.data, self.images = images_to_encode(cfg, given("dataset"))
        if cfg.images is not None:
            rows = self.rows("images", plain(cfg.images))
        else:
            known = self.images.tensors
            rows = torch.arange(len(self.images))
            if cfg.dataset is None and "split" in known:
                rows = rows[known["split"] == SPLITS.index("test")]
            rows = spread(rows, SHOWN)
        self.batch, self.inferred = self.read(rows)

    def read(self, rows: Tensor) -> tuple[Batch, Inferred]:
        """Images and what is inferred from them."""
        batch = self.images[rows]
        self.model.likelihood.check(batch["image"])
        return batch, infer_batch(self.model, batch)[0]

    def rows(self, name: str, index: Any) -> Tensor:
        """Where the images with the indices are that the setting `name` holds."""
        if not isinstance(index, list) or not index or not all(type(i) is int for i in index):
            raise ValueError(f"{name}: expected a list of indices such as [3, 8], got {index!r}")
        known = {value: row for row, value in enumerate(self.images.tensors["index"].tolist())}
        for value in index:
            if value not in known:
                raise ValueError(
                    f"{name}: expected indices of images, {min(known)} to {max(known)}, "
                    f"got {value!r}"
                )
        return torch.tensor([known[value] for value in index])

    def names(self) -> list[str]:
        """What the images are called."""
        names = self.data.file_names
        index = self.inferred.index.tolist()
        return [f"#{i}" if names is None else names[i] for i in index]


def impossible(gallery: Gallery, name: str) -> str | None:
    """Why a model cannot make something, if it cannot."""
    if name == "pose_removed" and gallery.model.priors.keys() <= {"z"}:
        return "the model infers no pose"
    if not gallery.model.z_dim and name != "pose_removed":
        return "the model has no content (z_dim 0)"
    if not gallery.model.generator.coordinate_based and name == "rotations":
        return "the model's generator has no coordinates to turn"
    return None


def plain(value: Any) -> Any:
    """A value of a config without OmegaConf's containers."""
    return OmegaConf.to_container(value) if isinstance(value, ListConfig) else value


#: A figure, arrays to keep, and what is animated, (P, S, C, H, W).
Made = tuple[Figure, Mapping[str, Tensor], Tensor | None]


def manifold(gallery: Gallery, cfg: DictConfig, shown: Shown | None) -> Made:
    """The plane of the first two components of z (figure 3 of the paper)."""
    figure, z, images = gallery.manifold()
    return figure, {"z": z, "images": images}, None


def traversals(gallery: Gallery, cfg: DictConfig, shown: Shown | None) -> Made:
    """One component of z at a time."""
    dims = plain(cfg.dims)
    if dims is not None and not (isinstance(dims, list) and all(type(i) is int for i in dims)):
        raise ValueError(f"dims: expected a list of numbers such as [0, 1], got {dims!r}")
    figure, z, images = gallery.traversals(dims)
    return figure, {"z": z, "images": images}, None


def samples(gallery: Gallery, cfg: DictConfig, shown: Shown | None) -> Made:
    """Content from the prior (figure 5), beside images where others of `what` need them too."""
    figure, z, images = gallery.samples(shown.batch["image"] if shown else None)
    return figure, {"z": z, "images": images}, None


def interpolations(gallery: Gallery, cfg: DictConfig, shown: Shown | None) -> Made:
    """From one image's content to another's (figure 6), still and moving."""
    assert shown is not None
    index, image, z = shown.inferred.index, shown.batch["image"], shown.inferred.latents.z
    rows = couples(len(z))
    if cfg.pairs is not None:
        pairs = plain(cfg.pairs)
        good = isinstance(pairs, list) and all(isinstance(p, list) and len(p) == 2 for p in pairs)
        if not pairs or not good:
            raise ValueError(f"pairs: expected pairs of indices such as [[3, 8]], got {pairs!r}")
        chosen = shown.rows("pairs", [value for pair in pairs for value in pair])
        batch, inferred = shown.read(chosen)
        index, image, z = batch["index"], batch["image"], inferred.latents.z
        rows = torch.arange(len(z)).unflatten(0, (-1, 2))
    frames = gallery.path(z[rows], cfg.frames)
    arrays = {"index": index[rows], "ends": image[rows], "z": z[rows], "images": frames}
    return gallery.interpolations(image[rows], z[rows]), arrays, frames


def pose_removed(gallery: Gallery, cfg: DictConfig, shown: Shown | None) -> Made:
    """Images with their inferred pose removed, beside what is generated without one."""
    assert shown is not None
    image, latents = shown.batch["image"], shown.inferred.latents
    figure, aligned, generated = gallery.pose_removed(image, latents, shown.names())
    arrays = {"index": shown.inferred.index, "inputs": image}
    return figure, arrays | {"aligned": aligned, "generated": generated}, None


def rotations(gallery: Gallery, cfg: DictConfig, shown: Shown | None) -> Made:
    """The content of images at angles all around, still and moving."""
    assert shown is not None
    z = shown.inferred.latents.z
    figure, _ = gallery.rotations(z)
    _, frames = gallery.rotations(z, cfg.frames)
    rows = slice(len(frames))
    index = shown.inferred.index[rows]
    return figure, {"index": index, "z": z[rows], "images": frames}, frames


MAKERS: dict[str, Callable[[Gallery, DictConfig, Shown | None], Made]] = {
    "manifold": manifold,
    "traversals": traversals,
    "samples": samples,
    "interpolations": interpolations,
    "pose_removed": pose_removed,
    "rotations": rotations,
}

main = command("decode")(decode)

if __name__ == "__main__":
    main()
