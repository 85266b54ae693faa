"""Runs that differ in their seed alone, put together: a row of a table for each such group."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from svae.numbers import significant
from svae.sweep.runs import Run, Value
from svae.sweep.swept import ordered

__all__ = ["Group", "Spread", "grouped", "markdown", "plain", "table_columns", "told"]


class Spread(NamedTuple):
    """A metric of several runs.

    Arguments:
        runs: How many runs have a finite one.
        mean: NaN of none.
        std: The sample standard deviation; NaN of fewer than two.
    """

    runs: int
    mean: float
    std: float

    def __str__(self) -> str:
        """The mean with the digits that matter beside the deviation."""
        if math.isnan(self.mean):
            return ""
        if not self.std > 0:  # of one run it is NaN
            return significant(self.mean, 5)
        exponent = math.floor(math.log10(self.std))
        digits = max(0, 1 - exponent)
        # Two runs that agree by chance do not make more digits matter than one run has.
        most = max(0, 4 - math.floor(math.log10(abs(self.mean)))) if self.mean else digits
        digits = min(digits, most)
        return f"{self.mean:.{digits}f} ± {self.std:.{max(digits, -exponent)}f}"


@dataclass
class Group:
    """Runs with the same values of what tells groups apart."""

    values: list[Value | None]
    runs: list[Run]

    @property
    def unfinished(self) -> int:
        """How many of them may still get better: whose numbers are of some epoch on the way."""
        return sum(not run.finished for run in self.runs)

    def spread(self, metric: str) -> Spread:
        """A metric's mean and spread over the runs that have it."""
        found = [run.metrics[metric] for run in self.runs if metric in run.metrics]
        found = [value for value in found if math.isfinite(value)]
        return Spread(
            len(found),
            statistics.fmean(found) if found else math.nan,
            statistics.stdev(found) if len(found) > 1 else math.nan,
        )


def grouped(runs: Sequence[Run], names: Sequence[str]) -> list[Group]:
    """The groups of runs that are alike in the named settings, in the order of their values."""
    groups: dict[tuple[int, ...], Group] = {}
    orders = [ordered(runs, name) for name in names]
    for run in runs:
        values = [run.value(name) for name in names]
        place = tuple(order.index(v) for order, v in zip(orders, values, strict=True))
        groups.setdefault(place, Group(values, [])).runs.append(run)
    return [groups[place] for place in sorted(groups)]


def table_columns(
    groups: Sequence[Group], names: Sequence[str], metrics: Sequence[str]
) -> dict[str, list[Value | None]]:
    """The columns of `table.csv`: the settings, the numbers of runs, and each metric.

    A metric has the columns `split/name`, its mean, `split/name_std` and `split/name_n`, the
    number of runs that have it.
    """
    columns: dict[str, list[Value | None]] = {
        name: [group.values[i] for group in groups] for i, name in enumerate(names)
    }
    columns["runs"] = [len(group.runs) for group in groups]
    columns["unfinished"] = [group.unfinished for group in groups]
    for metric in metrics:
        spreads = [group.spread(metric) for group in groups]
        columns[metric] = [known(spread.mean) for spread in spreads]
        columns[f"{metric}_std"] = [known(spread.std) for spread in spreads]
        columns[f"{metric}_n"] = [spread.runs for spread in spreads]
    return columns


def told(value: Value | None) -> str:
    """A setting for a person: a number with at most six digits, nothing of None."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def known(number: float) -> float | None:
    """A number; None, an empty cell, where it is NaN."""
    return None if math.isnan(number) else number


def cells(
    groups: Sequence[Group], names: Sequence[str], metrics: Sequence[str]
) -> list[list[str]]:
    """A table for a person, its heading first: `mean ± deviation`, and (n) where some lack it."""
    rows = [[*names, "runs", *metrics]]
    for group in groups:
        row = [told(value) for value in group.values]
        row.append(f"{len(group.runs)}")
        if group.unfinished:
            row[-1] += f" ({group.unfinished} unfinished)"
        for metric in metrics:
            spread = group.spread(metric)
            some = 0 < spread.runs < len(group.runs)
            row.append(f"{spread} ({spread.runs})" if some else str(spread))
        rows.append(row)
    return rows


def markdown(groups: Sequence[Group], names: Sequence[str], metrics: Sequence[str]) -> str:
    """The table in Markdown."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in cells(groups, names, metrics)]
    rows.insert(1, ["---"] * len(rows[0]))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def plain(groups: Sequence[Group], names: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """The table in lines of text, what is below each other being as wide."""
    rows = cells(groups, names, metrics)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = len(names)
    return [
        "  ".join(
            cell.ljust(width) if place < texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
