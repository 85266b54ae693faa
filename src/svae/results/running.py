"""Runs in processes of their own, some at a time, until all are done or somebody asks to end."""

import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from svae.results.plan import Job
from svae.results.ran import NO_BAR, Ran, arguments, ran
from svae.signals import Signals
from svae.typed import as_value

__all__ = ["Machine", "command_line", "told_minutes", "work_off"]

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Machine:
    """How runs are started.

    Arguments:
        at_once: How many run at the same time.
        threads: Of each on a processor; None for as many as torch takes.
        config_dirs: Folders with configs of the user's.
    """

    at_once: int
    threads: int | None
    config_dirs: tuple[str, ...] = ()


@dataclass
class _Process:
    job: Job
    process: subprocess.Popen[bytes]
    output: BinaryIO
    started: float


def work_off(
    jobs: Sequence[Job], folder: Path, machine: Machine, signals: Signals
) -> dict[Job, str]:
    """Run what has not finished, each run after that which it needs.

    Arguments:
        jobs: Those that are to be run, in this order.
        folder: That of all runs of their size.
        machine: How they are started.
        signals: The requests to end: no further run is begun, and those at work end after their
            step.

    Returns:
        The runs that failed, and why.
    """
    queue = _Queue(jobs, folder, machine)
    passed_on = False
    interrupts = 0
    while queue.waiting or queue.running:
        try:
            if signals.received and not passed_on:
                passed_on = True
                queue.waiting.clear()
                queue.send(signals.received)
            queue.collect(interrupted=signals.received is not None)
            queue.start()
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            # The trainings end at once at the second, whatever they do at the third.
            interrupts += 1
            queue.send(signal.SIGINT if interrupts == 1 else signal.SIGKILL)
    return queue.failed


class _Queue:
    """Runs that wait, run, and failed."""

    def __init__(self, jobs: Sequence[Job], folder: Path, machine: Machine) -> None:
        self.waiting = list(jobs)
        self.running: list[_Process] = []
        self.failed: dict[Job, str] = {}
        self.folder, self.machine = folder, machine
        self.count, self.begun = len(jobs), 0

    def start(self) -> None:
        """Start what may be started."""
        for job in list(self.waiting):
            if len(self.running) >= self.machine.at_once:
                return
            if job.of is not None:
                if job.of in (*self.waiting, *(one.job for one in self.running)):
                    continue
                if (needed := ran(job.of, self.folder)).state != "finished":
                    self.waiting.remove(job)
                    self.begun += 1
                    self._fail(job, f"its training {job.of.name} is {_told(needed)}")
                    continue
            self.waiting.remove(job)
            self._begin(job)

    def _begin(self, job: Job) -> None:
        place = self.folder / job.name
        output = self.folder / f"{job.name}.log"
        output.parent.mkdir(parents=True, exist_ok=True)
        self.begun += 1
        what = "training" if job.of is None else "evaluation"
        about = "" if job.minutes is None else f", about {told_minutes(job.minutes)}"
        log.info("[%d/%d] %s: %s begins%s", self.begun, self.count, job.name, what, about)
        if job.of is not None:
            _clear(place)
        environment = dict(os.environ)
        environment.pop("HYDRA_FULL_ERROR", None)  # this command's own, and no wish of the user's
        if self.machine.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.machine.threads)
        file = output.open("ab")
        # In a session of its own: Ctrl-C would reach it twice, and end it at once.
        process = subprocess.Popen(
            command_line(job, self.folder, self.machine),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        self.running.append(_Process(job, process, file, time.monotonic()))

    def collect(self, interrupted: bool) -> None:
        """Take note of what has ended."""
        for one in list(self.running):
            if (code := one.process.poll()) is None:
                continue
            self.running.remove(one)
            one.output.close()
            found = ran(one.job, self.folder)
            if code == 0 and found.state == "finished":
                bound = found.metrics.get("test/elbo", math.nan)
                told = "" if math.isnan(bound) else f" (test/elbo {bound:.5g})"
                minutes = told_minutes((time.monotonic() - one.started) / 60)
                log.info("%s: finished in %s%s%s", one.job.name, minutes, told, self._left())
            elif interrupted:
                log.info("%s: interrupted", one.job.name)
            else:
                path = Path(one.output.name)
                self._fail(one.job, f"{found.message or _last_line(path, code)} (log: {path})")

    def _fail(self, job: Job, why: str) -> None:
        self.failed[job] = why
        log.error("%s: failed: %s", job.name, why)

    def _left(self) -> str:
        """How long the rest takes, of which that is known."""
        jobs = [*self.waiting, *(one.job for one in self.running)]
        known = [job.minutes for job in jobs if job.minutes is not None]
        if not known:
            return ""
        least = max(max(known), sum(known) / self.machine.at_once)
        return f"; the rest takes about {told_minutes(least)}"

    def send(self, number: signal.Signals) -> None:
        """Send a signal to what runs."""
        for one in self.running:
            one.process.send_signal(number)


def told_minutes(minutes: float) -> str:
    """A time for a person."""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    if minutes < 100:
        return f"{minutes:.2g} min" if minutes < 10 else f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h"


def command_line(job: Job, folder: Path, machine: Machine) -> list[str]:
    """What starts a run."""
    return [
        *(sys.executable, "-m", f"svae.{'train' if job.of is None else 'evaluate'}"),
        *(word for path in machine.config_dirs for word in ("--config-dir", path)),
        f"hydra.run.dir={as_value(str(folder / job.name))}",
        *arguments(job, folder),
        NO_BAR,
    ]


def _clear(place: Path) -> None:
    """Remove what there is of an evaluation that was broken off, or of an older training's.

    It goes on nowhere, and would be refused a folder that is not empty.
    """
    for name in ("metrics.json", "report.html"):
        (place / name).unlink(missing_ok=True)
    figures = place / "figures"
    if figures.is_dir():
        for path in figures.glob("*.png"):
            path.unlink()
        figures.rmdir()


def _told(found: Ran) -> str:
    return f"{found.state} ({found.message})" if found.message else found.state


def _last_line(path: Path, code: int) -> str:
    """What a process said last, which is why it ended."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    said = next((line for line in reversed(lines) if line), "")
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return said or f"ended with status {code}"
