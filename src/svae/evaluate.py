"""`python -m svae.evaluate run=...`: test trained models from their run directories alone."""

import copy
import glob
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from svae.callbacks import Figures
from svae.command import chosen, command
from svae.distributed import environment, processes
from svae.errors import told_in_one_line
from svae.files import natural, write_metrics
from svae.instantiate import instantiate
from svae.report import write_report
from svae.run import (
    SUMMARY,
    build_module,
    checkpoint_path,
    in_short,
    load_weights,
    prepared_data,
    read_config,
    resolve_hardware,
)
from svae.sweep.groups import grouped, plain, table_columns
from svae.sweep.runs import Run, read_runs
from svae.sweep.swept import is_seed, swept
from svae.tables import write_csv

__all__ = ["evaluate", "main"]

log = logging.getLogger(__name__)

Metrics = dict[str, float]


def evaluate(cfg: DictConfig) -> Metrics:
    """Test the model of `cfg.run`, or those of several runs, each in a folder of its own.

    Returns:
        The metrics; of several runs, what `summary` says.
    """
    with told_in_one_line():
        runs = runs_of(cfg.run)
    if len(runs) == 1:
        return evaluate_run(cfg, runs[0], Path(cfg.output_dir))

    with told_in_one_line():
        check_several(runs, cfg)
        known, names = what_differs(runs)
    output = Path(cfg.output_dir)
    tested: list[Metrics] = []
    for number, run in enumerate(runs):
        log.info("run %d of %d: %s", number + 1, len(runs), run)
        folder = output / str(number)
        copy_settings(cfg, run, folder)
        tested.append(evaluate_run(cfg, run, folder))
        # After each, so that what was tested is not lost with the next.
        with told_in_one_line():
            write_csv(output / "runs.csv", run_columns(known, names, tested))
    metrics = summary(tested)
    write_metrics(output / "metrics.json", metrics)
    if names:
        tell_groups(output, known, names, tested)
    else:
        tell_means(metrics, len(runs))
    log.info("written to: %s (tables, metrics.json, a folder for each run)", output)
    return metrics


def evaluate_run(cfg: DictConfig, run_directory: str, output: Path) -> Metrics:
    """Test the model of a run as its training did, or with other numbers of samples and steps.

    Arguments:
        cfg: Of the command; it stays as it is.
        run_directory: The run directory.
        output: Where the results go.
    """
    with told_in_one_line():
        cfg = copy.deepcopy(cfg)
        cfg.output_dir = str(output)
        run = read_config(run_directory)
        pl.seed_everything(run.seed, workers=True, verbose=False)
        with open_dict(run):
            run.evaluation.update(chosen(cfg.evaluation))
            run.model.update(chosen(cfg.model))
            # The precision of the training, so that the same numbers come out.
            cfg.trainer.precision = cfg.trainer.precision or run.trainer.precision
        resolve_hardware(cfg.trainer)
        datamodule = prepared_data(run)
        module = build_module(run, datamodule)
        load_weights(module.model, checkpoint_path(run_directory, cfg.checkpoint))
        callbacks = [Figures(str(output / "figures"))]
        trainer: pl.Trainer = instantiate(
            cfg.trainer, "trainer", callbacks=callbacks, logger=False, plugins=[environment()]
        )
        datamodule.check_shares(trainer.world_size, ["test"])
    with processes(cfg, trainer, "svae.evaluate"):
        trainer.test(module, datamodule, verbose=False)
    metrics = {k: v.item() for k, v in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        write_metrics(output / "metrics.json", metrics)
        for name, value in sorted(metrics.items()):
            log.info("%-40s %.6g", name, value)
        write_report(output)
        log.info("%s", in_short(metrics))
        log.info("written to: %s (open report.html)", output)
    return metrics


def runs_of(given: Any) -> list[str]:
    """The run directories that a path, a pattern, or a list of them names.

    A pattern (`*`, `?`, `[...]`) stands for the run directories among what it matches, by their
    names, numbers by their size; a folder without a run in it is left out with a warning.

    Raises:
        FileNotFoundError: There is no such run.
        ValueError: A run is named twice, or none is.
    """
    names = list(given) if isinstance(given, ListConfig) else [given]
    if not names or not all(isinstance(name, str | int) for name in names):
        raise ValueError(f"run: expected a run directory or a list of them, got {given!r}")
    runs = [run for name in names for run in matching(str(name))]
    for run in runs:
        read_config(run)
    seen: set[Path] = set()
    for run in runs:
        if (place := Path(run).resolve()) in seen:
            raise ValueError(f"run: expected different runs, got {run} twice")
        seen.add(place)
    return runs


def matching(name: str) -> list[str]:
    """The run directories that a path or a pattern stands for; a path as it is."""
    if Path(name).exists() or not glob.has_magic(name):
        return [name]
    found = sorted((path for path in glob.glob(name) if Path(path).is_dir()), key=natural)
    runs = [path for path in found if Path(path, "config.yaml").is_file()]
    if not runs:
        raise FileNotFoundError(
            f"run: {name} matches no run directory (a folder with config.yaml); expected a "
            "pattern such as outputs/multirun/<date>/*"
        )
    for path in found:
        if path not in runs:
            log.warning("run: %s is left out: it has no config.yaml", path)
    return runs


def check_several(runs: Sequence[str], cfg: DictConfig) -> None:
    """Find what would end a later run's test.

    Raises:
        ValueError: They are to be tested by several processes.
        FileNotFoundError: A run lacks the checkpoint.
    """
    if cfg.trainer.get("strategy", "auto") != "auto":
        raise ValueError(
            f"run: expected one run with trainer.strategy={cfg.trainer.strategy}, got "
            f"{len(runs)}; several are tested with trainer=auto, cpu or gpu"
        )
    for run in runs:
        checkpoint_path(run, cfg.checkpoint)


def what_differs(runs: Sequence[str]) -> tuple[list[Run], list[str]]:
    """What runs tell, in their order, and in which settings they are no repetitions."""
    told = {run.folder: run for run in read_runs(runs)[0]}
    known = [told[run] for run in runs]
    names = [name for name in swept(known) if not is_seed(name)]
    if names:
        log.warning(
            "run: different settings (%s), so that the mean of all is of no one model; "
            "table.csv has that of each",
            ", ".join(names),
        )
    return known, names


def copy_settings(cfg: DictConfig, run: str, folder: Path) -> None:
    """`.hydra/` of a command as if it had been given this one run: reports read it."""
    source = Path(cfg.output_dir, ".hydra")
    if not source.is_dir():  # hydra.output_subdir=null
        return
    shutil.copytree(source, folder / ".hydra")
    config = OmegaConf.load(source / "config.yaml")
    OmegaConf.save(OmegaConf.merge(config, {"run": run}), folder / ".hydra" / "config.yaml")
    overrides = OmegaConf.load(source / "overrides.yaml")
    others = [text for text in map(str, overrides) if not text.startswith("run=")]
    OmegaConf.save(OmegaConf.create([f"run={run}", *others]), folder / ".hydra/overrides.yaml")


def run_columns(
    runs: Sequence[Run], names: Sequence[str], tested: Sequence[Metrics]
) -> dict[str, Sequence[Any]]:
    """A row for each run tested so far: its folder here, its own, its settings and its metrics."""
    done = runs[: len(tested)]
    columns: dict[str, Sequence[Any]] = {
        "folder": range(len(done)),
        "run": [run.folder for run in done],
        **{name: [run.value(name) for run in done] for name in (*names, "seed")},
    }
    for name in metric_names(tested):
        columns[name] = [metrics.get(name) for metrics in tested]
    return columns


def metric_names(tested: Sequence[Metrics]) -> list[str]:
    return sorted({name for metrics in tested for name in metrics})


def tell_means(metrics: Metrics, runs: int) -> None:
    """Log what `summary` says of several runs."""
    log.info("mean ± sample standard deviation of %d runs:", runs)
    means = {name: value for name, value in metrics.items() if f"{name}_std" in metrics}
    for name, mean in sorted(means.items()):
        log.info("%-40s %.6g ± %.2g", name, mean, metrics[f"{name}_std"])
    log.info("%s", in_short(means))


def tell_groups(
    output: Path, runs: Sequence[Run], names: Sequence[str], tested: Sequence[Metrics]
) -> None:
    """Write and log the means of the runs that are alike in some settings, as `svae.sweep` does.

    Arguments:
        output: The folder of `table.csv`.
        runs: What was tested.
        names: The settings.
        tested: The metrics of each.
    """
    both = zip(runs, tested, strict=True)
    groups = grouped([replace(run, metrics=metrics) for run, metrics in both], names)
    write_csv(output / "table.csv", table_columns(groups, names, metric_names(tested)))
    shown = [name for name in SUMMARY if name in metric_names(tested)]
    log.info("by %s:\n%s", ", ".join(names), "\n".join(plain(groups, names, shown)))


def summary(tested: Sequence[Metrics]) -> Metrics:
    """The mean of each metric that all runs have, and its sample standard deviation, `_std`."""
    metrics: Metrics = {}
    for name in set.intersection(*(set(one) for one in tested)):
        values = np.array([one[name] for one in tested])
        with np.errstate(invalid="ignore"):  # a spread of infinities is NaN
            metrics |= {name: values.mean().item(), f"{name}_std": values.std(ddof=1).item()}
    return metrics


main = command("evaluate")(evaluate)

if __name__ == "__main__":
    main()
