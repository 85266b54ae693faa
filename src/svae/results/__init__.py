"""`python -m svae.results`: what the papers report, trained here, on one page."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from svae.checks import at_least, one_of
from svae.command import command
from svae.directories import lock
from svae.errors import UserError, told_in_one_line
from svae.hardware import accelerator_at_hand
from svae.results.page import check_ours, write_page
from svae.results.plan import Job, Result, plan_of
from svae.results.ran import Ran, check, ran
from svae.results.records import read_records, with_records, write_records
from svae.results.running import Machine, told_minutes, work_off
from svae.signals import Signals

__all__ = ["main", "results"]

log = logging.getLogger(__name__)

#: The states of runs that are begun, or gone on with.
TO_DO = ("not run", "unfinished", "failed")


def results(cfg: DictConfig) -> Path:
    """Run what is not finished of the plan, and write the records and the page.

    Returns:
        The path of the page.

    Raises:
        UserError: The config or the plan is wrong.
        SystemExit: Runs failed or were refused, with status 1, or it was asked to end, with 130
            or 128 and the number of the signal; the page is written before.
    """
    with told_in_one_line():
        nodes: Any = OmegaConf.to_container(cfg.results, resolve=True)
        plan = plan_of(nodes, cfg.size)
        wanted = _wanted(cfg, plan)
        machine = _machine(cfg)
        for name in ("run", "recorded"):
            if type(cfg[name]) is not bool:
                raise ValueError(f"{name}: expected true or false, got {cfg[name]!r}")
        folder = Path(cfg.folder, cfg.size)
        tail = "" if cfg.size == "small" else f"_{cfg.size}"
        page = Path(cfg.page or f"RESULTS{tail}.md")
        figures = Path(cfg.figures or f"docs/figures/results{tail}")
        # A trial with a page of its own does not touch the project's records.
        beside = Path("docs/results") if cfg.page is None else page.with_suffix("")
        records = Path(cfg.records or beside / cfg.size)
        known = read_records(records, plan)  # damage is told before a night of runs, not after it
        check_ours(page)
        if cfg.run:
            for job in wanted:
                check(job)
            folder.mkdir(parents=True, exist_ok=True)
            if not lock(folder):
                raise UserError(f"folder: {folder} is in use by another process")
    signals = Signals()
    failed: dict[Job, str] = {}
    if cfg.run:
        found = {job: ran(job, folder) for job in wanted}
        if cfg.recorded:
            found = with_records(found, known, to_run=True)
        refused = {job: one.message for job, one in found.items() if one.state == "other"}
        for job, why in refused.items():
            log.warning("%s is left as it is: %s; move it away to run it", job.name, why)
        todo = _to_do(found)
        _tell(found, todo, machine)
        with signals:
            failed = refused | work_off(todo, folder, machine, signals)
    everything = {job: ran(job, folder) for result in plan.values() for job in result.jobs}
    with told_in_one_line():
        known = write_records(records, everything)
        used = records if cfg.recorded else None
        if used is not None:
            everything = with_records(everything, known)
        write_page(
            *(page, plan, everything),
            size=cfg.size,
            folder=folder,
            figures=figures,
            records=used,
        )
    log.info("written to: %s", page)
    if failed:
        log.error("failed or refused: %d of %d runs", len(failed), len(wanted))
        for job, why in failed.items():
            log.error("  %s: %s", job.name, why)
    if signals.received:
        log.info("interrupted; the same command goes on")
        sys.exit(128 + signals.received)
    if failed:
        sys.exit(1)
    return page


def _wanted(cfg: DictConfig, plan: Mapping[str, Result]) -> list[Job]:
    """The runs of the results that are run, an evaluation after its training.

    The first seed of all before the second of any: whoever ends it early has the more rows.

    Raises:
        ValueError: There is no such result.
    """
    jobs = dict.fromkeys(job for name in _only(cfg, plan) for job in plan[name].jobs)
    return sorted(jobs, key=lambda job: job.seed)


def _only(cfg: DictConfig, plan: Mapping[str, Result]) -> list[str]:
    """The names of the results that are run.

    Raises:
        ValueError: There is no such result.
    """
    if cfg.only is None:
        return list(plan)
    names = list(cfg.only) if isinstance(cfg.only, ListConfig) else [cfg.only]
    for name in names:
        one_of("only", name, tuple(plan))
    return names


def _machine(cfg: DictConfig) -> Machine:
    """How runs are started here.

    Raises:
        ValueError: A number is wrong.
    """
    at_once = at_least("jobs", cfg.jobs, 1)
    threads = None if cfg.threads is None else at_least("threads", cfg.threads, 1)
    sources = HydraConfig.get().runtime.config_sources
    own = tuple(one.path for one in sources if one.provider == "command-line")
    return Machine(at_once, None if accelerator_at_hand() == "gpu" else threads, own)


def _to_do(found: Mapping[Job, Ran]) -> list[Job]:
    """The runs that are begun, or gone on with, in their order.

    An evaluation needs the directory of its training. Where there is only a record of that, it is
    trained again, and what is recorded of its other evaluations is then of another training.
    """
    todo = {job for job, one in found.items() if one.state in TO_DO}
    again = {job.of for job in todo if job.of is not None and found[job.of].recorded}
    return [
        job
        for job, one in found.items()
        if job in todo or job in again or (job.of in again and one.recorded and not job.skip)
    ]


def _tell(found: Mapping[Job, Ran], todo: list[Job], machine: Machine) -> None:
    """What is going to be run, and how long that takes."""
    there = [one for job, one in found.items() if one.state == "finished" and job not in todo]
    recorded = sum(one.recorded for one in there)
    noted = f" ({recorded} by their records alone: recorded=false runs these here)"
    minutes = [job.minutes for job in todo if job.minutes is not None]
    unknown = len(todo) - len(minutes)
    known = f", about {told_minutes(sum(minutes) / machine.at_once)}" if minutes else ""
    log.info(
        "%d runs: %d finished%s, %d to do, %d at a time%s%s",
        *(len(found), len(there), noted if recorded else "", len(todo), machine.at_once, known),
        f", {unknown} of unknown length" if unknown else "",
    )
    for job in todo:
        time = "unknown" if job.minutes is None else told_minutes(job.minutes)
        why = found[job].message if found[job].state == "not run" else ""
        log.info("  %-60s %s%s", job.name, time, f" ({why})" if why else "")
    for job, one in found.items():
        if one.state == "left out":
            log.info("  %-60s not run: %s", job.name, one.message)


main = command("results")(results)
