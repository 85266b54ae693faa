"""What `conf/results/` asks for, checked: results, their rows, and the runs that these need."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svae.checks import at_least, one_of, positive
from svae.paths import data_dir

__all__ = ["DATA", "SIZES", "Column", "Job", "Picture", "Result", "Row", "Sweep", "plan_of"]

SIZES = ("small", "full")
#: Stands for the folder of the data sets in overrides, as it would on a command line.
DATA = "$SVAE_DATA_DIR"

RESULT = (
    *("title", "place", "text", "remark", "columns", "sweep", "overrides", "seeds"),
    *("pictures", "curves"),
)
ROW = (
    *("label", "group", "overrides", "seeds", "values", "minutes", "of", "evaluate"),
    *("paper", "why", "baseline", "needs", "skip"),
)


@dataclass(frozen=True)
class Column:
    """A metric of a table.

    Arguments:
        metric: Its name in `metrics.json`.
        name: What a person calls it.
        percent: Whether it is told in %.
        better: `higher` or `lower`; null where neither is.
    """

    metric: str
    name: str
    percent: bool = False
    better: str | None = None


@dataclass(frozen=True)
class Sweep:
    """A setting along the axis of a table or a curve, and its values."""

    setting: str
    values: tuple[int | float | str, ...]


@dataclass(frozen=True)
class Picture:
    """A figure of a run that is shown: of which row, value and seed, and what it shows."""

    row: str
    name: str
    caption: str
    value: int | float | str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Job:
    """A training, or the evaluation of one.

    Arguments:
        name: Its folder within that of the size.
        seed: Of the training.
        overrides: Of the command line.
        of: The training that is evaluated.
        minutes: How long it takes, where that is known.
        skip: Why it is not run here; empty where it is.
    """

    name: str
    seed: int
    overrides: tuple[str, ...]
    of: "Job | None" = None
    minutes: float | None = None
    skip: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Arguments:
        name: Its key.
        label: What a person calls it.
        group: The heading that it is under: a data set, for one.
        jobs: By value of the sweep (a single one where nothing is swept), those of all seeds.
        paper: The paper's numbers, by metric.
        why: Why its numbers fall short of these.
        baseline: Whether the paper's numbers are no goal.
    """

    name: str
    label: str
    group: str
    jobs: tuple[tuple[Job, ...], ...]
    paper: Mapping[str, float]
    why: str
    baseline: bool


@dataclass(frozen=True)
class Result:
    """A figure or a table.

    Arguments:
        name: Its key.
        title: Its heading.
        place: Where in which paper it is.
        text: What it shows, and what the paper says of it.
        remark: What is to be said of the numbers here.
        columns: The metrics.
        sweep: What lies along the axis, if anything.
        rows: By their keys.
        pictures: The figures of runs that are shown.
        curves: The metrics that are drawn against what is swept.
    """

    name: str
    title: str
    place: str
    text: str
    remark: str
    columns: tuple[Column, ...]
    sweep: Sweep | None
    rows: Mapping[str, Row]
    pictures: tuple[Picture, ...]
    curves: tuple[Column, ...]

    @property
    def jobs(self) -> Iterator[Job]:
        """Its runs, each after that which it needs."""
        for row in self.rows.values():
            for seeds in row.jobs:
                for job in seeds:
                    if job.of is not None:
                        yield job.of
                    yield job


def plan_of(nodes: Mapping[str, Any], size: str) -> dict[str, Result]:
    """The results by their names.

    Arguments:
        nodes: The section `results` of the config, as plain containers.
        size: One of `SIZES`.

    Raises:
        ValueError: A key or a value is wrong.
    """
    one_of("size", size, SIZES)
    if not isinstance(nodes, Mapping) or not nodes:
        raise ValueError(f"results: expected a result for each key, got {nodes!r}")
    return _Reader(nodes, size).read()


class _Reader:
    """Reads results that may refer to each other's rows."""

    def __init__(self, nodes: Mapping[str, Any], size: str) -> None:
        self.size = size
        self.nodes = {
            name: self._of_size(f"results.{name}", node, RESULT, ("rows",))
            for name, node in nodes.items()
        }
        self.sweeps = {name: self._sweep(name) for name in self.nodes}
        self.rows: dict[tuple[str, str], Row] = {}
        self.reading: list[tuple[str, str]] = []

    def read(self) -> dict[str, Result]:
        return {name: self._result(name) for name in self.nodes}

    def _of_size(
        self, place: str, node: Any, known: tuple[str, ...], more: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """A section with what its size says: overrides come after its own, all else instead."""
        section = _section(place, node, (*known, *more, *SIZES))
        own: dict[str, Any] = {}
        for size in SIZES:
            of_size = _section(f"{place}.{size}", section.pop(size, None) or {}, known)
            own = of_size if size == self.size else own
        overrides = [
            *_texts(f"{place}.overrides", section.get("overrides")),
            *_texts(f"{place}.{self.size}.overrides", own.get("overrides")),
        ]
        return section | own | {"overrides": overrides}

    def _result(self, name: str) -> Result:
        place, node = f"results.{name}", self.nodes[name]
        columns = tuple(
            _column(f"{place}.columns.{number}", one)
            for number, one in enumerate(_list(f"{place}.columns", node.get("columns")))
        )
        if not columns:
            raise ValueError(f"{place}.columns: expected at least one metric")
        rows = {key: self._row(name, key) for key in _section(f"{place}.rows", node.get("rows"))}
        sweep = self.sweeps[name]
        by_metric = {column.metric: column for column in columns}
        curves = _texts(f"{place}.curves", node.get("curves"))
        for metric in curves:
            one_of(f"{place}.curves", metric, tuple(by_metric))
        if curves and sweep is None:
            raise ValueError(f"{place}.curves: expected a sweep, whose values are the axis")
        for row in rows.values():
            for metric in row.paper:
                one_of(f"{place}.rows.{row.name}.paper", metric, tuple(by_metric))
            if row.paper and sweep is not None:
                raise ValueError(f"{place}.rows.{row.name}.paper: expected none beside a sweep")
        pictures = tuple(
            _picture(f"{place}.pictures.{number}", one, rows, sweep)
            for number, one in enumerate(_list(f"{place}.pictures", node.get("pictures")))
        )
        title, where, text, remark = (
            _text(f"{place}.{key}", node.get(key)) for key in ("title", "place", "text", "remark")
        )
        return Result(
            name,
            title or name,
            where,
            text,
            remark,
            columns,
            sweep,
            rows,
            pictures,
            tuple(by_metric[metric] for metric in curves),
        )

    def _sweep(self, name: str) -> Sweep | None:
        place, node = f"results.{name}.sweep", self.nodes[name].get("sweep")
        if node is None:
            return None
        node = _section(place, node, ("setting", "values"))
        values = tuple(_list(f"{place}.values", node.get("values")))
        return Sweep(_text(f"{place}.setting", node.get("setting"), needed=True), values)

    def _row(self, result: str, key: str) -> Row:
        """A row, and with it those that it refers to."""
        if (result, key) in self.rows:
            return self.rows[result, key]
        place = f"results.{result}.rows.{key}"
        if (result, key) in self.reading:
            raise ValueError(f"{place}.of: refers to itself")
        self.reading.append((result, key))
        node = self._of_size(place, self.nodes[result]["rows"][key], ROW)
        paper = {
            metric: _number(f"{place}.paper.{metric}", value)
            for metric, value in _section(f"{place}.paper", node.get("paper") or {}).items()
        }
        row = Row(
            key,
            _text(f"{place}.label", node.get("label"), needed=True),
            _text(f"{place}.group", node.get("group")),
            self._jobs(result, key, node),
            paper,
            _text(f"{place}.why", node.get("why")),
            _flag(f"{place}.baseline", node.get("baseline", False)),
        )
        self.reading.pop()
        self.rows[result, key] = row
        return row

    def _jobs(self, result: str, key: str, node: Mapping[str, Any]) -> tuple[tuple[Job, ...], ...]:
        place, sweep = f"results.{result}.rows.{key}", self.sweeps[result]
        if "of" in node:
            for name in ("overrides", "seeds", "needs"):
                if node.get(name):
                    raise ValueError(f"{place}.{name}: expected none beside `of`")
            referred = self._referred(f"{place}.of", node["of"])
            if "evaluate" not in node:
                if len(referred) != (1 if sweep is None else len(sweep.values)):
                    raise ValueError(f"{place}.of: expected as many values as the sweep has")
                return referred
            if len(referred) != 1:
                raise ValueError(f"{place}.of: expected RESULT/ROW/VALUE, got {node['of']}")
            overrides, trained = _texts(f"{place}.evaluate", node["evaluate"]), referred[0]
        elif "evaluate" in node:
            raise ValueError(f"{place}.evaluate: expected `of` beside it: what is evaluated")
        else:
            overrides = [*self.nodes[result]["overrides"], *node["overrides"]]
            trained = ()
        seeds = [one.seed for one in trained] or self._seeds(result, key, node)
        skip = _text(f"{place}.skip", node.get("skip")) or _lacking(place, node.get("needs"))
        values = self._values(result, key, node)
        minutes = node.get("minutes")
        each = minutes if isinstance(minutes, list) else [minutes] * len(values)
        if len(each) != len(values):
            raise ValueError(f"{place}.minutes: expected a number, or one for each value")
        jobs = []
        for value, known in zip(values, each, strict=True):
            takes = None if known is None else positive(f"{place}.minutes", known)
            folder, given = f"{result}/{key}/", tuple(overrides)
            if sweep is not None:
                folder += f"{sweep.setting.rpartition('.')[2]}-{value}_"
                given += (f"{sweep.setting}={value}",)
            given = tuple(_each_once(given))
            jobs.append(
                tuple(
                    Job(
                        f"{folder}seed-{seed}",
                        seed,
                        given if trained else (*given, f"seed={seed}"),
                        trained[number] if trained else None,
                        takes,
                        skip or (trained[number].skip if trained else ""),
                    )
                    for number, seed in enumerate(seeds)
                )
            )
        return tuple(jobs)

    def _values(self, result: str, key: str, node: Mapping[str, Any]) -> list[Any]:
        """The row's own values of what is swept, in the order of those of the axis."""
        place, sweep = f"results.{result}.rows.{key}.values", self.sweeps[result]
        if sweep is None:
            if "values" in node:
                raise ValueError(f"{place}: expected a sweep in results.{result}")
            return [None]
        values = _list(place, node.get("values", list(sweep.values)))
        if len(values) != len(sweep.values):
            raise ValueError(
                f"{place}: expected {len(sweep.values)}, as the sweep has, got {len(values)}"
            )
        return values

    def _seeds(self, result: str, key: str, node: Mapping[str, Any]) -> list[int]:
        given = node.get("seeds", self.nodes[result].get("seeds", [1]))
        place = f"results.{result}.rows.{key}.seeds"
        seeds = [at_least(place, seed, 0) for seed in _list(place, given)]
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"{place}: expected different seeds, got {seeds}")
        return seeds

    def _referred(self, place: str, name: Any) -> tuple[tuple[Job, ...], ...]:
        """The runs of RESULT/ROW, or of RESULT/ROW/VALUE."""
        parts = str(name).split("/")
        if len(parts) not in (2, 3):
            raise ValueError(f"{place}: expected RESULT/ROW or RESULT/ROW/VALUE, got {name!r}")
        one_of(place, parts[0], tuple(self.nodes))
        one_of(place, parts[1], tuple(_section(place, self.nodes[parts[0]].get("rows"))))
        jobs = self._row(parts[0], parts[1]).jobs
        if len(parts) == 2:
            return jobs
        sweep = self.sweeps[parts[0]]
        values = [] if sweep is None else [str(value) for value in sweep.values]
        one_of(place, parts[2], values)
        return (jobs[values.index(parts[2])],)


def _section(place: str, node: Any, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    """A mapping, if it has known keys only."""
    if not isinstance(node, Mapping):
        raise ValueError(f"{place}: expected keys and values, got {node!r}")
    for key in node:
        if known is not None and key not in known:
            raise ValueError(f"{place}.{key}: no such key; expected some of {', '.join(known)}")
    return {str(key): value for key, value in node.items()}


def _list(place: str, node: Any) -> list[Any]:
    if node is not None and not isinstance(node, list):
        raise ValueError(f"{place}: expected a list, got {node!r}")
    return node or []


def _texts(place: str, node: Any) -> list[str]:
    for text in _list(place, node):
        if not isinstance(text, str):
            raise ValueError(f"{place}: expected texts, got {text!r}")
    return node or []


def _each_once(overrides: Iterable[str]) -> Iterator[str]:
    """Overrides without those of which a later one names the same setting."""
    last = {override.partition("=")[0]: override for override in overrides}
    return (override for override in overrides if last[override.partition("=")[0]] == override)


def _text(place: str, node: Any, needed: bool = False) -> str:
    if not isinstance(node, str | None) or (needed and not node):
        raise ValueError(f"{place}: expected a text, got {node!r}")
    return " ".join((node or "").split())


def _flag(place: str, node: Any) -> bool:
    if not isinstance(node, bool):
        raise ValueError(f"{place}: expected true or false, got {node!r}")
    return node


def _number(place: str, node: Any) -> float:
    if isinstance(node, bool) or not isinstance(node, int | float):
        raise ValueError(f"{place}: expected a number, got {node!r}")
    return float(node)


def _column(place: str, node: Any) -> Column:
    node = _section(place, node, ("metric", "name", "percent", "better"))
    better = node.get("better")
    if better is not None:
        one_of(f"{place}.better", better, ("higher", "lower"))
    return Column(
        _text(f"{place}.metric", node.get("metric"), needed=True),
        _text(f"{place}.name", node.get("name"), needed=True),
        _flag(f"{place}.percent", node.get("percent", False)),
        better,
    )


def _picture(place: str, node: Any, rows: Mapping[str, Row], sweep: Sweep | None) -> Picture:
    node = _section(place, node, ("row", "name", "caption", "value", "seed"))
    row = one_of(f"{place}.row", _text(f"{place}.row", node.get("row")), tuple(rows))
    value, seed = node.get("value"), node.get("seed")
    if sweep is not None and value not in sweep.values:
        known = ", ".join(map(str, sweep.values))
        raise ValueError(f"{place}.value: expected one of {known}, got {value!r}")
    seeds = {job.seed for jobs in rows[row].jobs for job in jobs}
    if seed is not None and seed not in seeds:
        raise ValueError(f"{place}.seed: expected one of {sorted(seeds)}, got {seed!r}")
    return Picture(
        row,
        _text(f"{place}.name", node.get("name"), needed=True),
        _text(f"{place}.caption", node.get("caption"), needed=True),
        value,
        seed,
    )


def _lacking(place: str, needs: Any) -> str:
    """Which data are not here; empty where all are."""
    folder = data_dir()
    lacking = [n for n in _texts(f"{place}.needs", needs) if not Path(folder, n).exists()]
    return f"it needs {', '.join(lacking)} in {DATA}, which is not here" if lacking else ""
