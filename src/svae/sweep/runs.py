"""The runs of a sweep, as far as they have come: their settings, state and metrics."""

import csv
import glob
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from svae.curves import newest_values
from svae.errors import one_line
from svae.files import natural
from svae.run import BEFORE, DECIDING, LENGTHS, NO_MATTER, STEPS
from svae.status import Status, read_status

__all__ = [
    "LOADER",
    "SECTIONS",
    "Run",
    "Value",
    "composed_settings",
    "decides",
    "find_runs",
    "read_runs",
    "told",
    "within",
]

#: A setting: what is no number is told as YAML tells it.
Value = str | int | float
T = TypeVar("T")

#: The sections of a config that decide what a run computes.
SECTIONS = ("seed", *DECIDING, "trainer", "evaluation")
#: These change no number: a copy of the prior, and where and how things are read, done and shown.
IDLE = (
    *("model.prior", *NO_MATTER),
    *("output_dir", "ckpt_path", "test", "logger", "environment", "splits"),
    *(
        f"callbacks.{name}"
        for name in ("figures", "last", "metrics_csv", "progress_bar", "timing")
    ),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.enable_model_summary", "trainer.enable_progress_bar", "trainer.log_every_n_steps"),
    "trainer.use_distributed_sampler",
)
#: A folder with one of these is a run, also one that ended before it had a config.
MARKS = ("config.yaml", "status.json", "train.log")

#: What comes of reading a file that was cut short or is of something else.
DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError),
    *(yaml.YAMLError, csv.Error),
)

# The loader of libyaml where there is one: it takes an eighth of the time.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Run:
    """What a run directory tells.

    Arguments:
        folder: The run directory, as it was named.
        status: What became of it.
        config: The settings that change its numbers, by their dotted names.
        resolved: Whether they are all there is; not before the run has read its data.
        choices: What was chosen from the config groups, by their names.
        overrides: The names that its command line gave values to.
        number: Of the job in its sweep; infinite where it is of none.
        epochs: How many have ended.
        metrics: `split/name: number`. Those of a run that goes on are of its last epochs.
        curve: The epochs that were validated and their `val/elbo`.
    """

    folder: str
    status: Status
    config: dict[str, Value] = field(default_factory=dict)
    resolved: bool = False
    choices: dict[str, Value] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    number: float = math.inf
    epochs: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    curve: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    def value(self, name: str) -> Value | None:
        """The choice from a group of that name, else the setting; None if there is neither."""
        if name in self.choices:
            return self.choices[name]
        if name in self.config:
            return self.config[name]
        inner = {k.removeprefix(f"{name}."): v for k, v in self.config.items() if within(k, name)}
        # An object has a class, and more settings than a person can read.
        objects = any(key.rpartition(".")[2] == "_target_" for key in inner)
        if inner and not objects:
            return json.dumps(inner)
        return told(BEFORE[name]) if self.resolved and name in BEFORE else None

    @property
    def failed(self) -> bool:
        return self.status.state == "failed"

    @property
    def finished(self) -> bool:
        return self.status.state == "finished"


def find_runs(names: Sequence[str]) -> list[str]:
    """The run directories that names stand for, each once.

    A name is a run directory, a folder of them such as a sweep's, or a pattern (`*`, `?`,
    `[...]`) of either.

    Raises:
        FileNotFoundError: A name stands for no run.
    """
    found: dict[Path, str] = {}
    for name in names:
        there = Path(name).exists()
        places = [name] if there else sorted(glob.glob(name), key=natural)
        if not places:
            what = "matches nothing" if glob.has_magic(name) else "does not exist"
            raise FileNotFoundError(
                f"sweep: {name} {what}; expected a folder such as outputs/multirun/<date>"
            )
        runs = [run for place in places for run in _runs_in(place)]
        # A shell that spreads a pattern names the files beside the runs as well.
        if not runs and not (len(names) > 1 and Path(name).is_file()):
            raise FileNotFoundError(
                f"sweep: {name} holds no run (a folder with config.yaml); expected a folder such "
                "as outputs/multirun/<date>"
            )
        for run in runs:
            found.setdefault(Path(run).resolve(), run)
    return list(found.values())


def read_runs(folders: Sequence[str]) -> tuple[list[Run], list[str]]:
    """What run directories tell, those of a sweep in the order of its jobs.

    Returns:
        The runs, and which files are damaged, with the reason. What such a file would have told
        is missing; a run of unknown settings is left out.
    """
    damaged: list[str] = []
    runs = [run for folder in folders if (run := _read_run(folder, damaged)) is not None]
    parents = {parent: i for i, parent in enumerate(dict.fromkeys(_parent(r) for r in runs))}
    return sorted(runs, key=lambda run: (parents[_parent(run)], run.number)), damaged


def within(name: str, section: str) -> bool:
    """Whether a dotted name is that of a section or of something in it."""
    return name == section or name.startswith(f"{section}.")


def _parent(run: Run) -> Path:
    return Path(run.folder).parent


def _runs_in(place: str) -> list[str]:
    """A run directory itself, else those in a folder."""
    folder = Path(place)
    if _is_run(folder):
        return [place]
    inside = folder.iterdir() if folder.is_dir() else ()
    # What Hydra recorded of any command, in .hydra, has a config.yaml as well.
    seen = (path for path in inside if not path.name.startswith("."))
    return sorted((str(path) for path in seen if _is_run(path)), key=natural)


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in MARKS)


def _read_run(folder: str, damaged: list[str]) -> Run | None:
    def read(name: str, parse: Callable[[str], T]) -> T | None:
        path = Path(folder, name)
        try:
            return parse(path.read_text())
        except FileNotFoundError:
            return None
        except DAMAGE as error:
            damaged.append(f"{path} ({one_line(error)})")
            return None

    config = read("config.yaml", _resolved)
    resolved = config is not None
    if config is None:
        config = read(".hydra/config.yaml", _composed)
    if config is None:
        damaged.append(f"{folder} (its settings are unknown)")
        return None
    hydra = read(".hydra/hydra.yaml", _hydra) or {}
    rows = read("metrics.csv", _rows) or []
    final = read("metrics.json", _metrics)
    status = read("status.json", lambda _: read_status(folder))
    if status is None:
        status = Status("running" if final is None else "finished")
    if final is not None and status.state == "running" and _is_older(folder):
        final = None
    validated = [row for row in rows if math.isfinite(row.get("val/elbo", math.nan))]
    return Run(
        folder=folder,
        status=status,
        config=config,
        resolved=resolved,
        epochs=int(rows[-1]["epoch"]) + 1 if rows else 0,
        metrics=newest_values(rows) if final is None else final,
        curve=([row["epoch"] for row in validated], [row["val/elbo"] for row in validated]),
        **hydra,
    )


def _is_older(folder: str) -> bool:
    """Whether `metrics.json` is of before a run was taken up again."""
    final, rows = Path(folder, "metrics.json"), Path(folder, "metrics.csv")
    return rows.is_file() and final.is_file() and final.stat().st_mtime < rows.stat().st_mtime


def _resolved(text: str) -> dict[str, Value]:
    """The settings of `config.yaml`."""
    return _settings(yaml.load(text, LOADER))


def _composed(text: str) -> dict[str, Value]:
    """The settings of what Hydra composed, without those that are not known before a run."""
    composed = OmegaConf.create(yaml.load(text, LOADER))
    assert isinstance(composed, DictConfig)
    return composed_settings(composed)


def composed_settings(composed: DictConfig) -> dict[str, Value]:
    """What decides what a run computes, as far as Hydra knows it: by its dotted name."""
    return {name: v for name, v in _settings(_known(composed)).items() if decides(name)}


def decides(name: str) -> bool:
    """Whether a setting decides what a run computes, whoever set it."""
    section, _, rest = name.partition(".")
    return section in SECTIONS and (section != "trainer" or rest in (*STEPS, *LENGTHS))


def _known(node: DictConfig) -> dict[str, Any]:
    """A config as plain containers, without what refers to values that are missing."""
    known: dict[str, Any] = {}
    for key in node:
        try:
            value = node[key]
            if isinstance(value, ListConfig):
                value = OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException:
            continue
        known[str(key)] = _known(value) if isinstance(value, DictConfig) else value
    return known


def _settings(config: Mapping[str, Any]) -> dict[str, Value]:
    place = config.get("output_dir")
    sections = {name: config[name] for name in (*SECTIONS, *config) if name in config}
    return {
        name: value
        for name, value in _flat(sections)
        if not any(within(name, idle) for idle in IDLE)
        # Where callbacks write is of one run alone.
        and not (place and isinstance(value, str) and f"{value}/".startswith(f"{place}/"))
    }


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, told(value)


def told(value: Any) -> Value:
    """A setting as a number, or as the text that YAML has for it."""
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return json.dumps(value, default=str)


def _hydra(text: str) -> dict[str, Any]:
    """What Hydra recorded, by the names that `Run` has for it."""
    hydra = yaml.load(text, LOADER)["hydra"]
    number = hydra["job"].get("num")
    choices = hydra["runtime"]["choices"].items()
    return {
        "choices": {k: told(v) for k, v in choices if not k.startswith("hydra/")},
        "overrides": [o.lstrip("+~").partition("=")[0] for o in hydra["overrides"]["task"]],
        "number": number if isinstance(number, int) else math.inf,
    }


def _metrics(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in json.loads(text).items() if value is not None}


def _rows(text: str) -> list[dict[str, float]]:
    """The rows of `metrics.csv` without their empty cells; one that is cut short ends them."""
    lines = csv.reader(io.StringIO(text))
    columns = next(lines, [])
    if "epoch" not in columns:
        raise ValueError("it has no column epoch")
    rows = []
    for line in lines:
        if len(line) != len(columns):
            break
        cells = zip(columns, line, strict=True)
        rows.append({name: float(cell) for name, cell in cells if cell or name == "epoch"})
    return rows
