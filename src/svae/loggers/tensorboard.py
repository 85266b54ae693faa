"""TensorBoard: event files in the run directory."""

import importlib.util
import logging
import re
import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from svae.loggers.base import Dashboard, plain_columns, thumbnails

__all__ = ["TensorBoardLogger"]

log = logging.getLogger(__name__)


class TensorBoardLogger(Dashboard):
    """Logs to TensorBoard: curves, figures, the latents in the projector, the config.

    The final values are scalars named `summary/<split>/<name>`; with the config they make the
    table under HPARAMS, where the runs of a sweep are compared.

    Arguments:
        save_dir: The folder of the event files.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        if importlib.util.find_spec("tensorboard") is None:
            raise ModuleNotFoundError(
                "tensorboard is not installed: pip install 'svae[tensorboard]'"
            )
        self._save_dir = save_dir
        self._writer: Any = None
        self._config: dict[str, Any] = {}
        self._step = 0

    @property
    def name(self) -> str:
        return "tensorboard"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return self._save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `SummaryWriter`, made at the first use."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._save_dir)
        return self._writer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._step = self._step if step is None else step
        for name, value in metrics.items():
            self.experiment.add_scalar(name, value, self._step)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace) -> None:
        self._config |= vars(params) if isinstance(params, Namespace) else params
        text = yaml.safe_dump(self._config, sort_keys=False)
        self.experiment.add_text("config", f"```yaml\n{text}```")

    @rank_zero_only
    def log_figure(self, name: str, path: Path) -> None:
        from torch.utils.tensorboard.summary import Summary

        # The file as it is: TensorBoard shows an animation only if it is not drawn anew.
        with Image.open(path) as picture:
            width, height = picture.size
        content = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes()
        )
        self._add(Summary(value=[Summary.Value(tag=f"figures/{name}", image=content)]))

    @rank_zero_only
    def log_latents(
        self, columns: Mapping[str, Sequence[Any] | np.ndarray], images: Tensor | None
    ) -> None:
        table = plain_columns(columns)
        z = [table.pop(name) for name in columns if re.fullmatch(r"z\d+", name)]
        if not z:
            return  # a model without content has nothing to project
        labels: list[Any] = [
            [re.sub(r"\s", " ", str(value)) for value in row]
            for row in zip(*table.values(), strict=True)
        ]
        header = list(table)
        if len(header) == 1:  # the projector takes the name of a lone column for a value
            labels, header = [row[0] for row in labels], []
        sprites = None
        if images is not None:
            # Square ones: the projector shows others distorted.
            shown = torch.from_numpy(thumbnails(images)).permute(0, 3, 1, 2).float() / 255
            side = max(shown.shape[-2:])
            missing = [side - shown.shape[-1], side - shown.shape[-2]]
            before = [size // 2 for size in missing]
            padding = [before[0], missing[0] - before[0], before[1], missing[1] - before[1]]
            sprites = torch.nn.functional.pad(shown, padding).expand(-1, 3, -1, -1)
        self.experiment.add_embedding(
            torch.tensor(z).T,
            metadata=labels or None,
            metadata_header=header or None,
            label_img=sprites,
            global_step=self._step,
            tag="latents",
        )

    @rank_zero_only
    def log_checkpoints(self, paths: Mapping[str, Path]) -> None:
        """Nothing: TensorBoard keeps no files."""

    @rank_zero_only
    def log_summary(self, metrics: Mapping[str, float]) -> None:
        from torch.utils.tensorboard.summary import hparams

        named = {f"summary/{name}": value for name, value in metrics.items()}
        for name, value in named.items():
            self.experiment.add_scalar(name, value, self._step)
        for part in hparams(flat(self._config), named):
            self._add(part)

    def finalize(self, status: str) -> None:
        if self._writer is not None:
            self._writer.flush()

    @rank_zero_only
    def close(self, exit_code: int = 0) -> None:
        if self._writer is not None:
            self._writer.close()
            log.info("TensorBoard: tensorboard --logdir %s", shlex.quote(self._save_dir))

    def _add(self, summary: Any) -> None:
        # The writer's methods cover neither encoded pictures nor parameters without a sub-folder.
        self.experiment.file_writer.add_summary(summary, self._step)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | bool | str]:
    """Nested settings as `{"model.z_dim": 2}`; what is neither number nor word is spelled out."""
    pairs: dict[str, int | float | bool | str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            pairs[f"{prefix}{key}"] = value if isinstance(value, int | float) else str(value)
    return pairs
