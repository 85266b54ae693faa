"""Paths on a command line, as Hydra takes them."""

import os
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

__all__ = ["as_value", "with_paths"]

#: The last parts of the names of settings that are paths.
PATHS = (
    *("path", "datadir", "data_dir", "select", "passthrough", "labels", "closed", "open"),
    *("run", "sweep", "dir", "output", "output_dir", "ckpt_path", "folder", "page", "records"),
    *("figures", "save_dir"),
)


def as_value(path: str) -> str:
    """A path as the value of an override: in quotes where Hydra's grammar needs them."""
    if re.fullmatch(r"[\w./+@%:-]+", path, re.ASCII):
        return path
    quoted = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), path)
    return f"'{quoted}'"


def with_paths(arguments: Sequence[str]) -> list[str]:
    """A command line in which paths are written as a shell takes them, as Hydra takes it.

    Hydra's grammar has no `~` (which no shell expands after a `=`), no letters beyond ASCII, and
    neither `&`, `#` nor parentheses in a value; a comma it takes for a list of values to sweep,
    which is left to it unless there is such a path.
    """
    parser = OverridesParser.create()

    def typed(argument: str) -> str:
        name, equals, value = argument.partition("=")
        if not equals or not value or name.rpartition(".")[2].lstrip("+") not in PATHS:
            return argument
        if value.startswith("~"):
            value = os.path.expanduser(value)
        try:
            several = parser.parse_override(f"{name}={value}").is_sweep_override()
            quoted = several and os.path.exists(value)
        except HydraException:
            quoted = value[0] not in "'\"[{"  # in those it is a mistake for Hydra to tell
        return f"{name}={as_value(value) if quoted else value}"

    return [typed(argument) for argument in arguments]
