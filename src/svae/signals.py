"""Ctrl-C, SIGTERM and SIGUSR1: a request to end, which is met between two steps."""

import os
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Signals"]

# SLURM sends SIGTERM before it takes a machine away, and SIGUSR1 where `--signal=USR1@60` asks for
# it; there is no SIGUSR1 on Windows.
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
_HEARD = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


class Signals:
    """Notes the first request to end, while it is entered.

    A second Ctrl-C raises KeyboardInterrupt wherever the program is. Further SIGTERMs and SIGUSR1s
    change nothing: whoever sends them kills the process in the end.
    """

    def __init__(self) -> None:
        #: The signal that came, None so far.
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        # Python leaves signals to the main thread.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _HEARD}
            self.listen()
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def listen(self) -> None:
        """Take the signals back from a library that has put handlers of its own."""
        for number in self._before:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            # Not by logging or print: the signal may have come in the middle of either.
            os.write(2, b"\nending after this step; Ctrl-C again ends at once\n")
