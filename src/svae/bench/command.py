"""`python -m svae.bench`: how fast a training step is here, as a table, a file and a figure."""

import json
import logging
import sys
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from svae.bench.alone import Failure, alone
from svae.bench.growth import AXES, GROWN, grown, growth_figure
from svae.bench.measure import (
    Work,
    measure_products,
    measure_reference,
    measure_time,
    measure_training,
)
from svae.bench.workloads import Workload, checked
from svae.command import command
from svae.errors import UserError, told_in_one_line
from svae.files import write_atomic
from svae.hardware import environment

__all__ = ["bench", "main"]

log = logging.getLogger(__name__)

Row = dict[str, Any]

#: Matrix products whose rates are measured, (m, k) times (k, n); the best of them is the limit.
PRODUCTS = ((4096, 512, 512), (4096, 1024, 512), (4096, 4096, 4096))
PRODUCTS_GPU = (*PRODUCTS, (8192, 8192, 8192))
SECONDS_PER_PRODUCT = 0.5

#: Heading, key and format of the columns after the first.
COLUMNS = (
    ("precision", "precision", "s"),
    ("s/step", "seconds_per_step", "#.3g"),
    ("images/s", "images_per_second", ".0f"),
    ("memory MB", "peak_memory_mb", ".0f"),
    ("x float32", "reference_ratio", ".2f"),
    ("% of limit", "limit_percent", ".1f"),
    ("% outside kernels", "outside_kernels_percent", ".1f"),
)


def bench(cfg: DictConfig) -> Path:
    """Measure the workloads one after the other, and print and write each.

    Returns:
        The path of `bench.json`.

    Raises:
        SystemExit: Some workload failed, with status 1, after the others were measured; or it was
            interrupted from the keyboard, with status 130.
    """
    with told_in_one_line():
        workloads = checked(cfg)
    path = Path(cfg.output_dir) / "bench.json"
    status = 0
    try:
        results = measure_all(cfg, workloads, path)
        if failures(results):
            status = 1
    except KeyboardInterrupt:
        status = 130
    print(flush=True)
    if path.is_file():
        log.info("%swritten to: %s", "interrupted; " if status == 130 else "", path)
    if status:
        sys.exit(status)
    return path


def measure_all(cfg: DictConfig, workloads: list[Workload], path: Path) -> Row:
    """What `bench.json` holds in the end; it is written after each workload.

    Raises:
        UserError: Not even matrix products can be measured, or the file cannot be written.
    """
    products = PRODUCTS_GPU if cfg.accelerator == "gpu" else PRODUCTS
    hardware = cfg.accelerator, cfg.precision
    try:
        rates = alone(measure_products, *hardware, products, SECONDS_PER_PRODUCT)
    except Failure as error:
        raise UserError(f"matrix products in {cfg.precision}: {error}") from error
    fastest = max(rates, key=lambda shape: rates[shape])
    threads = torch.get_num_threads()
    settings = {name: cfg[name] for name in ("accelerator", "precision", "seconds")}
    results: Row = {
        "environment": environment(),
        "settings": settings | {"threads": threads},
        "rates": {"tflop_per_second": rates[fastest], "tflop_per_second_by_shape": rates},
        "workloads": [],
    }
    print(
        f"{', '.join(hardware)}, threads: {threads}, "
        f"matrix products: {rates[fastest]:.3g} TFLOP/s ({fastest})\n"
    )
    print(heading(workloads), flush=True)
    known: dict[Work, Row] = {}
    for workload in workloads:
        row = measured(workload, cfg.seconds, rates[fastest])
        results["workloads"].append(row)
        known[workload.work] = row
        print(line(row, workloads), flush=True)
        # After each, so that what was measured is not lost with the next.
        save(path, results)

    grows = next((workload for workload in workloads if workload.name == GROWN), None)
    if cfg.growth and grows is not None:
        results["growth"] = measured_growth(grows.work, cfg.seconds, known)
        save(path, results)
        title = f"{GROWN}: time of a training step ({', '.join(hardware)})"
        figures = path.parent / "figures"
        figures.mkdir(exist_ok=True)
        growth_figure(results["growth"], title=title).savefig(figures / "growth.png")
    return results


def failures(results: Row) -> list[Row]:
    """The rows of what failed."""
    rows = [*results["workloads"], *chain.from_iterable(results.get("growth", {}).values())]
    return [row for row in rows if "error" in row]


def measured(workload: Workload, seconds: float, rate: float) -> Row:
    """A row of the table: what could be measured of a workload, and `error` where not all could.

    Arguments:
        workload: What is measured.
        seconds: At least how long.
        rate: What the machine does, in TFLOP/s.
    """
    work = workload.work
    row: Row = {
        "workload": workload.name,
        "precision": work.precision,
        "image_shape": list(work.image_shape),
        "batch_size": work.batch_size,
        "overrides": list(work.overrides),
    }
    try:
        row |= alone(measure_training, work, seconds)
    except Failure as error:
        return row | {"error": str(error)}
    least = row["operations_per_step"] / (1e12 * rate)
    row["limit_percent"] = 100 * least / row["seconds_per_step"]
    try:
        row |= alone(measure_reference, work, workload.reference_images, seconds)
    except Failure as error:
        return row | {"error": f"the float32 reference: {error}"}
    row["reference_ratio"] = row["reference_seconds_per_step"] / row["seconds_per_step"]
    return row


def measured_growth(work: Work, seconds: float, known: Mapping[Work, Row]) -> dict[str, list[Row]]:
    """The rows of each axis, by its name; what is in `known` is not measured again."""
    results: dict[str, list[Row]] = {}
    for axis in AXES:
        print(f"\n{axis.heading} ({GROWN})", flush=True)
        rows = results[axis.name] = []
        for value in axis.values:
            one = grown(work, axis, value)
            try:
                found = known[one] if one in known else alone(measure_time, one, seconds)
            except Failure as error:
                found = {"error": str(error)}
            # Of a workload, the error may be that of its reference.
            timed = "seconds_per_step" in found
            kept = ("seconds_per_step", "peak_memory_mb") if timed else ("error",)
            rows.append({axis.name: value} | {key: found[key] for key in kept})
            print(growth_line(rows[-1], axis.name), flush=True)
    return results


def heading(workloads: list[Workload]) -> str:
    """The first line of the table."""
    return "  ".join(["workload".ljust(first_width(workloads)), *(c[0] for c in padded())])


def line(row: Row, workloads: list[Workload]) -> str:
    """A line of the table; what went wrong stands at its end."""
    cells = [str(row["workload"]).ljust(first_width(workloads))]
    for name, key, form in padded():
        text = format(row[key], form) if key in row else "-"
        cells.append(text.ljust(len(name)) if form == "s" else text.rjust(len(name)))
    if "error" in row:
        cells.append(f"failed: {row['error']}")
    return "  ".join(cells)


def growth_line(row: Row, name: str) -> str:
    """A line of the growth's numbers."""
    if "error" in row:
        return f"{name} {row[name]:>5}  failed: {row['error']}"
    return f"{name} {row[name]:>5}  {format(row['seconds_per_step'], '#.3g'):>6} s/step"


def padded() -> list[tuple[str, str, str]]:
    """The columns, their headings as wide as what stands below."""
    widest = len("bf16-mixed")
    return [
        (name.ljust(widest) if form == "s" else name.rjust(8), key, form)
        for name, key, form in COLUMNS
    ]


def first_width(workloads: list[Workload]) -> int:
    """The width of the column of names."""
    return max(len(name) for name in ("workload", *(w.name for w in workloads)))


def save(path: Path, results: Row) -> None:
    """Write what there is so far."""
    with told_in_one_line():  # a full disk, for one
        write_atomic(path, json.dumps(results, indent=2) + "\n")


main = command("bench")(bench)
