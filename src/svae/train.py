"""`python -m svae.train`: train a model, test it once, and leave a run directory behind."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from svae.callbacks import BestCheckpoint
from svae.command import command
from svae.datasets import ImageDataModule
from svae.errors import told_in_one_line
from svae.files import write_atomic, write_metrics
from svae.instantiate import instantiate
from svae.module import VAEModule
from svae.run import build_module, load_weights, resolve_hardware

__all__ = ["main", "train"]

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float:
    """Train and test what a composed config describes.

    Returns:
        The best `val/elbo`, for sweepers to maximise.
    """
    with told_in_one_line():
        datamodule, module, trainer, best = prepare(cfg)
    trainer.fit(module, datamodule, ckpt_path=cfg.ckpt_path, weights_only=True)
    metrics = {k: v.item() for k, v in trainer.callback_metrics.items() if "/" in k}
    if best.best_model_score is not None:
        metrics["val/elbo"] = best.best_model_score.item()

    if cfg.test and not trainer.interrupted:
        # Where no epoch was validated, nothing was chosen: the weights are the last.
        chosen = best.best_model_path or None
        trainer.test(module, datamodule, chosen, verbose=False, weights_only=True)
        metrics |= {k: v.item() for k, v in trainer.callback_metrics.items()}

    if trainer.is_global_zero:
        write_metrics(Path(cfg.output_dir) / "metrics.json", metrics)
        summary = [f"{k} {metrics[k]:.4g}" for k in SUMMARY if k in metrics]
        log.info(", ".join(summary))
        log.info("run directory: %s", cfg.output_dir)
    return metrics.get("val/elbo", float("nan"))


#: What the last line of a run tells, where it was measured.
SUMMARY = (
    "val/elbo",
    "test/elbo",
    "test/iwae_bound",
    "test/theta_circular_correlation",
    "test/shift_x_correlation",
    "test/shift_y_correlation",
    "test/clustering_accuracy",
)


def prepare(
    cfg: DictConfig,
) -> tuple[ImageDataModule, VAEModule, pl.Trainer, BestCheckpoint]:
    """Everything that can go wrong before training, and `config.yaml`."""
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule: ImageDataModule = instantiate(cfg.dataset, "dataset")
    fetch = rank_zero_only(datamodule.prepare_data)
    fetch()
    datamodule.setup()

    # What is decided only now is part of the run's config as well.
    with open_dict(cfg):
        cfg.model.image_shape = list(datamodule.image_shape)
        resolve_hardware(cfg.trainer)
    save_config(cfg)

    module = build_module(cfg, datamodule)
    for split in datamodule.splits.values():
        module.model.likelihood.check(split["image"])
    if cfg.ckpt_path is not None:
        load_weights(module, cfg.ckpt_path)
    callbacks = list(instantiate(cfg.callbacks, "callbacks").values())
    best = next(c for c in callbacks if isinstance(c, BestCheckpoint))
    trainer: pl.Trainer = instantiate(cfg.trainer, "trainer", callbacks=callbacks, logger=False)
    return datamodule, module, trainer, best


@rank_zero_only
def save_config(cfg: DictConfig) -> None:
    """`config.yaml` in the run directory: resolved, and enough to rebuild everything."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    write_atomic(Path(cfg.output_dir) / "config.yaml", OmegaConf.to_yaml(resolved))


main = command("train")(train)

if __name__ == "__main__":
    main()
