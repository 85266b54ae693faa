"""`python -m svae.evaluate run=...`: test trained models from their run directories alone."""

import copy
import glob
import logging
import shutil
from collections.abc import Sequence
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
    DECIDING,
    LENGTHS,
    STEPS,
    build_module,
    checkpoint_path,
    first_difference,
    in_short,
    load_weights,
    prepared_data,
    read_config,
    resolve_hardware,
)
from svae.tables import write_csv

__all__ = ["evaluate", "main"]

log = logging.getLogger(__name__)

Metrics = dict[str, float]

#: Runs that differ in these, but for the seed, are not repetitions of one experiment.
ALIKE = (*DECIDING, "evaluation", "trainer")


def evaluate(cfg: DictConfig) -> Metrics:
    """Test the model of `cfg.run`, or those of several runs, each in a folder of its own.

    Returns:
        The metrics; of several runs, what `summary` says.
    """
    with told_in_one_line():
        runs = runs_of(cfg.run)
        if len(runs) > 1:
            check_several(runs, cfg)
    if len(runs) == 1:
        return evaluate_run(cfg, runs[0], Path(cfg.output_dir))

    output = Path(cfg.output_dir)
    tested: list[Metrics] = []
    for number, run in enumerate(runs):
        log.info("run %d of %d: %s", number + 1, len(runs), run)
        folder = output / str(number)
        copy_settings(cfg, run, folder)
        tested.append(evaluate_run(cfg, run, folder))
        # After each, so that what was tested is not lost with the next.
        with told_in_one_line():
            write_csv(output / "runs.csv", run_columns(runs, tested))
    metrics = summary(tested)
    write_metrics(output / "metrics.json", metrics)
    log.info("mean ± sample standard deviation of %d runs:", len(runs))
    means = {name: value for name, value in metrics.items() if f"{name}_std" in metrics}
    for name, mean in sorted(means.items()):
        log.info("%-40s %.6g ± %.2g", name, mean, metrics[f"{name}_std"])
    log.info("%s", in_short(means))
    log.info("written to: %s (runs.csv, metrics.json, a folder for each run)", output)
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
    """Find what would end a later run's test, and warn of runs that are no repetitions.

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
    first = settings_of(runs[0])
    for run in runs[1:]:
        other = settings_of(run)
        if found := first_difference(first, other, ALIKE):
            name, old, new = found
            log.warning(
                "run: different settings, so that the mean is of no one model: %s is %r in %s "
                "and %r in %s",
                *(name, old, runs[0], new, run),
            )
            return


def settings_of(run: str) -> dict[str, Any]:
    """The settings of a run that do not tell one repetition from another."""
    config: Any = OmegaConf.to_container(read_config(run), resolve=True)
    trainer = config["trainer"]
    kept = {name: trainer.get(name) for name in (*STEPS, *LENGTHS)}
    data = {name: value for name, value in config["dataset"].items() if name != "seed"}
    return config | {"dataset": data, "trainer": kept}


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


def run_columns(runs: Sequence[str], tested: Sequence[Metrics]) -> dict[str, np.ndarray]:
    """A row for each run tested so far: its folder here, its own, its seed and its metrics."""
    done = runs[: len(tested)]
    columns = {
        "folder": np.arange(len(done)),
        "run": np.array(done),
        "seed": np.array([read_config(run).seed for run in done]),
    }
    for name in sorted({name for metrics in tested for name in metrics}):
        # Of no type, so that what a run lacks is an empty cell.
        columns[name] = np.array([metrics.get(name) for metrics in tested], dtype=object)
    return columns


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
