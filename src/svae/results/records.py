"""Records of finished runs, to be committed: run directories are not, and stay on one machine.

A file for each result. What all of its trainings have in common stands once, so that it is short.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from svae.errors import one_line
from svae.files import write_atomic
from svae.paths import data_dir
from svae.results.plan import DATA, Job
from svae.results.ran import Ran, difference, first_difference
from svae.sweep.runs import Value
from svae.sweep.swept import is_seed

__all__ = ["Record", "read_records", "with_records", "write_records"]

log = logging.getLogger(__name__)

NEEDED = ("metrics", "date")
TEXTS = ("date", "machine", "of", "training", "source")


@dataclass(frozen=True)
class Record:
    """What is kept of a finished run.

    Arguments:
        metrics: `split/name: number`.
        date: When it ended, as `2026-01-31`.
        machine: What it ran on, and with which versions.
        settings: Of a training, as Hydra composed them; the folder of the data sets is `DATA`.
        of: The name of the training that an evaluation is of.
        training: A fingerprint of that training's metrics: there may be another of its name.
        overrides: Of an evaluation.
        source: What the record was made from, where that was no run directory.
    """

    metrics: Mapping[str, float]
    date: str
    machine: str = ""
    settings: Mapping[str, Value] = field(default_factory=dict)
    of: str = ""
    training: str = ""
    overrides: tuple[str, ...] = ()
    source: str = ""


Records = Mapping[str, Record]


def read_records(folder: Path, results: Iterable[str]) -> dict[str, Record]:
    """The records of results, by the names of their runs.

    Arguments:
        folder: That of the records; it need not exist.
        results: The names of results.

    Raises:
        ValueError: A file is damaged.
    """
    found: dict[str, Record] = {}
    for result in results:
        found |= _read(_path(folder, result))
    return found


def with_records(
    found: Mapping[Job, Ran], records: Records, *, to_run: bool = False
) -> dict[Job, Ran]:
    """What became of runs, here or, where they are not finished here, by their records.

    Arguments:
        found: What became of them here; each after the training that it needs.
        records: By the names of the runs.
        to_run: Whether what is begun here is to be finished, whatever its record says.
    """
    states = ("not run", "left out") if to_run else ("not run", "left out", "unfinished", "failed")
    known: dict[Job, Ran] = {}
    for job, one in found.items():
        record = records.get(job.name)
        if record is not None and one.state in states:
            one = _recorded(job, one, record, None if job.of is None else known[job.of])
        known[job] = one
    return known


def write_records(folder: Path, found: Mapping[Job, Ran]) -> dict[str, Record]:
    """Add the records of what finished here to those that there are.

    Records of runs that are not here, or are in the plan no more, stay; a file in which nothing
    changes is not touched.

    Arguments:
        folder: That of the records.
        found: What became of runs here, and of the trainings that they need.

    Returns:
        All records of the results of these runs, by the names of the runs.

    Raises:
        ValueError: A file is damaged.
    """
    results: dict[str, dict[str, Record]] = {}
    for job, one in found.items():
        here = results.setdefault(_result(job.name), {})
        if one.state == "finished":
            here[job.name] = _record(job, one, None if job.of is None else found[job.of])
    known = read_records(folder, results)
    changed = False
    for result, here in results.items():
        kept = {name: record for name, record in known.items() if _result(name) == result}
        for name in kept.keys() & here.keys():
            if other := first_difference(here[name].settings, kept[name].settings):
                log.warning("the record of %s is replaced by one with %s", name, other)
        text = _text(kept | here)
        if text != _text(kept):
            write_atomic(_path(folder, result), text)
            changed = True
        known |= here
    if changed:
        log.info("records written to: %s; commit them with the page", folder)
    return known


def _result(name: str) -> str:
    """The result that a run belongs to."""
    return name.partition("/")[0]


def _path(folder: Path, result: str) -> Path:
    return folder / f"{result}.json"


def _record(job: Job, one: Ran, trained: Ran | None) -> Record:
    return Record(
        one.metrics,
        one.date,
        one.machine,
        {name: _portable(value) for name, value in one.settings.items()},
        *(("", "") if job.of is None or trained is None else (job.of.name, _mark(trained))),
        # Those of the plan have no folder of this machine in them.
        overrides=() if job.of is None else job.overrides,
        source=one.source,
    )


def _recorded(job: Job, one: Ran, record: Record, trained: Ran | None) -> Ran:
    """A run that is not here, by its record, if that is one of what the plan asks for."""
    if other := _other(job, record, trained):
        why = "; ".join(filter(None, [one.message, other]))
        return replace(one, message=why)
    return Ran(
        "finished",
        metrics=record.metrics,
        machine=record.machine,
        date=record.date,
        settings={name: _here(value) for name, value in record.settings.items()},
        recorded=True,
        source=record.source,
    )


def _other(job: Job, record: Record, trained: Ran | None) -> str:
    """Why a record is none of this run; empty where it is."""
    if job.of is None or trained is None:
        settings = {name: _here(value) for name, value in record.settings.items()}
        try:
            other = difference(job, settings)
        except ValueError as error:
            return one_line(error)
        return str(_portable(f"its record has {other}")) if other else ""
    if record.overrides != job.overrides:
        return f"its record was evaluated with {' '.join(record.overrides) or 'no settings'}"
    if trained.state != "finished":
        return f"its training {job.of.name} is not finished"
    if (record.of, record.training) != (job.of.name, _mark(trained)):
        return f"its record is of another training than {job.of.name} is now"
    return ""


def _mark(trained: Ran) -> str:
    """A fingerprint of a training: with its seconds among them, no two have the same metrics."""
    return sha256(json.dumps(dict(trained.metrics), sort_keys=True).encode()).hexdigest()[:12]


def _portable(value: Value) -> Value:
    """A setting, with a name in the place of this machine's folder of the data sets."""
    if not isinstance(value, str):
        return value
    # Not where its name goes on, or began before.
    return re.sub(rf"(?<![\w./-]){re.escape(str(data_dir()))}(?![\w.-])", lambda _: DATA, value)


def _here(value: Value) -> Value:
    return value.replace(DATA, str(data_dir())) if isinstance(value, str) else value


def _text(records: Records) -> str:
    """A file of records: of the same records the same text, a line for each value."""
    trainings = [record.settings for record in records.values() if not record.of]
    first = trainings[0] if trainings else {}
    common = {
        name: value
        for name, value in first.items()
        if not is_seed(name) and all(settings.get(name) == value for settings in trainings)
    }
    runs = {name: dict(_content(record, common)) for name, record in records.items()}
    content = {"settings": common, "runs": runs}
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _content(record: Record, common: Mapping[str, Value]) -> Iterator[tuple[str, Any]]:
    """What a record says, without what it leaves open."""
    for one in fields(Record):
        value = getattr(record, one.name)
        if one.name == "settings":
            value = {name: v for name, v in value.items() if name not in common}
        if value or one.name in NEEDED:
            yield one.name, value


def _read(path: Path) -> dict[str, Record]:
    """The records of a file; none where there is no such file.

    Raises:
        ValueError: It is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        common = _settings(content["settings"])
        return {_name(name, path): _parsed(run, common) for name, run in content["runs"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected records of runs as svae.results writes them ({one_line(error)}); "
            "restore the file from git, or remove it"
        ) from error


def _name(name: str, path: Path) -> str:
    if _result(name) != path.stem:
        raise ValueError(f"a run of another result: {name}")
    return name


def _parsed(run: Mapping[str, Any], common: Mapping[str, Value]) -> Record:
    if unknown := run.keys() - {one.name for one in fields(Record)}:
        raise ValueError(f"{min(unknown)}: no such key")
    texts = {name: run[name] for name in TEXTS if name in run}
    overrides = run.get("overrides", [])
    if not all(isinstance(text, str) for text in (*texts.values(), *overrides)):
        raise TypeError("a text was expected")
    metrics = run["metrics"]
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name}: a number was expected")
    own = _settings(run.get("settings", {}))
    return Record(
        {name: float(value) for name, value in metrics.items()},
        settings={} if "of" in texts else {**common, **own},
        overrides=tuple(overrides),
        **texts,
    )


def _settings(node: Mapping[str, Any]) -> dict[str, Value]:
    for name, value in node.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TypeError(f"{name}: a text or a number was expected")
    return dict(node)
