"""The figures of a run, drawn while it trains and from the tested model."""

import csv
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from svae.callbacks.metrics_csv import MetricsCSV
from svae.checks import at_least
from svae.ctf import CTF
from svae.datasets import ImageDataModule
from svae.datasets.base import Batch, ImageSource
from svae.errors import one_line
from svae.figures import curves_figure
from svae.files import write_atomic
from svae.gallery import Gallery, couples, spread
from svae.inferred import Inferred, infer_batch
from svae.loggers import Dashboard
from svae.module import VAEModule
from svae.particle_outputs import ParticleOutputs
from svae.tables import latent_columns

__all__ = ["Figures"]

log = logging.getLogger(__name__)

# Rows of a dashboard's latent table: more make its page slow.
TABLE_ROWS = 2000
# Which of the clusters are drawn: the paper's, and those of the images themselves.
CLUSTERS = ("", "_spectral")
# Particles that averages are of, and how many are read at once.
AVERAGED, AT_ONCE = 5000, 250


class Figures(Callback):
    """Draws into one folder, where newer figures take the place of older ones, and for dashboards.

    Every few epochs: `reconstructions`, `manifold` (or `traversals`), `latents`, `pose` (or
    `pose_histogram`), `found_pose` and `attention` of the validation split, as far as the model
    has what they show, and `curves`; at the end the same of the test split (of the validation
    split where nothing is tested), with `worst`, `samples`, `interpolations` and `rotations`, and
    with `aligned` and `confusion` where there are clusters to compare with labels, and of
    particles `class_averages`, `slices` and `particles`.

    Arguments:
        folder: Where the figures go.
        every_n_epochs: How often they are drawn during training, if that epoch was validated; 0
            for at the end only.
        examples: How many images are shown.
        manifold_side: How many values of each component of z the manifold shows.
    """

    def __init__(
        self,
        folder: str,
        every_n_epochs: int = 5,
        examples: int = 12,
        manifold_side: int = 16,
    ) -> None:
        self.folder = Path(folder)
        self.every = at_least("every_n_epochs", every_n_epochs, 0)
        self.examples = at_least("examples", examples, 1)
        if examples > 12:
            raise ValueError(f"examples: expected at most 12, got {examples}")
        self.side = at_least("manifold_side", manifold_side, 2)
        self.validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        due = self.every and (trainer.current_epoch + 1) % self.every == 0
        if due and self.validated:
            self.draw(trainer, pl_module, "val", complete=False)
        self.validated = False

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.draw(trainer, pl_module, "test", complete=True)

    def draw(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str, complete: bool
    ) -> None:
        """Draw a model and a split's images, those of the end included if `complete`."""
        assert isinstance(pl_module, VAEModule)
        if not trainer.is_global_zero:
            return
        try:
            self._draw(trainer, pl_module, split, complete)
        except OSError as error:
            # A full disk, for one: a picture is not worth the training.
            log.warning("the figures are not all drawn: %s", one_line(error))

    def _draw(self, trainer: pl.Trainer, pl_module: VAEModule, split: str, complete: bool) -> None:
        dashboards = [one for one in trainer.loggers if isinstance(one, Dashboard)]
        data = trainer.datamodule  # type: ignore[attr-defined]
        figures = self.figures(pl_module, data, split, complete)
        for name, figure in (*figures, *self.curves(trainer)):
            path = self.folder / f"{name}.png"
            content = io.BytesIO()
            figure.savefig(content)
            write_atomic(path, content.getvalue())
            for dashboard in dashboards:
                dashboard.log_figure(name, path)
        if complete and dashboards:
            self.log_table(pl_module, data, split, dashboards)

    def figures(
        self, module: VAEModule, data: ImageDataModule, split: str, complete: bool
    ) -> Iterator[tuple[str, Figure]]:
        """The figures of a model, by name."""
        model = module.model
        gallery = Gallery(model, self.examples, self.side, seed=module.seed)
        source, known = data.sources[split], data.splits[split]
        few = source[spread(known["index"].argsort(), self.examples)]
        # Anew, because what was collected may be of the epoch before an interruption.
        inferred, _ = infer_batch(model, few)
        everyone = inferred if module.inferred is None else module.inferred
        yield from gallery.of_content()
        yield from gallery.of_images(
            few["image"], inferred, everyone, data.label_names, CTF.of(few)
        )
        if not complete or not inferred.latents.isfinite():
            return
        index = everyone.index[everyone.log_likelihood.argsort()[: self.examples]].cpu()
        worst = source[rows_of(known, index)]
        names = data.file_names
        called = [str(i) if names is None else names[i] for i in index.tolist()]
        yield (
            "worst",
            gallery.worst(worst["image"], infer_batch(model, worst)[0], called, CTF.of(worst)),
        )
        clusters = module.clusters or {}
        for suffix in (name for name in CLUSTERS if name in clusters):
            found = everyone, clusters[suffix], data.label_names
            aligned = gallery.aligned(lambda i: source[rows_of(known, i)]["image"], *found)
            yield f"aligned{suffix}", aligned
            yield f"confusion{suffix}", gallery.confusion(*found)
        if getattr(data, "particles", None) is not None:
            yield from averages(gallery, everyone, source, known, module.seed)
        if not model.z_dim:
            return
        yield "samples", gallery.samples(few["image"])[0]
        z = inferred.latents.z
        if model.generator.coordinate_based:
            yield "rotations", gallery.rotations(z)[0]
        if len(pairs := couples(len(z))):
            yield "interpolations", gallery.interpolations(few["image"][pairs], z[pairs])

    def curves(self, trainer: pl.Trainer) -> Iterator[tuple[str, Figure]]:
        """The training curves, once there is something to see."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if not isinstance(callback, MetricsCSV) or not callback.path.is_file():
                continue
            # From the file: a test gives the callback the rows that the best checkpoint had.
            with callback.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            if any(row.get("val/elbo") for row in rows):
                yield "curves", curves_figure(rows)

    def log_table(
        self,
        module: VAEModule,
        data: ImageDataModule,
        split: str,
        dashboards: list[Dashboard],
    ) -> None:
        """A latent table with thumbnails for every dashboard."""
        if module.inferred is None:
            return
        inferred = module.inferred[spread(torch.arange(len(module.inferred)), TABLE_ROWS)]
        gallery = Gallery(module.model)
        columns = latent_columns(
            inferred,
            list(module.model.priors),
            gallery.pixel_size,
            file_names=data.file_names,
            label_names=data.label_names,
        )
        rows = rows_of(data.splits[split], inferred.index.cpu())
        images = gallery.drawn(data.sources[split][rows]["image"])
        low, high = images.min(), images.max()
        if low < 0 or high > 1:
            images = (images - low) / (high - low)
        for dashboard in dashboards:
            dashboard.log_latents(columns, images)


def averages(
    gallery: Gallery, inferred: Inferred, source: ImageSource, known: Batch, seed: int
) -> Iterator[tuple[str, Figure]]:
    """Averages of particles by their content, of as many as take no long time to be read.

    Arguments:
        gallery: Of the model.
        inferred: Of particles of a split.
        source: The images of the split.
        known: What is known of them.
        seed: Of the search for classes.
    """
    channels, height, width = gallery.model.image_shape
    if channels != 1 or height != width:
        return
    outputs = ParticleOutputs(gallery, None, None)
    some = inferred[spread(torch.arange(len(inferred)), AVERAGED)]
    rows = rows_of(known, some.index.cpu())
    if (groups := outputs.groups(some.latents.z, seed)) is None:
        return
    means = outputs.means((source[part] for part in rows.split(AT_ONCE)), some, groups)
    shown = spread(torch.arange(len(rows)), 12)
    yield from outputs.drawn(groups, means, some, source[rows[shown]]["image"], shown)


def rows_of(batch: dict[str, Tensor], index: Tensor) -> Tensor:
    """Where images with the given indices are in a split."""
    known, rows = batch["index"].sort()
    return rows[torch.searchsorted(known, index)]
