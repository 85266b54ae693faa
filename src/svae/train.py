"""`python -m svae.train`: train a model, test it once, and leave a run directory behind."""

import errno
import logging
import math
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.trainer.states import TrainerStatus
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from svae.callbacks import AtomicCheckpointIO, BestCheckpoint, Figures
from svae.command import command
from svae.datasets import ImageDataModule
from svae.encoders import GroupConv
from svae.errors import UserError, told_in_one_line
from svae.files import write_atomic, write_metrics
from svae.hardware import environment, memory_at_hand
from svae.instantiate import instantiate
from svae.loggers import Dashboard
from svae.module import VAEModule
from svae.report import write_report
from svae.run import (
    build_module,
    first_difference,
    in_short,
    load_weights,
    prepared_data,
    read_config,
    resolve_hardware,
    resolve_likelihood,
)

__all__ = ["main", "train"]

log = logging.getLogger(__name__)

#: A run has these in common with the one that it goes on with.
ALIKE = ("seed", "dataset", "model", "prior", "optimizer", "scheduler")


class Job(NamedTuple):
    """What a training consists of."""

    data: ImageDataModule
    module: VAEModule
    trainer: pl.Trainer
    best: BestCheckpoint | None
    figures: Figures | None


def train(cfg: DictConfig) -> float:
    """Train and test what a composed config describes.

    Returns:
        The best `val/elbo`, for sweepers to maximise; NaN where no epoch was validated.

    Raises:
        SystemExit: The training was interrupted from the keyboard, with status 130, after what
            there was of it was written.
    """
    with told_in_one_line():
        job = prepare(cfg)
    dashboards = [one for one in job.trainer.loggers if isinstance(one, Dashboard)]
    status = 1
    try:
        metrics, interrupted = fit_and_test(cfg, job)
        for dashboard in dashboards:
            checkpoints = Path(cfg.output_dir, "checkpoints")
            kept = {name: checkpoints / f"{name}.ckpt" for name in ("best", "last")}
            dashboard.log_checkpoints({k: path for k, path in kept.items() if path.is_file()})
            dashboard.log_summary(metrics)
        status = 130 if interrupted else 0
    finally:
        for dashboard in dashboards:
            dashboard.close(status)
    if job.trainer.is_global_zero:
        write_report(cfg.output_dir)
        log.info("%s", in_short(metrics))
        log.info("run directory: %s (open report.html)", cfg.output_dir)
    if interrupted:
        last = Path(cfg.output_dir, "checkpoints", "last.ckpt")
        if last.is_file() and job.trainer.is_global_zero:
            log.info("interrupted; the same command with ckpt_path=%s goes on", last)
        sys.exit(130)
    return metrics.get("val/elbo", math.nan)


def fit_and_test(cfg: DictConfig, job: Job) -> tuple[dict[str, float], bool]:
    """The metrics of a training and its test, and whether it was interrupted."""
    data, module, trainer, best, figures = job
    metrics: dict[str, float] = {}
    try:
        interrupted = was_interrupted(
            trainer,
            lambda: trainer.fit(module, data, ckpt_path=cfg.ckpt_path, weights_only=True),
        )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        there = [p.name for p in Path(cfg.output_dir, "checkpoints").glob("*.ckpt")]
        raise UserError(
            f"{error.filename or cfg.output_dir}: {error.strerror}; what was saved before is "
            f"whole ({', '.join(sorted(there)) or 'no checkpoint yet'})"
        ) from error
    # Before the test, which may fail.
    metrics |= numbers(trainer.callback_metrics) | (best.best_metrics if best else {})
    save_metrics(cfg, metrics)
    if cfg.test and not interrupted:
        # Where no epoch was validated, nothing was chosen: the weights are the last.
        chosen = (best.best_model_path if best else "") or None
        interrupted = was_interrupted(
            trainer,
            lambda: trainer.test(module, data, chosen, verbose=False, weights_only=True),
        )
        if not interrupted:
            metrics |= numbers(trainer.callback_metrics)
            save_metrics(cfg, metrics)
            return metrics, False
    if figures:
        figures.draw(trainer, module, "val", complete=True)
    return metrics, interrupted


def was_interrupted(trainer: pl.Trainer, work: Callable[[], Any]) -> bool:
    """Do some work of the trainer; whether Ctrl-C ended it."""
    try:
        work()
    except SystemExit:
        # Lightning's answer to Ctrl-C, after which it ignores further ones.
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return True
    return False


def prepare(cfg: DictConfig) -> Job:
    """Everything that can go wrong before training, and `config.yaml`."""
    check_top_level(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = prepared_data(cfg)

    # What is decided only now is part of the run's config as well.
    with open_dict(cfg):
        cfg.dataset.update(data.found())
        cfg.model.image_shape = list(data.image_shape)
        resolve_likelihood(cfg.model, [split["image"] for split in data.splits.values()])
        resolve_hardware(cfg.trainer)
        cfg.environment = environment()
        if cfg.ckpt_path == "last":
            cfg.ckpt_path = str(newest_checkpoint(cfg))
    module = build_module(cfg, data)
    for split in data.splits.values():
        module.model.likelihood.check(split["image"])
    check_optimisation(module, cfg.trainer)
    if cfg.ckpt_path is not None:
        load_weights(module.model, cfg.ckpt_path)
        check_resumed(cfg)

    callbacks = list(instantiate(cfg.callbacks, "callbacks").values())
    if not cfg.trainer.enable_progress_bar:
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
    loggers = list(instantiate(cfg.logger, "logger").values())
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        "trainer",
        callbacks=callbacks,
        logger=loggers or False,
        plugins=[AtomicCheckpointIO()],
    )
    images = min(cfg.dataset.batch_size, len(data.splits["train"]["index"]))
    check_memory(module, cfg.trainer, images / trainer.world_size)
    save_config(cfg)
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    best = next((c for c in callbacks if isinstance(c, BestCheckpoint)), None)
    figures = next((c for c in callbacks if isinstance(c, Figures)), None)
    return Job(data, module, trainer, best, figures)


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


def check_memory(module: VAEModule, trainer: DictConfig, images: float) -> None:
    """Raise ValueError if the encoder's lattice does not fit into memory, before it is tried.

    Arguments:
        module: What is trained.
        trainer: The trainer's config.
        images: How many images a process encodes in a step.
    """
    encoder = module.model.encoder
    if not isinstance(encoder, GroupConv):
        return
    # What the layers keep for the backward pass; what that makes of it is a chunk at a time.
    needed = encoder.numbers_per_image * images * (2 if "16" in str(trainer.precision) else 4)
    available = memory_at_hand(trainer.accelerator)
    if needed > available:
        height, width = encoder.lattice.shape
        raise ValueError(
            f"model.encoder: {height}x{width} positions in {encoder.group_order} rotations with "
            f"{encoder.out_features} channels keep about {needed / 2**30:.1f} GB in a training "
            f"step, more than the {available / 2**30:.1f} GB here; use a larger "
            "model.encoder.stride, fewer model.encoder.channels or rotations, or a smaller "
            "dataset.batch_size"
        )


def check_resumed(cfg: DictConfig) -> None:
    """Raise ValueError if the run to go on with was another than the config describes.

    A checkpoint brings the state of its optimiser and schedule, so that other settings of theirs
    would silently do nothing; other data would mix the splits.
    """
    before = Path(cfg.ckpt_path).resolve().parents[1]
    if (before / "config.yaml").is_file() and (found := other_setting(before, cfg)):
        name, old, new = found
        raise ValueError(
            f"{name}: expected the value of the run that ckpt_path belongs to ({old!r}), "
            f"got {new!r}"
        )


def newest_checkpoint(cfg: DictConfig) -> Path:
    """The last checkpoint of the newest run, beside this one, that has the same settings.

    Raises:
        ValueError: There is none.
    """
    own = Path(cfg.output_dir)
    siblings = [own.parent, *own.parent.parent.glob("multirun/*")]
    if (own.parent / "multirun.yaml").is_file():  # a job of a sweep: the sweeps and the runs
        siblings = [*own.parent.parent.iterdir(), own.parent.parent.parent / "train"]
    paths = {path for folder in siblings for path in folder.glob("*/checkpoints/last.ckpt")}
    newest_first = sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
    nearest = ""
    for path in newest_first:
        run = path.parents[1]
        if run == own or not (run / "config.yaml").is_file():
            continue
        found = other_setting(run, cfg)
        if found is None:
            log.info("going on with %s", path)
            return path
        if not nearest:
            name, old, new = found
            nearest = f"; the newest, {run}, has {name}={old!r} and not {new!r}"
    raise ValueError(
        f"ckpt_path: expected a run with these settings for `last`, and none of the "
        f"{len(paths)} in {own.parent} is one{nearest}"
    )


def other_setting(run: Path, cfg: DictConfig) -> tuple[str, Any, Any] | None:
    """The first setting in which another run differs from this one: its name and both values."""
    old: Any = OmegaConf.to_container(read_config(run), resolve=True)
    new: Any = OmegaConf.to_container(cfg, resolve=True)
    return first_difference(old, new, ALIKE)


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
