"""Functions in processes of their own: nothing that ran before counts in what they measure."""

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from svae.errors import one_line

__all__ = ["Failure", "alone", "peak_memory"]

T = TypeVar("T")


class Failure(Exception):
    """What went wrong in the other process, in one line."""


def alone(function: Callable[..., T], *args: Any) -> T:
    """`function(*args)` in a fresh process; what it takes and returns is pickled.

    Raises:
        Failure: It raised something, or the process was ended.
    """
    # One pool for each call: one whose process was ended takes no more work.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        try:
            result, error = pool.submit(_attempt, function, args).result()
        except BrokenProcessPool:
            error = "its process was ended from outside, as where memory runs out"
    if error is not None:
        raise Failure(error)
    returned: T = result
    return returned


def _attempt(function: Callable[..., T], args: tuple[Any, ...]) -> tuple[Any, str | None]:
    try:
        return function(*args), None
    except Exception as error:
        # As text: not every exception can be pickled.
        return None, one_line(error)


def peak_memory() -> int:
    """The most bytes of memory that this process had at any moment, libraries included."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    # Less good: where a process was forked from another, it begins with that one's.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
