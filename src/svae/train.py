"""`python -m svae.train`: train a model, test it once, and leave a run directory behind."""

import copy
import errno
import logging
import math
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim.lr_scheduler import ReduceLROnPlateau

from svae import distributed
from svae.callbacks import (
    AtomicCheckpointIO,
    BestCheckpoint,
    BetweenSteps,
    Figures,
    Interrupted,
    LastCheckpoint,
    MedianPruning,
    MetricsCSV,
)
from svae.command import command
from svae.curves import newest_values
from svae.datasets import ImageDataModule
from svae.datasets.base import SPLITS
from svae.distributed import ProcessLost, processes
from svae.encoders import GroupConv
from svae.errors import UserError, one_line, told_in_one_line
from svae.files import write_atomic, write_metrics
from svae.finite import NotFinite
from svae.hardware import environment, memory_at_hand
from svae.instantiate import instantiate
from svae.loggers import Dashboard
from svae.module import VAEModule
from svae.report import write_report
from svae.resume import (
    check_epochs,
    check_resumed,
    last_checkpoint,
    newest_checkpoint,
    nothing_to_do,
    record_command,
    refuse_other_settings,
    remove_unfinished_files,
    tell_of_another_length,
)
from svae.run import (
    build_module,
    in_short,
    load_weights,
    prepared_data,
    read_config,
    resolve_hardware,
    resolve_likelihood,
)
from svae.schedules import scheduled
from svae.signals import Signals
from svae.status import Status, read_status, write_status
from svae.trial import try_once

__all__ = ["main", "train"]

log = logging.getLogger(__name__)

#: With fewer steps than that, the user is warned, and told of a number of epochs that makes more.
_FEW_STEPS, _MANY_STEPS = 200, 1000

#: A weight in float32, its gradient, and one moment of an optimiser; Adam has two.
_BYTES_OF_WEIGHT = 12

One = TypeVar("One")


class Job(NamedTuple):
    """What a training consists of."""

    data: ImageDataModule
    module: VAEModule
    trainer: pl.Trainer
    best: BestCheckpoint | None
    figures: Figures | None
    rows: MetricsCSV | None
    ckpt_path: str | None


def train(cfg: DictConfig) -> float:
    """Train and test what a composed config describes.

    Where the output folder holds an unfinished run of the same settings, that run goes on; where
    it holds a finished one, nothing is done.

    Returns:
        The best `val/elbo`, for sweepers to maximise; NaN where no epoch was validated.

    Raises:
        UserError: A mistake in the config, a full disk, or a loss that is not finite.
        SystemExit: The training was asked to end, and what there was of it was written: with
            status 130 from the keyboard, else 128 and the number of the signal.
    """
    signals = Signals()
    composed = copy.deepcopy(cfg)
    with told_in_one_line():
        check_composed()
        data = completed(cfg)
        before = read_status(cfg.output_dir)
        if before is not None:
            refuse_other_settings(cfg.output_dir, cfg)
            if nothing_to_do(cfg.output_dir, before, cfg):
                return before.objective
            remove_unfinished_files(cfg.output_dir)
            record_command(cfg.output_dir, composed)
        job = prepare(cfg, data, signals, last_checkpoint(cfg.output_dir) if before else None)
    with signals:
        metrics, interrupted = carry_out(cfg, job, signals)
    if job.trainer.is_global_zero and (interrupted or signals.received):
        sys.exit(128 + (signals.received or signal.SIGINT))
    return metrics.get("val/elbo", math.nan)


def carry_out(cfg: DictConfig, job: Job, signals: Signals) -> tuple[dict[str, float], bool]:
    """The metrics of a training and its test, and whether it was interrupted; `status.json`."""
    trainer = job.trainer
    dashboards = [one for one in trainer.loggers if isinstance(one, Dashboard)]
    exit_status = 1
    try:
        with saved_before_is_told(cfg):
            failure: NotFinite | None = None
            with processes(cfg, trainer, "svae.train"):
                try:
                    metrics, interrupted = fit_and_test(cfg, job, signals)
                except NotFinite as error:  # of all processes: none of them left the others
                    failure = error
            if failure is not None:
                raise failure
        with only_shown("the dashboard"):
            for dashboard in dashboards:
                checkpoints = Path(cfg.output_dir, "checkpoints")
                kept = {name: checkpoints / f"{name}.ckpt" for name in ("best", "last")}
                dashboard.log_checkpoints({k: path for k, path in kept.items() if path.is_file()})
                dashboard.log_summary(metrics)
        exit_status = 130 if interrupted else 0
    except KeyboardInterrupt:
        metrics, interrupted = {}, True
        save_status(cfg, Status("interrupted", "SIGINT"))
    except BaseException as error:
        save_status(cfg, Status("failed", one_line(error)))
        raise
    finally:
        for dashboard in dashboards:
            dashboard.close(exit_status)
    if trainer.is_global_zero:
        with only_shown("the report"):
            write_report(cfg.output_dir)
        log.info("%s", in_short(metrics))
        log.info("run directory: %s (open report.html)", cfg.output_dir)
        if interrupted:
            log.info("%s", how_to_go_on(cfg))
        else:
            pruned = why_pruned(trainer)
            objective = metrics.get("val/elbo", math.nan)
            save_status(cfg, Status("pruned" if pruned else "finished", pruned, objective))
    return metrics, interrupted


def fit_and_test(cfg: DictConfig, job: Job, signals: Signals) -> tuple[dict[str, float], bool]:
    """The metrics of a training and its test, and whether it was interrupted."""
    data, module, trainer, best, figures, rows, ckpt_path = job
    interrupted = was_interrupted(
        trainer,
        signals,
        lambda: trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True),
    )
    # Before the test, which may fail. A run that had only the test left has its epochs' metrics
    # from the checkpoint.
    metrics = newest_values(rows.rows) if rows else {}
    metrics |= numbers(trainer.callback_metrics) | (best.best_metrics if best else {})
    objective = metrics.get("val/elbo", math.nan)
    save_metrics(cfg, metrics)
    if cfg.test and not interrupted and not why_pruned(trainer):
        # Where no epoch was validated, nothing was chosen: the weights are the last.
        chosen = (best.best_model_path if best else "") or None
        interrupted = was_interrupted(
            trainer,
            signals,
            lambda: trainer.test(module, data, chosen, verbose=False, weights_only=True),
        )
        if not interrupted:
            metrics |= numbers(trainer.callback_metrics)
            save_metrics(cfg, metrics)
            return metrics, False
    if interrupted:
        asked = signals.received or signal.SIGINT
        save_status(cfg, Status("interrupted", asked.name, objective))
        if asked != signal.SIGINT:
            return metrics, True  # whoever sent it waits for seconds only
    if figures:
        figures.draw(trainer, module, "val", complete=True)
    return metrics, interrupted


def why_pruned(trainer: pl.Trainer) -> str:
    """Why a job of a sweep ended early; empty where it did not."""
    pruning = only(MedianPruning, trainer.callbacks)  # type: ignore[attr-defined]
    return pruning.reason if pruning else ""


def was_interrupted(trainer: pl.Trainer, signals: Signals, work: Callable[[], Any]) -> bool:
    """Do some work of the trainer; whether a signal ended it."""
    try:
        work()
    except (Interrupted, SIGTERMException):
        return True
    except SystemExit as error:
        # Lightning's answer to a second Ctrl-C, after which it ignores further ones.
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signals.listen()
        return True
    return False


@contextmanager
def saved_before_is_told(cfg: DictConfig) -> Iterator[None]:
    """What is left after a full disk, or after a loss that is not finite, as a UserError."""
    try:
        yield
    except (NotFinite, ProcessLost) as error:
        raise type(error)(f"{error}; {what_is_left(cfg)}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"{error.filename or cfg.output_dir}: {error.strerror}; {what_is_left(cfg)}"
        ) from error


def what_is_left(cfg: DictConfig) -> str:
    """The checkpoints of a training that broke off."""
    there = sorted(Path(cfg.output_dir, "checkpoints").glob("*.ckpt"))
    if not there:
        return "there is no checkpoint yet"
    names = ", ".join(path.name for path in there)
    return f"what was saved before is whole ({names} in {there[0].parent})"


@contextmanager
def only_shown(what: str) -> Iterator[None]:
    """A failure to write what is only there to be seen costs no training."""
    try:
        yield
    except OSError as error:
        log.warning("%s is not complete: %s", what, one_line(error))


def how_to_go_on(cfg: DictConfig) -> str:
    """What to type after an interruption."""
    folder, kind = Path(cfg.output_dir), "run"
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        folder, kind = Path(HydraConfig.get().sweep.dir), "sweep"
    what = "goes on" if kind == "sweep" or last_checkpoint(folder) else "begins anew"
    return f"interrupted; the same command with hydra.{kind}.dir={folder} {what}"


def check_composed() -> None:
    """Raise ValueError if the config is not composed from the project's, but a run's own.

    In that, the paths of checkpoints and tables are those of the run, which would be overwritten,
    and what hung on another setting is a copy of it, which stays as it was.
    """
    if HydraConfig.initialized() and "directory" not in (HydraConfig.get().callbacks or {}):
        raise ValueError(
            "--config-path, --config-name: expected the configs of svae; to train a run again, or "
            "with something changed, take the line `To repeat it` of its report.html"
        )


def completed(cfg: DictConfig) -> ImageDataModule:
    """The data of a config, in which what is decided only at run time is now written."""
    check_top_level(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = prepared_data(cfg)
    with open_dict(cfg):
        cfg.dataset.update(data.found())
        cfg.model.image_shape = list(data.image_shape)
        resolve_likelihood(cfg.model, data.sample())
        resolve_hardware(cfg.trainer)
        cfg.environment = environment()
    return data


def prepare(
    cfg: DictConfig, data: ImageDataModule, signals: Signals, own: Path | None = None
) -> Job:
    """Everything that can go wrong before training, `config.yaml` and `status.json`.

    Arguments:
        cfg: The config, complete.
        data: Its data.
        signals: The requests to end.
        own: The checkpoint in the run's own folder that it goes on from.
    """
    with weights_within(memory_at_hand(cfg.trainer.accelerator), cfg.model.image_shape):
        module = build_module(cfg, data)
    for images in data.sample():
        module.model.likelihood.check(images)
    check_optimisation(module, cfg.trainer)
    if own is not None:
        log.info("going on with %s", own)
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        tell_of_another_length(cfg)
        with open_dict(cfg):  # what the run began with
            cfg.ckpt_path = read_config(cfg.output_dir).ckpt_path
    elif cfg.ckpt_path == "last":
        with open_dict(cfg):
            cfg.ckpt_path = str(newest_checkpoint(cfg))
    ckpt_path = cfg.ckpt_path if own is None else str(own)
    if ckpt_path is not None:
        load_weights(module.model, ckpt_path)
        if own is None:
            check_resumed(cfg)
        check_epochs(ckpt_path, cfg.trainer.max_epochs)

    callbacks = objects(cfg.callbacks, "callbacks", Callback)
    if not cfg.trainer.enable_progress_bar:
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
    last = only(LastCheckpoint, callbacks)
    callbacks.append(BetweenSteps(signals, last))
    loggers = objects(cfg.logger, "logger", Logger)
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        "trainer",
        callbacks=callbacks,
        logger=loggers or False,
        plugins=[AtomicCheckpointIO(), distributed.environment()],
    )
    data.check_shares(trainer.world_size, [s for s in SPLITS if s != "test" or cfg.test])
    count = len(data.sources["train"])
    check_memory(module, cfg.trainer, min(data.batch_size, count) / trainer.world_size)
    try_once(module.model, data.sources["train"][torch.arange(min(2, data.batch_size, count))])
    if cfg.compile:
        module.model.compile()
    tell_few_steps(cfg.trainer, count, data.batch_size)
    save_config(cfg)
    save_status(cfg, Status("running"))
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    return Job(
        data,
        module,
        trainer,
        only(BestCheckpoint, callbacks),
        only(Figures, callbacks),
        only(MetricsCSV, callbacks),
        ckpt_path,
    )


def only(kind: type[One], callbacks: list[Any]) -> One | None:
    """The callback of a kind, if there is one."""
    return next((c for c in callbacks if isinstance(c, kind)), None)


def check_top_level(cfg: DictConfig) -> None:
    """The values that belong to no object, and those that Lightning would trip over later."""
    for name, kind in (("seed", int), ("test", bool), ("compile", bool)):
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
    schedule = scheduled(module.make_scheduler, optimizer, math.inf if endless else 1000)
    watches = isinstance(schedule["scheduler"], ReduceLROnPlateau)
    if watches and schedule["monitor"] not in module.validated:
        log.warning(
            "scheduler.monitor: %r is not among what validation logs by itself (%s); the training "
            "fails after its first validation unless a callback logs it",
            *(schedule["monitor"], ", ".join(module.validated)),
        )


@contextmanager
def weights_within(memory: int, image_shape: Sequence[int]) -> Iterator[None]:
    """Count the weights of what is built, and end it as soon as memory cannot hold a training.

    They are not filled by then: where the memory is not there, the system ends a process that
    fills it without a word.

    Arguments:
        memory: In bytes.
        image_shape: (C, H, W) of the images, for the message.

    Raises:
        ValueError: They take more, with gradients and an optimiser's state.
    """
    channels, height, width = image_shape
    too_large = ValueError(
        f"dataset: networks for images of {height}x{width} pixels with {channels} channels take "
        f"more than the {memory / 2**30:.3g} GB here in training; expected smaller images "
        "(dataset.resize=64 or dataset.size=64), model/encoder=cnn, or fewer hidden units"
    )
    count = 0

    def add(module: torch.nn.Module, name: str, weight: torch.nn.Parameter) -> None:
        nonlocal count
        count += 0 if weight is None else weight.numel()
        if count * _BYTES_OF_WEIGHT > memory:
            raise too_large

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if "allocate memory" not in str(error):  # of one layer
            raise
        raise too_large from error
    finally:
        hook.remove()


def tell_few_steps(trainer: DictConfig, images: int, batch_size: int) -> None:
    """Warn of a training that is over before anything can be learned, whose result is grey fog."""
    limited = trainer.limit_train_batches is not None or trainer.max_time is not None
    if limited or trainer.max_epochs in (None, -1):
        return
    in_epoch = math.ceil(images / batch_size) / trainer.accumulate_grad_batches
    steps = math.ceil(trainer.max_epochs * in_epoch)
    if steps < _FEW_STEPS and trainer.max_steps == -1:
        log.warning(
            "only %d training steps in %d epochs: of %d images in batches of %d most models learn "
            "nothing in so few; expected some hundred, trainer.max_epochs=%d makes %d",
            *(steps, trainer.max_epochs, images, batch_size),
            *(math.ceil(_MANY_STEPS / in_epoch), _MANY_STEPS),
        )


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


def objects(section: DictConfig, where: str, kind: type) -> list[Any]:
    """The objects that a section of the config names, one for each key that is not null.

    Arguments:
        section: Of the config.
        where: Its name, for messages.
        kind: What all of them are.

    Raises:
        ValueError: A key has something else.
    """
    for name, node in section.items():
        if node is not None and not (isinstance(node, DictConfig) and "_target_" in node):
            raise ValueError(f"{where}.{name!s}: expected an object with a _target_, got {node!r}")
    made = {name: one for name, one in instantiate(section, where).items() if one is not None}
    for name, one in made.items():
        if not isinstance(one, kind):
            raise ValueError(
                f"{where}.{name}: expected a {kind.__name__} of pytorch_lightning, "
                f"got {section[name]['_target_']}"
            )
    return list(made.values())


def numbers(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """The metrics named `split/name`, as plain numbers."""
    return {name: value.item() for name, value in metrics.items() if "/" in name}


@rank_zero_only
def save_metrics(cfg: DictConfig, metrics: Mapping[str, float]) -> None:
    """`metrics.json` in the run directory."""
    write_metrics(Path(cfg.output_dir) / "metrics.json", metrics)


@rank_zero_only
def save_status(cfg: DictConfig, status: Status) -> None:
    """`status.json` in the run directory."""
    try:
        write_status(cfg.output_dir, status)
    except OSError as error:
        log.warning("status.json is not up to date: %s", one_line(error))


@rank_zero_only
def save_config(cfg: DictConfig) -> None:
    """`config.yaml` in the run directory: resolved, and enough to rebuild everything."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    write_atomic(Path(cfg.output_dir) / "config.yaml", OmegaConf.to_yaml(resolved))


main = command("train")(train)

if __name__ == "__main__":
    main()
