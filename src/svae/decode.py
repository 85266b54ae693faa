"""`python -m svae.decode run=...`: pictures from a trained model."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from svae.checks import at_least, one_of
from svae.command import command, given
from svae.datasets import ImageDataModule
from svae.datasets.base import SPLITS, Batch, ImageSource
from svae.errors import told_in_one_line
from svae.figures import write_gif
from svae.gallery import Gallery
from svae.inferred import Inferred, infer_batch
from svae.run import images_to_encode, load, resolve_seed
from svae.tables import write_npz

__all__ = ["decode", "main"]

log = logging.getLogger(__name__)

#: What needs images, beside the model.
OF_IMAGES = ("interpolations", "pose_removed", "rotations")
SHOWN = 12
PAIRS = 4


def decode(cfg: DictConfig) -> None:
    """Write what `cfg.what` names into figures, animations and arrays."""
    with told_in_one_line():
        names = [cfg.what] if isinstance(cfg.what, str) else list(cfg.what)
        for name in names:
            one_of("what", name, tuple(MAKERS))
        at_least("steps", cfg.steps, 2)
        at_least("frames", cfg.frames, 2)
        resolve_seed(cfg)
        model = load(cfg.run, cfg.checkpoint)
        gallery = Gallery(model, SHOWN, cfg.manifold_side, cfg.steps, cfg.seed)
        left_out = {name: why for name in names if (why := impossible(gallery, name))}
        names = [name for name in names if name not in left_out]
        shown = Shown(cfg, gallery) if any(name in OF_IMAGES for name in names) else None
    for name, why in left_out.items():
        log.info("%s is left out: %s", name, why)
    folder = Path(cfg.output_dir)
    (folder / "figures").mkdir(exist_ok=True)
    for name in names:
        with told_in_one_line():
            figure, arrays, frames = MAKERS[name](gallery, cfg, shown)
        figure.savefig(folder / "figures" / f"{name}.png")
        if frames is not None:
            turning = name == "rotations"
            path = folder / "figures" / f"{name}.gif"
            write_gif(path, frames, there_and_back=not turning)
        write_npz(folder / f"{name}.npz", {k: v.cpu().numpy() for k, v in arrays.items()})
    log.info("%s", ", ".join(names) or "nothing to decode")
    log.info("pictures: %s, the arrays beside it", folder / "figures")


class Shown:
    """The images that are decoded from, with what is inferred from them.

    Raises:
        ValueError: An index that no image has.
    """

    def __init__(self, cfg: DictConfig, gallery: Gallery) -> None:
        self.model = gallery.model
        self.data: ImageDataModule
        self.images: ImageSource
        self.data, self.images = images_to_encode(cfg, given("dataset"))
        known = self.images.tensors
        rows = torch.arange(len(self.images))
        if cfg.dataset is None and "split" in known:
            rows = rows[known["split"] == SPLITS.index("test")]
        count = max(SHOWN, 2 * PAIRS)
        if len(rows) > count:
            rows = rows[torch.linspace(0, len(rows) - 1, count).round().long()]
        if cfg.images is not None:
            rows = self.rows(cfg.images, "images")
        self.batch, self.inferred = self.read(rows)

    def read(self, rows: Tensor) -> tuple[Batch, Inferred]:
        """Images and what is inferred from them."""
        batch = self.images[rows]
        self.model.likelihood.check(batch["image"])
        return batch, infer_batch(self.model, batch)[0]

    def rows(self, index: ListConfig | list[int], name: str) -> Tensor:
        """Where the images with the given indices are."""
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
    if not gallery.model.z_dim and name != "pose_removed":
        return "the model has no content (z_dim 0)"
    if not gallery.model.generator.coordinate_based and name == "rotations":
        return "the model's generator has no coordinates to turn"
    return None


#: A figure, arrays to keep, and frames to animate, (S, C, H, W) or (P, S, C, H, W).
Made = tuple[Figure, Mapping[str, Tensor], Tensor | None]


def manifold(gallery: Gallery, cfg: DictConfig, shown: Shown | None) -> Made:
    z = gallery.manifold_z()
    return gallery.manifold(), {"z": z, "images": gallery.upright(z)}, None


def traversals(gallery: Gallery, cfg: DictConfig, shown: Shown | None) -> Made:
    dims = None if cfg.dims is None else list(cfg.dims)
    figure, z, images = gallery.traversals(dims)
    return figure, {"z": z, "images": images}, None


def samples(gallery: Gallery, cfg: DictConfig, shown: Shown | None) -> Made:
    z = gallery.sampled_z()
    figure = gallery.samples(shown.batch["image"] if shown else None)
    return figure, {"z": z, "images": gallery.upright(z)}, None


def interpolations(gallery: Gallery, cfg: DictConfig, shown: Shown | None) -> Made:
    assert shown is not None
    if cfg.pairs is not None:
        pairs = [list(pair) if isinstance(pair, ListConfig) else pair for pair in cfg.pairs]
        if not pairs or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise ValueError(f"pairs: expected pairs of indices such as [[3, 8]], got {pairs}")
        flat = [index for pair in pairs for index in pair]
        batch, inferred = shown.read(shown.rows(flat, "pairs"))
        images = batch["image"].unflatten(0, (-1, 2))
        z = inferred.latents.z.unflatten(0, (-1, 2))
    else:
        count = min(PAIRS, len(shown.inferred) // 2)
        if not count:
            raise ValueError("interpolations: expected at least two images")
        # The first with one from the other half: neighbours are often of one kind.
        first, second = slice(0, count), slice(count, 2 * count)
        images = torch.stack((shown.batch["image"][first], shown.batch["image"][second]), 1)
        z = shown.inferred.latents.z
        z = torch.stack((z[first], z[second]), 1)
    figure = gallery.interpolations(images, z)
    frames = gallery.path(z, cfg.frames)
    return figure, {"ends": images, "z": z, "images": frames}, frames


def pose_removed(gallery: Gallery, cfg: DictConfig, shown: Shown | None) -> Made:
    assert shown is not None
    image, latents = shown.batch["image"], shown.inferred.latents
    figure, aligned, generated = gallery.pose_removed(image, latents, shown.names())
    arrays = {"index": shown.inferred.index, "inputs": image}
    return figure, arrays | {"aligned": aligned, "generated": generated}, None


def rotations(gallery: Gallery, cfg: DictConfig, shown: Shown | None) -> Made:
    assert shown is not None
    z = shown.inferred.latents.z[:PAIRS]
    figure, _ = gallery.rotations(z)
    _, frames = gallery.rotations(z, cfg.frames)
    return figure, {"z": z, "images": frames}, frames


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
