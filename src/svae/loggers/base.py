"""What every dashboard shows beside the curves that Lightning sends to it."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from pytorch_lightning.loggers.logger import Logger
from torch import Tensor

__all__ = ["STEP", "Dashboard", "plain_columns", "thumbnails"]

#: The horizontal axis of every curve: optimisation steps.
STEP = "trainer/global_step"

#: The longer side of a thumbnail, in pixels. 2000 of them still make a picture that browsers take.
THUMBNAIL = 96


class Dashboard(Logger):
    """A Lightning logger that takes figures, latents, checkpoints and final values as well.

    Lightning calls `log_metrics`, and `log_hyperparams` gets the resolved config as nested plain
    containers. What is logged belongs to the step of the metrics that were logged last. Only the
    first process of a distributed training logs; the others may call everything, without effect.
    """

    @abstractmethod
    def log_figure(self, name: str, path: Path) -> None:
        """Show a picture as `figures/<name>`.

        Arguments:
            name: The name of the figure, without a suffix.
            path: A PNG or GIF file.
        """

    @abstractmethod
    def log_latents(
        self, columns: Mapping[str, Sequence[Any] | np.ndarray], images: Tensor | None
    ) -> None:
        """Show a table of what was inferred, with one row per image.

        Arguments:
            columns: N values each, such as `index`, `label`, `z0`, `theta_deg`, `shift_x_px`.
            images: (N, C, H, W), C 1 or 3, within [0, 1]; None for a table without thumbnails.
        """

    @abstractmethod
    def log_checkpoints(self, paths: Mapping[str, Path]) -> None:
        """Keep checkpoints.

        Arguments:
            paths: The file of each alias, such as `best` and `last`.
        """

    @abstractmethod
    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """Set the values that stand for the run when runs are compared, named `split/name`."""

    @abstractmethod
    def close(self, exit_code: int = 0) -> None:
        """Finish, and tell in the log where the run is to be seen. Nothing is logged after it.

        Arguments:
            exit_code: 0 for a run that came to its end.
        """


def plain_columns(columns: Mapping[str, Sequence[Any] | np.ndarray]) -> dict[str, list[Any]]:
    """The columns of a table as lists of Python's own numbers and strings."""
    return {name: np.asarray(column).tolist() for name, column in columns.items()}


def thumbnails(images: Tensor) -> np.ndarray:
    """Images (N, C, H, W), C 1 or 3, as bytes (N, h, w, C), large ones made smaller."""
    images = images.detach().cpu().float().clamp(0, 1)
    height, width = images.shape[-2:]
    scale = THUMBNAIL / max(height, width)
    if scale < 1:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        images = F.interpolate(images, size, mode="area")
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
