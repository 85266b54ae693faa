"""`python -m svae.encode run=... dataset=...`: the latents of every image, as a table."""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from svae.checks import at_least, one_of
from svae.command import chosen, command, given
from svae.datasets import ImageDataModule
from svae.datasets.base import SPLITS, Batch, ImageSource
from svae.errors import UserError, one_line, told_in_one_line
from svae.figures import latent_figure
from svae.gallery import Gallery
from svae.inferred import Inferred, infer_batch
from svae.latents import Latents
from svae.model import SpatialVAE
from svae.numbers import significant
from svae.particle_outputs import ParticleOutputs
from svae.run import images_to_encode, load, resolve_hardware, resolve_seed
from svae.tables import latent_columns, write_csv, write_npz

__all__ = ["encode", "main"]

log = logging.getLogger(__name__)

#: The classes of particles, where nobody chooses their number.
MANY = 10


def encode(cfg: DictConfig) -> None:
    """Write `latents.csv`, `latents.npz` and figures of what `cfg.run` infers from images."""
    with told_in_one_line():
        one_of("accelerator", cfg.accelerator, ("auto", "cpu", "gpu"))
        one_of("precision", cfg.precision, ("auto", "32-true", "bf16-mixed"))
        resolve_hardware(cfg, "accelerator=cpu")
        resolve_seed(cfg)
        at_least("batch_size", cfg.batch_size, 1)
        model = load(cfg.run, cfg.checkpoint, **chosen(cfg.model))
        model.to("cuda" if cfg.accelerator == "gpu" else "cpu")
        data, images = images_to_encode(cfg, given("dataset"))
        gallery = Gallery(model, seed=cfg.seed)
        outputs = particle_outputs(cfg, gallery, data)
    inferred, std, split = encode_all(model, data, images, cfg)

    folder = Path(cfg.output_dir)
    columns = latent_columns(
        inferred,
        list(model.priors),
        gallery.pixel_size,
        uncertainty=std,
        file_names=data.file_names,
        label_names=data.label_names,
        # Other images than the run's own belong to none of its splits.
        split=None if split is None or cfg.dataset else [SPLITS[i] for i in split.tolist()],
    )
    groups = outputs.groups(inferred.latents.z, cfg.seed) if outputs else None
    if groups is not None:
        columns["class"] = groups.classes.numpy() + 1
    with told_in_one_line():  # a full disk, for one
        write_csv(folder / "latents.csv", columns)
        write_npz(folder / "latents.npz", columns)
    (folder / "figures").mkdir(exist_ok=True)
    if model.z_dim and len(inferred) > 1:
        figure = latent_figure(inferred.latents.z, inferred.label, data.label_names)
        figure.savefig(folder / "figures" / "latents.png")
    if (pose := gallery.pose(inferred)) is not None:
        pose[1].savefig(folder / "figures" / f"{pose[0]}.png")
    mean = inferred.log_likelihood.double().mean().item()
    log.info("%d images encoded, mean log-likelihood %s nats", len(inferred), significant(mean, 4))
    log.info("latents: %s and latents.npz, figures beside them", folder / "latents.csv")
    if outputs is not None:
        with told_in_one_line():

            def again() -> Iterator[Batch]:
                return batches(images, cfg.batch_size, cfg.progress_bar)

            outputs.write(folder, inferred, std, images, again, groups)


def particle_outputs(
    cfg: DictConfig, gallery: Gallery, data: ImageDataModule
) -> ParticleOutputs | None:
    """What is written of particles; None where the images are no particles and nobody asks."""
    particles = getattr(data, "particles", None)
    classes = cfg.classes
    if classes is None:
        classes = 0 if particles is None else MANY
    if particles is None and not classes and not cfg.aligned:
        return None
    return ParticleOutputs(
        gallery,
        particles,
        getattr(data, "pixel_size", None),
        classes,
        cfg.aligned,
        cfg.frames,
        cfg.averages_snr,
    )


@torch.no_grad()
def encode_all(
    model: SpatialVAE, data: ImageDataModule, images: ImageSource, cfg: DictConfig
) -> tuple[Inferred, Latents, Tensor | None]:
    """What is inferred from all images, its standard deviations, and the images' splits.

    Raises:
        UserError: An image that cannot be read or that the likelihood does not describe.
    """
    found: list[Inferred] = []
    stds: list[Latents] = []
    splits: list[Tensor] = []
    device = model.grid.device.type
    half = cfg.precision == "bf16-mixed"
    for batch in batches(images, cfg.batch_size, cfg.progress_bar):
        try:
            model.likelihood.check(batch["image"])
        except ValueError as error:
            raise UserError(f"{called(data, batch)}: {one_line(error)}") from error
        with torch.autocast(device, torch.bfloat16, enabled=half):
            inferred, std = infer_batch(model, batch)
        if not inferred.latents.isfinite():
            raise UserError(f"{called(data, batch)}: the model infers NaN or infinity")
        found.append(inferred)
        stds.append(std)
        if "split" in batch:
            splits.append(batch["split"])
    parts = [one.tensors() for one in found]
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return (
        Inferred.from_tensors(tensors),
        Latents.cat(stds),
        torch.cat(splits) if splits else None,
    )


def batches(images: ImageSource, size: int, progress_bar: bool) -> Iterator[Batch]:
    """All images in order, a batch at a time, so that they need not fit into memory."""
    count = len(images)
    with tqdm(total=count, unit=" images", disable=not progress_bar) as bar:
        for rows in torch.arange(count).split(size):
            try:
                batch = images[rows]
            except (ValueError, OSError) as error:
                raise UserError(one_line(error)) from error
            yield batch
            bar.update(len(rows))


def called(data: ImageDataModule, batch: Batch) -> str:
    """Which images a batch holds, for messages."""
    first, last = batch["index"][0].item(), batch["index"][-1].item()
    if data.file_names is None:
        return f"images {first} to {last}"
    return f"{data.file_names[int(first)]} to {data.file_names[int(last)]}"


main = command("encode")(encode)

if __name__ == "__main__":
    main()
