"""The figures of a run, drawn from the tested model."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from svae.checks import at_least
from svae.figures import manifold_figure, manifold_z, reconstruction_figure
from svae.geometry import pixel_size
from svae.latents import Latents
from svae.module import VAEModule

__all__ = ["Figures"]


class Figures(Callback):
    """Draws `reconstructions.png` and `manifold.png` at the end of the test.

    Arguments:
        folder: Where the figures go.
        examples: How many test images are shown.
        manifold_side: How many values of each component of z the manifold shows.
    """

    def __init__(self, folder: str, examples: int = 12, manifold_side: int = 16) -> None:
        self.folder = Path(folder)
        self.examples = at_least("examples", examples, 1)
        if examples > 12:
            raise ValueError(f"examples: expected at most 12, got {examples}")
        self.side = at_least("manifold_side", manifold_side, 2)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, VAEModule)
        if not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        model = pl_module.model
        # Grey and RGB are drawn as they are; of any other number of channels, the first.
        shown = slice(None) if model.image_shape[0] in (1, 3) else slice(1)
        splits = trainer.datamodule.splits  # type: ignore[attr-defined]
        images = splits["test"]["image"][: self.examples]
        latents = model.encode(images)
        upright = model.decode(latents.without_pose())
        figure = reconstruction_figure(
            images[:, shown],
            model.decode(latents)[:, shown].cpu(),
            upright[:, shown].cpu(),
            torch.rad2deg(latents.theta).cpu() if "theta" in model.priors else None,
            (latents.shift / pixel_size(*model.image_shape[1:])).cpu()
            if "shift" in model.priors
            else None,
        )
        figure.savefig(self.folder / "reconstructions.png")
        if model.z_dim:
            z = manifold_z(model.z_dim, self.side)
            nowhere = Latents(z, torch.zeros(len(z)), torch.zeros(len(z), 2))
            figure = manifold_figure(model.decode(nowhere)[:, shown].cpu(), self.side)
            figure.savefig(self.folder / "manifold.png")
