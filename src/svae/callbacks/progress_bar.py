"""What the terminal shows during training."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

__all__ = ["ProgressBar"]


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, with the objective of the newest batch, in nats per image.

    It is read when the bar is drawn. A module that logs it to the bar would have it read twice in
    every step, even where no bar is shown, and a processor that reads a number waits for the GPU.
    """

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        shown = super().get_metrics(trainer, pl_module)
        newest = getattr(pl_module, "newest_objective", None)
        return shown if newest is None else {**shown, "objective": newest.mean().item()}
