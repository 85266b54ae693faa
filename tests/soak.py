"""`python -m tests.soak --minutes 60`: does the memory of a long training stay flat?

A small training with a validation, checkpoints and all figures in every epoch, or with `--sweep`
one small training after the other in the same process, goes on for so long. Its anonymous memory
is read all the while; the slope of a line through the second half tells what is not given back.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
from tests.crash_trials import start

__all__ = ["Reading", "anonymous_mb", "growth", "soak"]

TRAINING = ["trainer.max_epochs=1000000", "callbacks.figures.every_n_epochs=1"]
SWEEP = ["hydra.mode=MULTIRUN", "seed=range(1,100000)", "trainer.max_epochs=1"]
SWEEP += ["hydra.sweeper.max_batch_size=20"]  # composed so many at a time


class Reading(NamedTuple):
    """The anonymous memory of a process, in 10^6 bytes, at a time after its start, in seconds."""

    seconds: float
    mb: float


def anonymous_mb(process: int) -> float:
    """The memory of a process that no file stands behind, in 10^6 bytes; Linux."""
    with open(f"/proc/{process}/status") as file:
        line = next(line for line in file if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024 / 1e6


def growth(readings: list[Reading]) -> float:
    """10^6 bytes an hour, from the second half of the readings."""
    seconds, mb = np.array(readings[len(readings) // 2 :]).T
    slope, _ = np.polyfit(seconds - seconds[0], mb, 1)
    return float(slope * 3600)


def soak(minutes: float, *options: str) -> list[Reading]:
    """The memory of a training, read 300 times.

    Raises:
        RuntimeError: It ended before its time.
    """
    process = start(*options)
    began, readings = time.monotonic(), []
    try:
        while (seconds := time.monotonic() - began) < 60 * minutes:
            if process.poll() is not None:
                raise RuntimeError(f"the training ended with status {process.returncode}")
            readings.append(Reading(seconds, anonymous_mb(process.pid)))
            time.sleep(60 * minutes / 300)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
    return readings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--sweep", action="store_true", help="many trainings, not a long one")
    parser.add_argument("--limit", type=float, default=50.0, help="10^6 bytes an hour")
    given = parser.parse_args()
    kind, options = ("sweep", SWEEP) if given.sweep else ("run", TRAINING)
    with tempfile.TemporaryDirectory() as folder:
        readings = soak(given.minutes, *options, f"hydra.{kind}.dir={folder}/{kind}")
    for reading in readings[:: max(1, len(readings) // 20)]:
        print(f"{reading.seconds:8.0f} s  {reading.mb:8.1f} MB")
    slope = growth(readings)
    print(f"second half: {slope:+.1f} MB an hour")
    sys.exit(slope > given.limit)


if __name__ == "__main__":
    main()
