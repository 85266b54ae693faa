"""`python -m svae.evaluate run=...`: test a trained model from its run directory alone."""

import logging
from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf, open_dict

from svae.callbacks import Figures
from svae.command import command
from svae.errors import told_in_one_line
from svae.files import write_metrics
from svae.instantiate import instantiate
from svae.report import write_report
from svae.run import (
    build_module,
    checkpoint_path,
    in_short,
    load_weights,
    prepared_data,
    read_config,
    resolve_hardware,
)

__all__ = ["evaluate", "main"]

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Test the model of `cfg.run` as its training did, or with other numbers of samples."""
    with told_in_one_line():
        run = read_config(cfg.run)
        pl.seed_everything(run.seed, workers=True, verbose=False)
        with open_dict(run):
            given = {k: v for k, v in cfg.evaluation.items() if v is not None}
            run.evaluation = OmegaConf.merge(run.evaluation, given)
            # The precision of the training, so that the same numbers come out.
            cfg.trainer.precision = cfg.trainer.precision or run.trainer.precision
        resolve_hardware(cfg.trainer)
        datamodule = prepared_data(run)
        module = build_module(run, datamodule)
        load_weights(module.model, checkpoint_path(cfg.run, cfg.checkpoint))
        callbacks = [Figures(str(Path(cfg.output_dir) / "figures"))]
        trainer: pl.Trainer = instantiate(
            cfg.trainer, "trainer", callbacks=callbacks, logger=False
        )
    trainer.test(module, datamodule, verbose=False)
    metrics = {k: v.item() for k, v in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        write_metrics(Path(cfg.output_dir) / "metrics.json", metrics)
        for name, value in sorted(metrics.items()):
            log.info("%-40s %.6g", name, value)
        write_report(cfg.output_dir)
        log.info("%s", in_short(metrics))
        log.info("written to: %s (open report.html)", cfg.output_dir)
    return metrics


main = command("evaluate")(evaluate)

if __name__ == "__main__":
    main()
