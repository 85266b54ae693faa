"""`python -m tests.crash_trials --kills 20`: kill a training at random moments, and see it end.

A small training is started, killed without warning (SIGKILL) at a random moment, and started again
by the same command, until it was killed so many times; then it may end. What it ends with has to
equal, to the last bit, what a training ends with that nobody killed, and whatever lies in its
folder after each kill has to be readable.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from svae.status import read_status

__all__ = ["Kill", "crash_trial", "differences"]

ROOT = Path(__file__).parents[1]

SETTINGS = [
    "dataset.train_copies=1",
    "dataset.eval_copies=1",
    "dataset.batch_size=100",
    "model.pixels_per_image=40",
    "model.encoder.hidden=16",
    "model.generator.hidden=16",
    "evaluation.iwae_samples=2",
    "callbacks.figures.every_n_epochs=0",
    "callbacks.early_stopping.patience=1000",
    "callbacks.last.every_minutes=0.001",
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.enable_progress_bar=false",
]


class Kill(NamedTuple):
    """What a killed training left.

    Arguments:
        seconds: When it was killed, after it had begun.
        epoch: The epoch of `last.ckpt`; None where there is none.
        step: Its step.
        unfinished: Files that were being written.
    """

    seconds: float
    epoch: int | None
    step: int | None
    unfinished: int


def start(*options: str) -> subprocess.Popen[bytes]:
    """A small training with some more options, in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "SVAE_TRUSTED_TARGETS": "tests",
    }
    command = [sys.executable, "-m", "svae.train", *SETTINGS, *options]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def begun(run: Path, process: subprocess.Popen[bytes], before: int) -> bool:
    """Wait until a training has written its status anew; whether it did before it ended."""
    path = run / "status.json"
    while process.poll() is None:
        if path.exists() and path.stat().st_mtime_ns != before:
            return True
        time.sleep(0.01)
    return False


def left(run: Path, seconds: float) -> Kill:
    """What a killed training left; whatever cannot be read raises."""
    yaml.safe_load((run / "config.yaml").read_text())
    assert read_status(run) is not None
    if (run / "metrics.csv").exists():
        with (run / "metrics.csv").open() as file:
            assert all(row["epoch"] for row in csv.DictReader(file))
    contents = {
        path.stem: torch.load(path, weights_only=True)
        for path in (run / "checkpoints").glob("*.ckpt")
    }
    last = contents.get("last", {})
    unfinished = len(list(run.rglob(".*.part")))
    return Kill(seconds, last.get("epoch"), last.get("global_step"), unfinished)


def crash_trial(run: Path, kills: int, within: float, options: list[str], seed: int) -> list[Kill]:
    """Kill a training several times, then let it end.

    Arguments:
        run: Its folder.
        kills: How often it is killed.
        within: The most seconds that it is given each time.
        options: What is added to its settings.
        seed: Of the moments.
    """
    moments, found = random.Random(seed), []
    for _ in range(kills):
        status = run / "status.json"
        before = status.stat().st_mtime_ns if status.exists() else 0
        process = start(f"hydra.run.dir={run}", *options)
        if not begun(run, process, before):
            raise RuntimeError(f"{run}: ended before it was killed, with {process.returncode}")
        seconds = moments.uniform(0.0, within)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise RuntimeError(f"{run}: had ended after {seconds:.1f} s; train for longer")
        found.append(left(run, seconds))
    if start(f"hydra.run.dir={run}", *options).wait() != 0:
        raise RuntimeError(f"{run}: did not come to its end; see {run / 'train.log'}")
    return found


def differences(run: Path, whole: Path) -> list[str]:
    """In which numbers two runs differ, times apart."""
    different = []
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (run, whole)]
    tables = [
        list(csv.DictReader((path / "metrics.csv").read_text().splitlines()))
        for path in (run, whole)
    ]
    if len(tables[0]) != len(tables[1]):
        different.append(f"{len(tables[0])} and {len(tables[1])} rows")
    rows = [("metrics.json", *metrics)]
    rows += [(f"row {i}", a, b) for i, (a, b) in enumerate(zip(*tables, strict=False))]
    for name, a, b in rows:
        keys = sorted(a.keys() | b.keys())
        different += [
            f"{name} {key}: {a.get(key)} and {b.get(key)}"
            for key in keys
            if "second" not in key and a.get(key) != b.get(key)
        ]
    return different


def main() -> None:
    """Run the trials and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--within", type=float, default=3.0, help="seconds of each life")
    parser.add_argument("--slow", type=float, default=0.0, help="seconds more for every file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="crash_trials"))
    options = [f"trainer.max_epochs={given.epochs}"]
    whole, run = folder / "whole", folder / "run"
    if start(f"hydra.run.dir={whole}", *options).wait() != 0:
        sys.exit(f"the training by itself failed; see {whole}")
    slow = f"+callbacks.slow={{_target_: tests.helpers.SlowDisk, seconds: {given.slow}}}"
    kills = crash_trial(
        run, given.kills, given.within, [*options, slow] if given.slow else options, given.seed
    )
    print("kill  after s  last.ckpt: epoch  step  files being written")
    for number, kill in enumerate(kills, start=1):
        print(
            f"{number:4d}  {kill.seconds:7.2f}  {kill.epoch!s:>16}  {kill.step!s:>4}  "
            f"{kill.unfinished}"
        )
    if different := differences(run, whole):
        sys.exit("\n".join(["DIFFERENT:", *different[:10], f"see {folder}"]))
    rows = len((run / "metrics.csv").read_text().splitlines()) - 1
    print(f"{given.kills} kills: metrics.json and all {rows} rows of metrics.csv are the same")
    if not given.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
