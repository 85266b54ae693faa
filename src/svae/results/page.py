"""The page: tables of our numbers beside the papers', figures, commands, and what is missing."""

import math
import os
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from svae.errors import UserError
from svae.files import write_atomic
from svae.numbers import significant
from svae.results.pictures import curve, png
from svae.results.plan import DATA, Column, Job, Result, Row
from svae.results.ran import Ran
from svae.results.running import told_minutes
from svae.sweep.groups import Spread
from svae.typed import as_value

__all__ = ["MARK", "check_ours", "write_page"]

#: What a page begins with that may be written again.
MARK = "<!-- Written by python -m svae.results from run directories; do not edit. -->"
#: Figures of runs beside each other.
ACROSS = 3
#: Nothing is known.
NONE = "–"
SECONDS = "train/total_seconds"

#: What stands in the place of a number.
STATES = {
    "not run": "not run",
    "left out": "not run",
    "other": "other settings",
    "unfinished": "not finished",
    "failed": "failed",
}

Found = Mapping[Job, Ran]


def check_ours(path: Path) -> None:
    """Raise UserError where a page would overwrite something that is not such a page."""
    if path.is_dir() or (path.exists() and not path.read_text(errors="replace").startswith(MARK)):
        raise UserError(f"page: {path} is there and was not written by svae.results; name another")


def write_page(
    path: Path,
    results: Mapping[str, Result],
    found: Found,
    *,
    size: str,
    folder: Path,
    figures: Path,
    records: Path | None = None,
) -> None:
    """Write the page and its figures. The same runs give the same bytes.

    Arguments:
        path: Of the page.
        results: By their names.
        found: What became of all their runs.
        size: Of the plan.
        folder: That of the runs.
        figures: Where figures go, under names that stay the same.
        records: The folder of the records; None where they are not used.
    """
    parts = [MARK, "", "# Results", "", *_heading(results, found, size, records)]
    for result in results.values():
        parts += _section(result, found, folder, figures, path.parent)
    write_atomic(path, "\n".join(parts).rstrip() + "\n")


def _heading(
    results: Mapping[str, Result], found: Found, size: str, records: Path | None
) -> Iterator[str]:
    jobs = dict.fromkeys(job for result in results.values() for job in result.jobs)
    finished = sum(found[job].state == "finished" for job in jobs)
    kept = "" if records is None else f", whose records are in `{records.as_posix()}`"
    yield (
        f"Trained by `python -m svae.results size={size}`, which goes on where it was ended: "
        f"{finished} of {len(jobs)} runs are finished. Numbers are of the test split, mean ± "
        f"sample standard deviation over the seeds, and come from run directories alone{kept}. "
        f"**Bold** is what falls short of a paper's number; {NONE} is a number that there is not."
    )
    yield ""
    for result in results.values():
        yield f"- [{result.title}](#{_anchor(result.title)}){_of(result)}"
    yield ""


def _of(result: Result) -> str:
    return f" ({result.place})" if result.place else ""


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _section(
    result: Result, found: Found, folder: Path, figures: Path, beside: Path
) -> Iterator[str]:
    yield f"## {result.title}"
    yield ""
    if result.place or result.text:
        yield " ".join([f"*{result.place}.*"] * bool(result.place) + [result.text]).strip()
        yield ""
    yield from _table(_cells(result, found))
    yield ""
    for name, data, caption in _curves(result, found):
        yield _shown(name, data, caption, figures, beside)
        yield ""
    pictures = list(_pictures(result, found, folder, figures))
    shown = [_shown(*one, figures, beside) for one in pictures]
    for first in range(0, len(pictures), ACROSS):
        here = slice(first, first + ACROSS)
        yield from _table([[caption for _, _, caption in pictures[here]], shown[here]])
        yield ""
    if short := list(_short_of(result, found)):
        yield "Short of the paper:"
        yield ""
        yield from short
        yield ""
    if result.remark:
        yield result.remark
        yield ""
    yield from _machines(result, found)
    yield from _missing(result, found)
    yield from _commands(result, folder)


def _table(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    rows = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    rows.insert(1, ["---"] * len(rows[0]))
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _cells(result: Result, found: Found) -> list[list[str]]:
    """The table, its heading first."""
    rows = list(result.rows.values())
    grouped = any(row.group for row in rows)
    head = [""] * (1 + grouped)
    if result.sweep is not None:
        many = len(result.columns) > 1
        values = [str(value) for value in result.sweep.values]
        head[0] = result.sweep.setting
        table = [[*head, *([""] if many else []), *values, "seeds", "training"]]
        for row in rows:
            for column in result.columns:
                cells = [_told(column, jobs, found) for jobs in row.jobs]
                named = [row.group] * grouped + [row.label] + [column.name] * many
                table.append([*named, *cells, *_effort(row, found)])
        return table
    compared = {metric for row in rows for metric in row.paper}
    for column in result.columns:
        head += [column.name] + ["paper"] * (column.metric in compared)
    table = [[*head, "seeds", "training"]]
    for row in rows:
        (jobs,) = row.jobs
        cells = [row.group] * grouped + [row.label]
        for column in result.columns:
            told = _told(column, jobs, found)
            cells.append(f"**{told}**" if _is_short(row, column, found) else told)
            if column.metric in compared:
                cells.append(_number(column, row.paper.get(column.metric)))
        table.append([*cells, *_effort(row, found)])
    return table


def _finished(jobs: Sequence[Job], found: Found) -> list[Ran]:
    return [found[job] for job in jobs if found[job].state == "finished"]


def _spread(metric: str, jobs: Sequence[Job], found: Found, factor: float = 1.0) -> Spread:
    known = [one.metrics[metric] for one in _finished(jobs, found) if metric in one.metrics]
    values = [factor * value for value in known if math.isfinite(value)]
    return Spread(
        len(values),
        statistics.fmean(values) if values else math.nan,
        statistics.stdev(values) if len(values) > 1 else math.nan,
    )


def _told(column: Column, jobs: Sequence[Job], found: Found) -> str:
    """A metric of the runs of all seeds, or why there is none."""
    if not _finished(jobs, found):
        states = dict.fromkeys(STATES[found[job].state] for job in jobs)
        return ", ".join(states)
    spread = _spread(column.metric, jobs, found, 100.0 if column.percent else 1.0)
    if not spread.runs:
        return NONE
    # Of one run nothing says how many digits matter.
    told = str(spread) if spread.runs > 1 else significant(spread.mean, 4)
    return f"{told}{' %' if column.percent else ''}"


def _number(column: Column, value: float | None) -> str:
    if value is None:
        return NONE
    return f"{100 * value:.5g} %" if column.percent else f"{value:g}"


def _effort(row: Row, found: Found) -> list[str]:
    """How many runs each mean is of, and how long one took to train."""
    counts = sorted({len(_finished(jobs, found)) for jobs in row.jobs})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    trained = [job.of or job for jobs in row.jobs for job in jobs]
    seconds = _spread(SECONDS, list(dict.fromkeys(trained)), found)
    return [seeds, told_minutes(seconds.mean / 60) if seconds.runs else NONE]


def _is_short(row: Row, column: Column, found: Found) -> bool:
    """Whether a row's mean is worse than the paper's number."""
    if row.baseline or column.better is None or column.metric not in row.paper:
        return False
    mean = _spread(column.metric, row.jobs[0], found).mean
    paper = row.paper[column.metric]
    return mean < paper if column.better == "higher" else mean > paper


def _short_of(result: Result, found: Found) -> Iterator[str]:
    for row in result.rows.values():
        columns = [column for column in result.columns if _is_short(row, column, found)]
        if not columns:
            continue
        told = ", ".join(
            f"{column.name} {_told(column, row.jobs[0], found)} beside "
            f"{_number(column, row.paper[column.metric])}"
            for column in columns
        )
        yield f"- {_named(row)}: {told}. {row.why or 'Why is not known.'}"


def _named(row: Row) -> str:
    return f"{row.group}, {row.label}" if row.group else row.label


def _shown(name: str, data: bytes, caption: str, figures: Path, beside: Path) -> str:
    """A figure on the page, written where it belongs."""
    write_atomic(figures / name, data)
    return f"![{caption}]({Path(os.path.relpath(figures / name, beside)).as_posix()})"


def _curves(result: Result, found: Found) -> Iterator[tuple[str, bytes, str]]:
    """The file names, content and captions of the figures over what is swept."""
    for column in result.curves:
        data = curve(result, column, found)
        if data is not None:
            name = f"{result.name}_{column.metric.replace('/', '_')}.png"
            yield name, data, f"{column.name} against {_swept(result)}"


def _pictures(
    result: Result, found: Found, folder: Path, figures: Path
) -> Iterator[tuple[str, bytes, str]]:
    """Those of figures of runs: of the first seed that has it."""
    for picture in result.pictures:
        row = result.rows[picture.row]
        at = 0 if result.sweep is None else result.sweep.values.index(picture.value or 0)
        value = "" if picture.value is None else f"_{picture.value}"
        name = f"{result.name}_{row.name}{value}_{picture.name}.png"
        for job in row.jobs[at]:
            if found[job].state != "finished" or picture.seed not in (None, job.seed):
                continue
            # A record has no figures, but the page on which it was had them.
            own = folder / job.name / "figures" / f"{picture.name}.png"
            data = png(figures / name if found[job].recorded else own)
            if data is not None:
                yield name, data, picture.caption
                break


def _swept(result: Result) -> str:
    return "" if result.sweep is None else result.sweep.setting


def _machines(result: Result, found: Found) -> Iterator[str]:
    """What the runs ran on, and when; and of which there is no more than was on a page."""
    there = [found[job] for job in dict.fromkeys(result.jobs) if found[job].state == "finished"]
    machines = sorted({one.machine for one in there if one.machine})
    told = []
    if machines:
        dates = sorted({one.date for one in there})
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        told.append(f"Ran on {'; '.join(machines)} ({when}).")
    for source, count in sorted(Counter(one.source for one in there if one.source).items()):
        runs = "1 run" if count == 1 else f"{count} runs"
        told.append(f"Of {runs} the directory is gone: recovered from {source}.")
    if told:
        yield " ".join(told)
        yield ""


def _missing(result: Result, found: Found) -> Iterator[str]:
    """What there is no number of, and why; a line for each row."""
    lines, count = [], 0
    for row in result.rows.values():
        jobs = [job for jobs in row.jobs for job in jobs]
        reasons: dict[str, list[str]] = {}
        for job in jobs:
            one = found[job]
            if one.state != "finished":
                why = f" ({one.message})" if one.message else ""
                reasons.setdefault(f"{STATES[one.state]}{why}", []).append(job.name)
        for reason, names in reasons.items():
            count += len(names)
            told = f"`{names[0]}`" if len(jobs) == 1 else f"{len(names)} of {len(jobs)} runs"
            lines.append(f"- {_named(row)}: {told}: {reason}")
    if lines:
        many = f"{count} runs are" if count > 1 else "1 run is"
        yield f"<details><summary>{many} missing</summary>"
        yield ""
        yield from lines
        yield ""
        yield "</details>"
        yield ""


def _commands(result: Result, folder: Path) -> Iterator[str]:
    """How each row is made."""
    yield "<details><summary>Commands</summary>"
    yield ""
    yield "```"
    yield f"python -m svae.results only=[{result.name}]"
    for row in result.rows.values():
        yield from _lines(row, folder)
    yield "```"
    yield ""
    yield "</details>"
    yield ""


def _lines(row: Row, folder: Path) -> Iterator[str]:
    """The commands of a row: trainings that differ in one value alone are one sweep."""
    given = [[o for o in jobs[0].overrides if not o.startswith("seed=")] for jobs in row.jobs]
    differ = [i for i, each in enumerate(zip(*given, strict=True)) if len(set(each)) > 1]
    if row.jobs[0][0].of is not None or len(differ) != 1:
        yield from (_command(jobs, folder) for jobs in row.jobs)
        return
    at = differ[0]
    values = ",".join(overrides[at].partition("=")[2] for overrides in given)
    overrides = [*given[0][:at], f"{given[0][at].partition('=')[0]}={values}", *given[0][at + 1 :]]
    seeds = ",".join(str(job.seed) for job in row.jobs[0])
    yield _line("svae.train", "-m", *overrides, f"seed={seeds}")


def _command(jobs: Sequence[Job], folder: Path) -> str:
    """The command of runs that differ in their seed alone."""
    job = jobs[0]
    if job.of is not None:
        names = [as_value(str(folder / one.of.name)) for one in jobs if one.of is not None]
        runs = names[0] if len(names) == 1 else f"[{','.join(names)}]"
        return _line("svae.evaluate", f"run={runs}", *job.overrides)
    overrides = [o for o in job.overrides if not o.startswith("seed=")]
    seeds = ",".join(str(one.seed) for one in jobs)
    many = ["-m"] if len(jobs) > 1 else []
    return _line("svae.train", *many, *overrides, f"seed={seeds}")


def _line(*words: str) -> str:
    # In double quotes, the shell puts the folder of the data sets in.
    quoted = (f'"{word}"' if DATA in word else shlex.quote(word) for word in words)
    return f"python -m {' '.join(quoted)}"
