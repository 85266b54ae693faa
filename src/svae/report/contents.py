"""What a run directory tells, read piece by piece.

A run may be going on, interrupted or old: what is missing or broken becomes a note for the
reader, and never an error.
"""

import csv
import io
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from svae.errors import one_line

__all__ = ["Contents", "Picture", "Row", "read_contents"]

Row = dict[str, float]

#: What a command leaves behind. Of others, nothing is missed.
EXPECTED = {
    "train": ("config.yaml", "metrics.csv", "metrics.json", "figures"),
    "evaluate": ("metrics.json", "figures"),
}
#: What a missing part means.
MEANING = {
    "config.yaml": "the run ended before training began",
    "metrics.csv": "no epoch has ended yet",
    "metrics.json": "the run is going on, or was killed",
    "figures": "nothing was drawn yet",
}
LOG_BYTES = 64 * 1024
LOG_LINES = 60
STAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")


@dataclass(frozen=True)
class Picture:
    """An image file as it is, with its size in pixels."""

    path: Path
    data: bytes
    kind: str
    width: int
    height: int


@dataclass
class Contents:
    """What was found in a run directory.

    Arguments:
        run: The run directory.
        command: The command that made it: `train`, `evaluate`, ...
        started: From the folder's name, else the date of its oldest file.
        config: The sections of the config by name.
        config_text: The config as it was not understood; None where `config` holds it.
        config_name: The file that the config is from.
        overrides: The overrides of the command line; None where they are not known.
        hydra: The section `hydra` of `.hydra/hydra.yaml`.
        metrics: `split/name: number`, from `metrics.json`.
        rows: The rows of `metrics.csv`, each without its empty cells.
        pictures: The figures, by name.
        logs: The last lines of each log, by file name.
        notes: What is missing or cannot be read, for a person.
    """

    run: Path
    command: str = "train"
    started: datetime | None = None
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str | None = None
    config_name: str = "config.yaml"
    overrides: list[str] | None = None
    hydra: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def setting(self, name: str) -> Any:
        """The value of a config `section.name`, or None."""
        return _below(self.config, *name.split("."))

    @property
    def runtime(self) -> dict[str, Any]:
        """Where and with what Hydra ran."""
        runtime = self.hydra.get("runtime")
        return runtime if isinstance(runtime, dict) else {}

    def choice(self, group: str) -> str | None:
        """The config that was chosen from a group, else the class that it stands for."""
        chosen = _below(self.runtime, "choices", group)
        target = self.setting(f"{group}._target_")
        name = chosen or (target.rpartition(".")[2] if isinstance(target, str) else None)
        return None if name is None else str(name)


def read_contents(run: str | Path) -> Contents:
    """All that a run directory tells.

    Raises:
        FileNotFoundError: There is no such folder, or nothing of a run in it.
    """
    folder = Path(run)
    found = [path for path in _files(folder) if path.is_file()]
    if not found:
        raise FileNotFoundError(
            f"run: {run} is not a run directory (it has no config.yaml, metrics, figures or log); "
            "expected one such as outputs/train/<date>"
        )
    contents = Contents(folder, started=_started(folder, found))
    _read_hydra(contents)
    _read_config(contents)
    _read_metrics(contents)
    _read_rows(contents)
    _read_pictures(contents)
    _read_logs(contents)
    for name in EXPECTED.get(contents.command, ()):
        if not any(path.relative_to(folder).parts[0] == name for path in found):
            contents.notes.append(f"There is no {name}: {MEANING[name]}.")
    return contents


def _files(folder: Path) -> Iterator[Path]:
    """Everything that a report is made of, whether it exists or not."""
    for name in ("config.yaml", "metrics.json", "metrics.csv", ".hydra/overrides.yaml"):
        yield folder / name
    for pattern in ("figures/*.png", "figures/*.gif", "*.log"):
        yield from sorted(folder.glob(pattern))


def _started(folder: Path, found: list[Path]) -> datetime:
    for part in reversed(folder.resolve().parts):
        for stamp in STAMP.findall(part):
            try:
                return datetime.strptime(stamp, "%Y-%m-%d_%H-%M-%S")
            except ValueError:  # digits of some other meaning
                continue
    return datetime.fromtimestamp(min(path.stat().st_mtime for path in found))


def _bytes(contents: Contents, name: str, last: int | None = None) -> bytes | None:
    """A file's content, or only the `last` bytes of it; None if it is not there."""
    path = contents.run / name
    try:
        with path.open("rb") as file:
            if last is not None:
                file.seek(max(0, path.stat().st_size - last))
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        contents.notes.append(f"{name} cannot be read: {one_line(error)}.")
        return None


def _text(contents: Contents, name: str) -> str | None:
    data = _bytes(contents, name)
    return None if data is None else data.decode(errors="replace")


def _yaml(contents: Contents, name: str) -> Any:
    text = _text(contents, name)
    if text is None:
        return None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        contents.notes.append(f"{name} is not YAML: {one_line(error)}.")
        return None


def _below(value: Any, *keys: str) -> Any:
    """What lies below nested keys, or None."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _read_hydra(contents: Contents) -> None:
    overrides = _yaml(contents, ".hydra/overrides.yaml")
    if isinstance(overrides, list):
        contents.overrides = [str(override) for override in overrides]
    hydra = _below(_yaml(contents, ".hydra/hydra.yaml"), "hydra")
    contents.hydra = hydra if isinstance(hydra, dict) else {}
    name = _below(contents.hydra, "job", "name")
    contents.command = name if isinstance(name, str) else contents.command


def _read_config(contents: Contents) -> None:
    """`config.yaml`, else what Hydra composed, whose references are not resolved."""
    for name in ("config.yaml", ".hydra/config.yaml"):
        if (text := _text(contents, name)) is not None:
            contents.config_name = name
            config = _yaml(contents, name)
            if isinstance(config, dict):
                contents.config = {str(key): value for key, value in config.items()}
            else:
                contents.config_text = text
            return


def _read_metrics(contents: Contents) -> None:
    text = _text(contents, "metrics.json")
    if text is None:
        return
    try:
        metrics = json.loads(text, parse_int=float)
    except (ValueError, RecursionError) as error:
        contents.notes.append(f"metrics.json is not JSON: {one_line(error)}.")
        return
    if isinstance(metrics, dict):
        contents.metrics = metrics
    else:
        contents.notes.append("metrics.json holds no pairs of name and number.")


def _read_rows(contents: Contents) -> None:
    text = _text(contents, "metrics.csv")
    if text is None:
        return
    try:
        lines = list(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        contents.notes.append(f"metrics.csv is not CSV: {one_line(error)}.")
        return
    for line in lines:
        row = {}
        for name, cell in line.items():
            try:
                row[name] = float(cell)
            except (TypeError, ValueError):  # an empty cell, or a line cut short
                continue
        contents.rows.append(row)


def _read_pictures(contents: Contents) -> None:
    for path in _files(contents.run):
        name = str(path.relative_to(contents.run))
        if path.parent.name != "figures" or not (data := _bytes(contents, name)):
            continue
        if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
            kind, size = "png", struct.unpack(">II", data[16:24])
        elif data[:4] == b"GIF8" and len(data) >= 10:
            kind, size = "gif", struct.unpack("<HH", data[6:10])
        else:
            contents.notes.append(f"{name} is neither a PNG nor a GIF.")
            continue
        contents.pictures.append(Picture(path, data, kind, *size))


def _read_logs(contents: Contents) -> None:
    for path in sorted(contents.run.glob("*.log")):
        if data := _bytes(contents, path.name, last=LOG_BYTES):
            lines = data.decode(errors="replace").splitlines()[-LOG_LINES:]
            contents.logs[path.name] = "\n".join(lines)
