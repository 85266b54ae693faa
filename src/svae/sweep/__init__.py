"""`python -m svae.sweep outputs/multirun/...`: tables and figures of many runs."""

import glob
import logging
import math
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from svae.command import command
from svae.errors import told_in_one_line
from svae.files import write_atomic
from svae.sweep.groups import grouped, markdown, plain, table_columns, told
from svae.sweep.layout import Layout, curves_figure, laid_out, line_of, metric_figure
from svae.sweep.runs import Run, Value, find_runs, read_runs
from svae.sweep.swept import swept
from svae.tables import write_csv
from svae.typed import as_value

__all__ = ["collect", "main", "sweep"]

log = logging.getLogger(__name__)

#: What decides which run is best; never a number of the test split.
DECIDES = "val/elbo"
#: So many lines of a kind are printed; the files have all.
MOST_PRINTED = 40


def collect(*names: str | Path) -> list[dict[str, Value | None]]:
    """A row for each run of a sweep, as `runs.csv` has them: `pandas.DataFrame(collect(...))`.

    Arguments:
        names: A sweep's folder, run directories, or patterns of either.

    Returns:
        Rows with the same keys: `folder`, `state`, `message`, `epochs`, what was swept,
        `seconds` (of training), and every metric; None for what a run lacks.

    Raises:
        FileNotFoundError: There is no such run.
    """
    runs = read(list(map(str, names)))
    columns = run_columns(runs, swept(runs))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def sweep(cfg: DictConfig) -> Path:
    """Write tables and figures of the runs of `cfg.sweep`.

    Returns:
        The folder with them.
    """
    output = Path(cfg.output_dir)
    with told_in_one_line():
        runs = read(listed("sweep", cfg.sweep))
        metrics = listed("metric", cfg.metric)
        check_metrics(runs, metrics)
        by = None if cfg.by is None else listed("by", cfg.by)
        if not isinstance(cfg.x, str | None):
            raise ValueError(f"x: expected a name, got {cfg.x!r}")
        layout = laid_out(runs, cfg.x, by)
        # What failed is no result; its row in runs.csv has what there is of it.
        counted = once([run for run in runs if not run.failed], layout)
        groups = grouped(counted, layout.groups)
        write_csv(output / "runs.csv", run_columns(runs, layout.swept))
        write_csv(output / "table.csv", table_columns(groups, layout.groups, metrics))
        write_atomic(output / "table.md", markdown(groups, layout.groups, metrics))
        draw(runs, counted, layout, metrics, output / "figures")
    tell_states(runs)
    lines = plain(groups, layout.groups, metrics)
    print("", *lines[: MOST_PRINTED + 1], sep="\n")
    if len(lines) > MOST_PRINTED + 1:
        print(f"... {len(lines) - MOST_PRINTED - 1} more in table.md")
    print(flush=True)
    tell_layout(layout, metrics)
    tell_best(counted, layout)
    log.info("written to: %s (runs.csv, table.csv, table.md, figures)", output)
    return output


def listed(option: str, given: Any) -> list[str]:
    """A name or a list of names as a list.

    Raises:
        ValueError: It is something else.
    """
    names = list(given) if isinstance(given, ListConfig) else [given]
    if not all(isinstance(name, str | int) for name in names) or not (names or option == "by"):
        raise ValueError(f"{option}: expected a name or a list of names, got {given!r}")
    return [str(name) for name in names]


def read(names: Sequence[str]) -> list[Run]:
    """The runs, with one warning of all that is damaged.

    Raises:
        FileNotFoundError: There is no such run.
    """
    runs, damaged = read_runs(find_runs(names))
    if damaged:
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        log.warning("damaged, and left out: %s%s", ", ".join(damaged[:5]), more)
    if not runs:
        raise FileNotFoundError(f"sweep: {', '.join(names)} holds no run with a whole config")
    return runs


def check_metrics(runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """Raise ValueError for a metric that no run has, where some have others."""
    there = sorted({name for run in runs for name in run.metrics})
    for metric in metrics:
        if there and metric not in there:
            near = get_close_matches(metric, there, n=5, cutoff=0.5) or there[:5]
            raise ValueError(f"metric: no run has {metric}; near it are {', '.join(near)}")


def run_columns(runs: Sequence[Run], names: Sequence[str]) -> dict[str, list[Value | None]]:
    """The columns of `runs.csv`."""
    columns: dict[str, list[Value | None]] = {
        "folder": [run.folder for run in runs],
        "state": [run.status.state for run in runs],
        "message": [run.status.message for run in runs],
        "epochs": [run.epochs for run in runs],
    }
    columns |= {name: [run.value(name) for run in runs] for name in names}
    columns["seconds"] = [run.metrics.get("train/total_seconds") for run in runs]
    for name in sorted({name for run in runs for name in run.metrics}):
        columns[name] = [run.metrics.get(name) for run in runs]
    return columns


def draw(
    runs: Sequence[Run],
    counted: Sequence[Run],
    layout: Layout,
    metrics: Sequence[str],
    folder: Path,
) -> None:
    """The figures: of each metric, and of what all runs learned."""
    figures = {m.replace("/", "_"): metric_figure(counted, layout, m) for m in metrics}
    figures["learning_curves"] = curves_figure(runs, layout)
    for name, figure in figures.items():
        if figure is not None:
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / f"{name}.png")


def tell_states(runs: Sequence[Run]) -> None:
    """How far the sweep is, and why runs failed."""
    states = Counter(run.status.state for run in runs)
    log.info("%d runs: %s", len(runs), ", ".join(f"{n} {s}" for s, n in states.most_common()))
    failed = [run for run in runs if run.failed]
    for run in failed[:MOST_PRINTED]:
        log.info("failed: %s (%s)", run.folder, run.status.message or "for no known reason")
    if len(failed) > MOST_PRINTED:
        log.info("... %d more failed, see runs.csv", len(failed) - MOST_PRINTED)


def once(runs: Sequence[Run], layout: Layout) -> list[Run]:
    """The runs, of those with the same settings and seed the one that has come furthest."""
    kept: dict[tuple[Value | None, ...], Run] = {}
    for run in runs:
        settings = tuple(map(run.value, layout.swept))
        other = kept.setdefault(settings, run)
        if other is run:
            continue
        less, more = sorted((other, run), key=lambda one: (one.finished, one.epochs, one is other))
        kept[settings] = more
        log.warning("%s is %s again, and only one is counted", less.folder, more.folder)
    return list(kept.values())


def tell_layout(layout: Layout, metrics: Sequence[str]) -> None:
    """What the means are over, and what the figures do not tell apart."""
    if layout.over:
        log.info("mean ± sample standard deviation over: %s", ", ".join(layout.over))
    if layout.pooled:
        log.info(
            "too many lines for a figure, which has dots and no means: its colours do not tell "
            "%s apart; by=[NAME,...] chooses what they tell",
            ", ".join(layout.pooled),
        )
    if any(metric.startswith("test/") for metric in metrics):
        log.info("whatever the metric, the best run is chosen by %s", DECIDES)


def tell_best(runs: Sequence[Run], layout: Layout) -> None:
    """The best run of each kind of bounds that compare, and how it is tested again."""
    there = [run for run in runs if math.isfinite(run.metrics.get(DECIDES, math.nan))]
    if not there:
        log.info("no best run: none has %s yet", DECIDES)
    for kind in dict.fromkeys(line_of(run, layout.kinds) for run in there):
        own = [run for run in there if line_of(run, layout.kinds) == kind]
        best = max(own, key=lambda run: run.metrics[DECIDES])
        settings = [f"{name}={told(best.value(name))}" for name in layout.swept]
        of = ", ".join(f"{name}={value}" for name, value in zip(layout.kinds, kind, strict=True))
        log.info(
            "best run%s by %s (%.6g, %s): %s",
            f" of {of}" if len(own) < len(there) else "",
            *(DECIDES, best.metrics[DECIDES], best.status.state),
            ", ".join([best.folder, *settings]),
        )
        log.info("python -m svae.evaluate %s", shlex.quote(f"run={as_value(best.folder)}"))


def as_overrides(arguments: Sequence[str]) -> list[str]:
    """A command line whose first words may be paths, as Hydra takes it: with `sweep=PATHS`."""
    paths = []
    for argument in arguments:
        if not is_path(argument):
            break
        paths.append(as_value(argument))
    if not paths:
        return list(arguments)
    value = paths[0] if len(paths) == 1 else f"[{','.join(paths)}]"
    return [f"sweep={value}", *arguments[len(paths) :]]


def is_path(argument: str) -> bool:
    """Whether a word is a path and not an override or an option."""
    name, equals, _ = argument.partition("=")
    if not argument or argument[0] in "-+~":
        return False
    in_folder = "/" in name and not name.startswith("hydra/")
    return not equals or in_folder or bool(glob.glob(glob.escape(argument)))


run = command("sweep")(sweep)


def main() -> None:
    """Run the command; its first words may be paths."""
    before = sys.argv
    sys.argv = [before[0], *as_overrides(before[1:])]
    try:
        run()
    finally:
        sys.argv = before
