"""`python -m tests.big_stack --folder FOLDER`: train on a stack that is larger than its memory.

A stack of noisy, turned bars is written (161,292 images of 100 x 100 by default, 6.5 GB: the size
of EMPIAR-10025). All of it is looked through and shared out over the splits; some batches are
trained on, some of the other splits validated and tested. The anonymous and shared memory of all
processes is added up all the while; the limit is less than half of the stack. How fast the loader
is alone is told beside how fast the training went.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from svae.datasets import Particles
from svae.formats.mrc import write_stack

__all__ = ["held_gb", "images_per_second", "training", "write_bars"]

ROOT = Path(__file__).parents[1]


def write_bars(path: Path, count: int, side: int) -> None:
    """A stack of bars at random angles, with noise of their height; a few at a time in memory."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] - side / 2
    angles = np.linspace(0, np.pi, 180, endpoint=False)[:, None, None]
    along, across = (
        x * np.cos(angles) + y * np.sin(angles),
        y * np.cos(angles) - x * np.sin(angles),
    )
    bars = np.exp(-((5 * along / side) ** 2) - (12 * across / side) ** 2).astype(np.float32)

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, count, 1000):
            some = min(1000, count - start)
            noise = random.standard_normal((some, side, side), dtype=np.float32)
            yield noise + bars[random.integers(0, len(bars), some)]

    write_stack(path, chunks(), count, side, side, pixel_size=1.5)


def family(process: int) -> list[int]:
    """A process and all that it started."""
    try:
        threads = os.listdir(f"/proc/{process}/task")
        children = [
            int(child)
            for thread in threads
            for child in Path(f"/proc/{process}/task/{thread}/children").read_text().split()
        ]
    except OSError:  # it has ended
        return []
    return [process, *(member for child in children for member in family(child))]


def held_gb(process: int) -> float:
    """The memory of a process and its children that no file stands behind, in 10^9 bytes; Linux.

    Pages that several of them share count for each.
    """
    kilobytes = 0
    for member in family(process):
        try:
            lines = Path(f"/proc/{member}/status").read_text().splitlines()
        except OSError:
            continue
        found = (line.split() for line in lines if line.startswith(("RssAnon", "RssShmem")))
        kilobytes += sum(int(words[1]) for words in found)
    return kilobytes * 1024 / 1e9


def images_per_second(path: Path, workers: int, batches: int) -> float:
    """How many images the loader gives, in batches of 100, if nobody does anything with them."""
    data = Particles(str(path), check_pixels=False, workers=workers)
    data.setup()
    loader = iter(data.train_dataloader())
    next(loader)
    began = time.perf_counter()
    images = sum(len(batch["index"]) for batch in islice(loader, batches))
    return images / (time.perf_counter() - began)


def training(path: Path, run: Path, options: list[str]) -> tuple[float, float]:
    """The most memory that a training held, in 10^9 bytes, and its images per second.

    Raises:
        RuntimeError: It did not come to its end, or did not validate and test.
    """
    command = [sys.executable, "-m", "svae.train", "dataset=particles", f"dataset.path={path}"]
    command += [f"hydra.run.dir={run}", "trainer.enable_progress_bar=false", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(command, env=environment)
    most = 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.1):
            most = max(most, held_gb(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    done.set()
    watcher.join()
    if status:
        raise RuntimeError(f"the training ended with status {status}; see {run / 'train.log'}")
    metrics = json.loads((run / "metrics.json").read_text())
    if missing := {"val/elbo", "test/elbo"} - metrics.keys():
        raise RuntimeError(f"the training ended without {', '.join(sorted(missing))}")
    return most, metrics["train/images_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the stack is; it stays there")
    parser.add_argument("--images", type=int, default=161_292)
    parser.add_argument("--side", type=int, default=100)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--evaluated", type=int, default=4, help="batches of 500, of each split")
    parser.add_argument("--limit", type=float, default=3.0, help="10^9 bytes")
    parser.add_argument("options", nargs="*", help="settings of the training, such as seed=2")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = (given.folder or Path(temporary)) / f"bars_{given.images}_{given.side}.mrcs"
        if not path.exists():
            write_bars(path, given.images, given.side)
        print(f"{path}: {path.stat().st_size / 1e9:.2f} GB")
        limits = {"train": given.steps, "val": given.evaluated, "test": given.evaluated}
        options = [f"trainer.limit_{name}_batches={count}" for name, count in limits.items()]
        options += ["trainer.max_epochs=1", "evaluation.iwae_samples=2", *given.options]
        most, speed = training(path, Path(temporary, "run"), options)
        for workers in (0, 1, 2):
            alone = images_per_second(path, workers, 200)
            print(f"loader alone, workers={workers}: {alone:,.0f} images/s")
        print(f"training, loading included: {speed:,.0f} images/s")
        print(f"anonymous and shared memory, at most: {most:.2f} GB")
    sys.exit(most > given.limit)


if __name__ == "__main__":
    main()
