"""Files: written whole or not at all, and their names in the order that people expect."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = ["natural", "whole_file", "write_atomic", "write_metrics"]


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that an interruption leaves the old content or the new, never a half."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written piece by piece, which has its name once all of it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a name must not point at what a power cut can still lose
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_metrics(path: Path, metrics: Mapping[str, float]) -> None:
    """Write `split/name: number` pairs as JSON, sorted by name."""
    write_atomic(path, json.dumps(dict(sorted(metrics.items())), indent=2) + "\n")


def natural(name: str) -> tuple[Any, ...]:
    """The key that sorts `img2` before `img10`, folder by folder, whatever the case."""
    parts = [re.split("([0-9]+)", part.casefold()) for part in name.split("/")]
    # Every second piece is a number, so that numbers only meet numbers.
    keys = [[int(p) if i % 2 else p for i, p in enumerate(part)] for part in parts]
    return keys, name
