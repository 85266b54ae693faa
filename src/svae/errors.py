"""Mistakes of a user, told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

__all__ = ["UserError", "one_line", "told_in_one_line"]


class UserError(Exception):
    """Something that a user can mend; commands print its message and no traceback."""

    #: What the command ends with.
    exit_status = 2


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks, or its kind where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(line if line[-1] in ".,:;" else f"{line};" for line in lines).rstrip(";")
    return text or type(error).__name__


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """What goes wrong while a command is set up is the user's to mend, and becomes a UserError.

    Only around the set-up: in the middle of a training, the same exceptions are our mistakes, and
    their traceback matters.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from error
