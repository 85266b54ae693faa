"""`python -m svae.train`: train a model, test it once, and leave a run directory behind."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from svae.callbacks import BestCheckpoint
from svae.command import command
from svae.datasets import ImageDataModule
from svae.errors import told_in_one_line
from svae.files import write_atomic, write_metrics
from svae.instantiate import instantiate
from svae.module import VAEModule
from svae.run import build_module, load_weights, prepared_data, read_config, resolve_hardware

__all__ = ["main", "train"]

log = logging.getLogger(__name__)

#: What the last lines of a run tell, where it was measured.
SUMMARY = (
    "val/elbo",
    "test/elbo",
    "test/iwae_bound",
    "test/theta_circular_correlation",
    "test/theta_circular_correlation_plain",
    "test/shift_x_correlation",
    "test/shift_y_correlation",
    "test/clustering_accuracy",
)


def train(cfg: DictConfig) -> float:
    """Train and test what a composed config describes.

    Returns:
        The best `val/elbo`, for sweepers to maximise; NaN where no epoch was validated.
    """
    with told_in_one_line():
        datamodule, module, trainer, best = prepare(cfg)
    metrics: dict[str, float] = {}
    try:
        trainer.fit(module, datamodule, ckpt_path=cfg.ckpt_path, weights_only=True)
    finally:
        # Also where training was interrupted; and before the test, which may fail.
        metrics |= numbers(trainer.callback_metrics) | (best.best_metrics if best else {})
        save_metrics(cfg, metrics)
    if cfg.test:
        # Where no epoch was validated, nothing was chosen: the weights are the last.
        chosen = (best.best_model_path if best else "") or None
        trainer.test(module, datamodule, chosen, verbose=False, weights_only=True)
        metrics |= numbers(trainer.callback_metrics)
        save_metrics(cfg, metrics)
    if trainer.is_global_zero:
        known = [f"{name} {metrics[name]:.4g}" for name in SUMMARY if name in metrics]
        log.info("%s", ", ".join(known) or "nothing was validated or tested")
        log.info("run directory: %s", cfg.output_dir)
    return metrics.get("val/elbo", math.nan)


def prepare(
    cfg: DictConfig,
) -> tuple[ImageDataModule, VAEModule, pl.Trainer, BestCheckpoint | None]:
    """Everything that can go wrong before training, and `config.yaml`."""
    check_top_level(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = prepared_data(cfg)

    # What is decided only now is part of the run's config as well.
    with open_dict(cfg):
        cfg.model.image_shape = list(datamodule.image_shape)
        resolve_hardware(cfg.trainer)
    module = build_module(cfg, datamodule)
    for split in datamodule.splits.values():
        module.model.likelihood.check(split["image"])
    check_optimisation(module, cfg.trainer)
    if cfg.ckpt_path is not None:
        load_weights(module.model, cfg.ckpt_path)
        check_resumed(cfg)

    callbacks = list(instantiate(cfg.callbacks, "callbacks").values())
    if not cfg.trainer.enable_progress_bar:
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
    trainer: pl.Trainer = instantiate(cfg.trainer, "trainer", callbacks=callbacks, logger=False)
    save_config(cfg)
    best = next((c for c in callbacks if isinstance(c, BestCheckpoint)), None)
    return datamodule, module, trainer, best


def check_top_level(cfg: DictConfig) -> None:
    """The values that belong to no object, and those that Lightning would trip over later."""
    for name, kind in (("seed", int), ("test", bool)):
        if type(cfg[name]) is not kind:
            raise ValueError(f"{name}: expected {kind.__name__}, got {cfg[name]!r}")
    if cfg.trainer.limit_val_batches == 0:
        raise ValueError(
            "trainer.limit_val_batches: expected more than 0, because the best checkpoint and "
            "early stopping are decided by validation"
        )


def check_optimisation(module: VAEModule, trainer: DictConfig) -> None:
    """Try optimiser and schedule on nothing: Lightning makes them only when training starts."""
    endless = trainer.max_epochs in (None, -1) and trainer.max_steps == -1
    optimizer = module.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    module.make_scheduler(optimizer, math.inf if endless else 1000)


def check_resumed(cfg: DictConfig) -> None:
    """Raise ValueError if the run to go on with was another than the config describes.

    A checkpoint brings the state of its optimiser and schedule, so that other settings of theirs
    would silently do nothing; other data would mix the splits.
    """
    before = Path(cfg.ckpt_path).resolve().parents[1]
    if not (before / "config.yaml").is_file():
        return
    old = OmegaConf.to_container(read_config(before), resolve=True)
    new = OmegaConf.to_container(cfg, resolve=True)
    for section in ("seed", "dataset", "model", "prior", "optimizer", "scheduler"):
        name = first_difference(old, new, section)
        if name and name not in ("dataset.data_dir", "dataset.eval_batch_size"):
            raise ValueError(
                f"{name}: expected the value of the run that ckpt_path belongs to "
                f"({OmegaConf.select(OmegaConf.create(old), name)!r}), got "
                f"{OmegaConf.select(OmegaConf.create(new), name)!r}"
            )


def first_difference(old: Any, new: Any, where: str) -> str | None:
    """The name of the first value below `where` that two plain configs do not share."""
    key = where.rpartition(".")[2]
    a, b = old.get(key), new.get(key)
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return None if a == b else where
    names = (first_difference(a, b, f"{where}.{name}") for name in sorted(a.keys() | b.keys()))
    return next((name for name in names if name), None)


def numbers(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """The metrics named `split/name`, as plain numbers."""
    return {name: value.item() for name, value in metrics.items() if "/" in name}


@rank_zero_only
def save_metrics(cfg: DictConfig, metrics: Mapping[str, float]) -> None:
    """`metrics.json` in the run directory."""
    write_metrics(Path(cfg.output_dir) / "metrics.json", metrics)


@rank_zero_only
def save_config(cfg: DictConfig) -> None:
    """`config.yaml` in the run directory: resolved, and enough to rebuild everything."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    write_atomic(Path(cfg.output_dir) / "config.yaml", OmegaConf.to_yaml(resolved))


main = command("train")(train)

if __name__ == "__main__":
    main()
