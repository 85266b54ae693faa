"""`status.json`: what became of a run."""

import json
import math
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from svae.files import write_atomic

__all__ = ["State", "Status", "read_status", "write_status"]

#: `running` is also what a run is left with that was killed.
State = Literal["running", "finished", "interrupted", "pruned", "failed"]


class Status(NamedTuple):
    """What became of a run.

    Arguments:
        state: Whether it ended, and how.
        message: Why it failed or was interrupted, in one line.
        objective: What a sweeper maximises, the best `val/elbo`, once it is known.
    """

    state: State
    message: str = ""
    objective: float = math.nan

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        return self.state in ("finished", "pruned")


def write_status(run: str | Path, status: Status) -> None:
    """Write `status.json` into a run directory."""
    content = status._asdict()
    if not math.isfinite(status.objective):
        content["objective"] = None
    write_atomic(Path(run, "status.json"), json.dumps(content, indent=2) + "\n")


def read_status(run: str | Path) -> Status | None:
    """The status of a run directory; None where there is no `status.json`.

    Raises:
        ValueError: The file holds something else.
    """
    path = Path(run, "status.json")
    try:
        content = json.loads(path.read_text())
        objective = content["objective"]
        status = Status(
            content["state"],
            str(content["message"]),
            math.nan if objective is None else float(objective),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the status of a run ({error!r})") from error
    if status.state not in get_args(State):
        raise ValueError(f"{path}: expected a state of {get_args(State)}, got {status.state!r}")
    return status
