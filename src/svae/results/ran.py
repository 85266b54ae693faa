"""What became of the runs of a plan, from their folders alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from hydra import compose
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from svae.errors import one_line
from svae.paths import data_dir
from svae.results.plan import DATA, Job
from svae.run import ATTENTION, BEFORE
from svae.status import read_status
from svae.sweep.runs import DAMAGE, LOADER, Value, composed_settings, told
from svae.sweep.swept import is_seed
from svae.typed import as_value

__all__ = ["NO_BAR", "Ran", "arguments", "check", "difference", "first_difference", "ran"]

#: What every run is given beside its overrides.
NO_BAR = "trainer.enable_progress_bar=false"

State = Literal["finished", "unfinished", "failed", "other", "not run", "left out"]


@dataclass(frozen=True)
class Ran:
    """What a run has come to.

    Arguments:
        state: `other` is a run of other settings than the plan's; `left out` what is not run here.
        message: Why it is in that state, in one line.
        metrics: Those of a finished run, `split/name: number`.
        machine: What it ran on, and with which versions; empty where that is not recorded.
        date: When it ended, as `2026-01-31`.
        settings: What Hydra composed for a finished training.
        recorded: Whether its record is all that there is here.
        source: What its record was made from, where that was no run directory.
    """

    state: State
    message: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    machine: str = ""
    date: str = ""
    settings: Mapping[str, Value] = field(default_factory=dict)
    recorded: bool = False
    source: str = ""


def arguments(job: Job, folder: Path) -> list[str]:
    """The overrides of a run on a command line, with what depends on this machine put in.

    Arguments:
        job: The run.
        folder: That of all runs of its size.
    """
    of = [] if job.of is None else [f"run={as_value(str(folder / job.of.name))}"]
    return [*of, *map(_with_data, job.overrides)]


def check(job: Job) -> None:
    """Raise ValueError if the settings of a run do not compose."""
    _composed("train" if job.of is None else "evaluate", _without_seed(job))


def ran(job: Job, folder: Path) -> Ran:
    """What became of a run.

    Arguments:
        job: The run.
        folder: That of all runs of its size.
    """
    place = folder / job.name
    try:
        return _evaluated(job, job.of, folder) if job.of else _trained(job, place)
    except DAMAGE as error:
        return Ran("failed", f"{place} cannot be read ({one_line(error)})")


def _trained(job: Job, place: Path) -> Ran:
    status = read_status(place)
    if status is None:
        return Ran("left out", job.skip) if job.skip else Ran("not run")
    # What Hydra composed for the run is compared, since a run adds what it finds.
    settings = composed_settings(
        OmegaConf.create(yaml.load((place / ".hydra" / "config.yaml").read_text(), LOADER))
    )
    if other := difference(job, settings):
        return Ran("other", f"{place} holds a run with {other}")
    if status.state != "finished":
        return Ran("failed" if status.state == "failed" else "unfinished", status.message)
    config = yaml.load((place / "config.yaml").read_text(), LOADER)
    return Ran(
        "finished",
        metrics=_metrics(place),
        machine=_machine(config.get("environment", {}), str(config["trainer"]["precision"])),
        date=_date(place),
        settings=settings,
    )


def _evaluated(job: Job, of: Job, folder: Path) -> Ran:
    place = folder / job.name
    # Of the training that is there now, and not of one that was there before.
    trained = ran(of, folder).state == "finished"
    there = trained and (place / "metrics.json").is_file()
    if not there or _written(place) < _written(folder / of.name):
        return Ran("left out", job.skip) if job.skip else Ran("not run")
    overrides = yaml.load((place / ".hydra" / "overrides.yaml").read_text(), LOADER)
    given = [o for o in overrides if not o.startswith("run=") and o != NO_BAR]
    if given != list(map(_with_data, job.overrides)):
        return Ran("other", f"{place} was evaluated with {' '.join(given) or 'no settings'}")
    return Ran("finished", metrics=_metrics(place), date=_date(place))


def difference(job: Job, settings: Mapping[str, Value]) -> str:
    """In what a run differs from the plan; empty where it does not.

    What only one of both has was added to the configs, or taken from them, since then.

    Arguments:
        job: A training of the plan.
        settings: What Hydra composed for the run.

    Raises:
        ValueError: Those of the plan do not compose.
    """
    asked = {**_composed("train", _without_seed(job)), "seed": job.seed}
    # Settings that came later with another default than what was done before.
    before: dict[str, Value] = {name: told(value) for name, value in BEFORE.items()}
    if asked.get("model.posterior._target_") == ATTENTION:
        del before["prior.theta.start_deg"]  # of equation 3, which a lattice has not
        if asked.get("model.second_look") == told(False):
            del before["model.posterior.correct_weights"]
        else:
            before["model.third_look"] = told(False)  # in its test
    settings = before | dict(settings)
    return first_difference(settings, asked)


def first_difference(settings: Mapping[str, Value], asked: Mapping[str, Value]) -> str:
    """`name=one, not another` of the first setting that differs among those that both have."""
    for name in sorted(settings.keys() & asked.keys()):
        if settings[name] != asked[name] and (name == "seed" or not is_seed(name)):
            return f"{name}={settings[name]!r}, not {asked[name]!r}"
    return ""


@cache
def _composed(command: str, overrides: tuple[str, ...]) -> dict[str, Value]:
    """The settings of a command.

    Raises:
        ValueError: They do not compose.
    """
    given = [*overrides, "run=RUN"] if command == "evaluate" else list(overrides)
    try:
        return composed_settings(compose(command, overrides=given))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"svae.{command} {' '.join(overrides)}: {one_line(error)}") from error


def _without_seed(job: Job) -> tuple[str, ...]:
    """The same of all seeds, so that it is composed once."""
    return tuple(_with_data(o) for o in job.overrides if not o.startswith("seed="))


def _with_data(override: str) -> str:
    """An override with the folder of the data sets in the place of its name."""
    if DATA not in override:
        return override
    name, _, value = override.partition("=")
    return f"{name}={as_value(value.replace(DATA, str(data_dir())))}"


def _metrics(place: Path) -> dict[str, float]:
    content = json.loads((place / "metrics.json").read_text())
    return {name: float(value) for name, value in content.items() if value is not None}


def _machine(environment: Mapping[str, Any], precision: str) -> str:
    """A machine for a person."""
    parts = [str(environment.get("gpu") or environment.get("processor") or "an unknown processor")]
    if "gpu" not in environment and "threads" in environment:
        parts.append(f"{environment['threads']} of {environment['cores']} cores")
    parts.append(precision)
    parts += [f"{name} {environment[name]}" for name in ("torch", "svae") if name in environment]
    return ", ".join(parts)


def _written(place: Path) -> float:
    """When the metrics of a run were written."""
    return (place / "metrics.json").stat().st_mtime


def _date(place: Path) -> str:
    return datetime.fromtimestamp(_written(place), UTC).date().isoformat()
