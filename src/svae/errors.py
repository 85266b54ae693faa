"""Mistakes of a user, told in one line."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = ["UserError", "one_line", "told_in_one_line"]


class UserError(Exception):
    """Something that a user can mend; commands print its message and no traceback."""

    #: What the command ends with.
    exit_status = 2


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks, or its kind where it has none."""
    # Where Hydra looks for configs nobody chose.
    message = str(error).partition("\nConfig search path:")[0]
    wrong = re.match(r"Could not override '(.+)'\.", message)
    if wrong and (names := _meant(wrong[1], error.__cause__)):
        # In the place of Hydra's advice to append it.
        message = f"{wrong[0]} Did you mean {' or '.join(names)}?"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = " ".join(line if line[-1] in ".,:;?" else f"{line};" for line in lines).rstrip(";")
    return text or type(error).__name__


def _meant(setting: str, error: BaseException | None) -> list[str]:
    """What a setting that is not there may stand for: one beside it, or some named so elsewhere.

    Arguments:
        setting: Its full name.
        error: Of OmegaConf, which knows what part of that it did not find.
    """
    beside = getattr(error, "parent_node", None)
    if not isinstance(beside, DictConfig):
        return []
    assert isinstance(error, OmegaConfBaseException)
    key, missing = str(error.key), str(error.full_key)
    if close := get_close_matches(key, map(str, beside), n=1, cutoff=0.7):
        return [missing.removesuffix(key) + close[0] + setting.removeprefix(missing)]
    root = OmegaConf.to_container(beside._get_root(), resolve=False)
    assert isinstance(root, dict)
    paths = [path for path in _paths(root) if not path.startswith("hydra.")]
    return [path for path in paths if path.rpartition(".")[2] == key][:3]


def _paths(node: Mapping[Any, Any], above: str = "") -> Iterator[str]:
    """The full names of all settings."""
    for key, value in node.items():
        yield f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{above}{key}.")


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
