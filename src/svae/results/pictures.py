"""The figures of the page: those of runs, made small, and curves over what is swept."""

import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from svae.figures import Point, sweep_figure
from svae.results.plan import Column, Job, Result
from svae.results.ran import Ran

__all__ = ["LIMIT", "curve", "small"]

#: The bytes that a figure may have.
LIMIT = 200_000
#: A figure that is still too large is made smaller by this factor, as often as it takes.
SMALLER = 0.8


def small(data: bytes, limit: int = LIMIT) -> bytes:
    """A PNG of fewer than `limit` bytes: as it is, else with 256 colours, else smaller too."""
    if len(data) < limit:
        return data
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    while True:
        content = io.BytesIO()
        image.quantize(256, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
        if content.tell() < limit or max(image.size) < 16:
            return content.getvalue()
        size = [max(1, round(SMALLER * side)) for side in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def curve(result: Result, column: Column, found: Mapping[Job, Ran]) -> bytes | None:
    """A metric against what is swept, a line for each row; None where no run has it.

    Arguments:
        result: With a sweep.
        column: The metric.
        found: What became of the runs.
    """
    assert result.sweep is not None
    points = [
        Point(value, (row.label,), found[job].metrics[column.metric], row.group)
        for row in result.rows.values()
        for value, jobs in zip(result.sweep.values, row.jobs, strict=True)
        for job in jobs
        if column.metric in found[job].metrics
    ]
    if not points:
        return None
    labels = list(dict.fromkeys(row.label for row in result.rows.values()))
    figure = sweep_figure(
        points,
        x=result.sweep.setting,
        metric=column.metric,
        lines=[""] if len(labels) > 1 else [],
        known=[(label,) for label in labels],
        title=result.title,
    )
    content = io.BytesIO()
    figure.savefig(content)
    return small(content.getvalue())


def png(path: Path) -> bytes | None:
    """A figure of a run, made small; None where there is none."""
    try:
        return small(path.read_bytes())
    except FileNotFoundError:
        return None
