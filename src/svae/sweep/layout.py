"""Which setting of a sweep lies along the axis of a figure, which make lines, and which panels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from svae.figures import Curve, Point, learning_figure, sweep_figure, sweep_map_figure
from svae.sweep.groups import told
from svae.sweep.runs import Run
from svae.sweep.swept import is_seed, kinds, numeric, ordered, swept, varies

__all__ = ["Layout", "curves_figure", "laid_out", "line_of", "metric_figure"]

#: The axis where nothing else is asked for: that of figure 2 of the spatial-VAE paper.
USUAL = "model.z_dim"
#: More lines cannot be told apart, more panels not be read.
MOST_LINES, MOST_PANELS = 18, 6


@dataclass(frozen=True)
class Layout:
    """How runs are put together in tables and figures.

    Arguments:
        swept: What was swept, seeds included.
        x: What lies along the axis; None where the runs differ in their seed alone.
        lines: What tells lines apart.
        known: All lines, those of failed runs included: so figures have the same colours.
        panel: What tells panels apart.
        is_map: Whether two numbers make a map in the place of lines.
        pooled: What would make too many lines, so that a figure has dots and no means.
        groups: What tells the rows of the table apart.
        kinds: What makes the bounds of one run not compare with those of another.
    """

    swept: list[str]
    x: str | None
    lines: list[str]
    known: list[tuple[str, ...]]
    panel: str | None
    is_map: bool
    pooled: list[str]
    groups: list[str]
    kinds: list[str]

    def line(self, run: Run) -> tuple[str, ...]:
        """The line of a run in a figure."""
        return line_of(run, self.lines)

    @staticmethod
    def text(run: Run, name: str | None) -> str:
        """A setting of a run for a person; nothing of None."""
        return "" if name is None else told(run.value(name))

    @staticmethod
    def number(run: Run, name: str) -> float:
        """A setting that is a number."""
        value = run.value(name)
        assert isinstance(value, int | float)
        return value

    @property
    def over(self) -> list[str]:
        """What runs of one mean differ in."""
        return [name for name in self.swept if name not in self.groups]


def line_of(run: Run, names: Sequence[str]) -> tuple[str, ...]:
    """The settings of a run, for a person."""
    return tuple(told(run.value(name)) for name in names)


def laid_out(runs: Sequence[Run], x: str | None, by: Sequence[str] | None) -> Layout:
    """The layout that was asked for, else the one that shows most.

    Arguments:
        runs: The runs.
        x: What lies along the axis.
        by: What tells lines and rows apart; the mean is over all else.

    Raises:
        ValueError: The runs do not differ in what was named.
    """
    found = swept(runs)
    for option, names in (("x", [] if x is None else [x]), ("by", by or [])):
        for name in names:
            if not varies(runs, name):
                raise ValueError(
                    f"{option}: {name} was not swept; swept: {', '.join(found) or 'nothing'}"
                )
    keys = [name for name in found if not is_seed(name)]
    numbers = [name for name in keys if numeric(runs, name)]
    apart = kinds(runs)
    compare = not set(apart) & set(keys)
    is_map = x is None and by is None and len(keys) == len(numbers) == 2 and compare
    if x is None:
        free = [name for name in keys if name not in (by or ())]
        first = [name for name in free if name in numbers] or free
        # Bounds that do not compare lie beside each other, in panels, if they can.
        x = USUAL if USUAL in free else min(first, key=lambda name: name in apart, default=None)
    lines = [name for name in (keys if by is None else by) if name != x]
    groups = [*lines, *([] if x is None else [x])]
    if by is None:
        groups = [*keys, *(name for name in groups if name not in keys)]
    few = [n for n in lines if n in apart and len(ordered(runs, n)) <= MOST_PANELS]
    panel = few[0] if by is None and few else None
    lines = [name for name in lines if name != panel]
    pooled: list[str] = []
    while not is_map and len({tuple(map(run.value, lines)) for run in runs}) > MOST_LINES:
        pooled.append(max(lines, key=lambda name: len(ordered(runs, name))))
        lines.remove(pooled[-1])
    known = list(dict.fromkeys(line_of(run, lines) for run in runs))
    return Layout(found, x, lines, known, panel, is_map, pooled, groups, apart)


def metric_figure(runs: Sequence[Run], layout: Layout, metric: str) -> Figure | None:
    """A metric against what was swept; None where no run has it."""
    there = [run for run in runs if math.isfinite(run.metrics.get(metric, math.nan))]
    if not there:
        return None
    x = layout.x
    if layout.is_map and x is not None:
        (y,) = layout.lines
        values = [
            (layout.number(run, x), layout.number(run, y), run.metrics[metric]) for run in there
        ]
        return sweep_map_figure(values, x=x, y=y, metric=metric, title=f"{metric} by {x} and {y}")
    number = x is not None and numeric(runs, x)
    points = [
        Point(
            "all runs" if x is None else layout.number(run, x) if number else layout.text(run, x),
            layout.line(run),
            run.metrics[metric],
            f"{layout.panel} {layout.text(run, layout.panel)}" if layout.panel else "",
            run.status.state == "finished",
        )
        for run in there
    ]
    title = metric if x is None else f"{metric} against {x}"
    if layout.over and not layout.pooled:
        title += f": mean and sample standard deviation over {', '.join(layout.over)}"
    return sweep_figure(
        points,
        x=x or "",
        metric=metric,
        lines=layout.lines,
        known=layout.known,
        title=title,
        joined=not layout.pooled,
    )


def curves_figure(runs: Sequence[Run], layout: Layout) -> Figure | None:
    """`val/elbo` of every run by epoch; None where no epoch was validated."""
    panels = layout.panel or layout.x
    if panels is None or len(ordered(runs, panels)) > MOST_PANELS:
        panels = None
    curves = [
        Curve(layout.line(run), *run.curve, layout.text(run, panels), run.status.state)
        for run in runs
        if run.curve[0]
    ]
    if not curves:
        return None
    return learning_figure(
        curves,
        metric="val/elbo",
        lines=layout.lines,
        known=layout.known,
        panels=panels or "",
        shared=panels not in layout.kinds,
        title="Learning curves: a line for each run",
    )
