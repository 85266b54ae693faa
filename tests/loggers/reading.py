"""What an offline run of W&B holds, read back from its file."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as records

BLOCK = 32768


def payloads(content: bytes) -> Iterator[bytes]:
    """The records of a `.wandb` file: a header, then LevelDB's log format."""
    at, whole = 7, b""
    while at < len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        at += 7
        whole += content[at : at + length]
        at += length
        if kind in (1, 4):  # all of a record, or its end
            yield whole
            whole = b""


@dataclass
class OfflineRun:
    """One run: its rows, its final values, its settings, and what it sends along."""

    folder: Path
    run: Any = None
    exit_code: int | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)

    def media(self, entry: dict[str, Any]) -> Path:
        """The file of a picture or table in a row."""
        return self.folder / "files" / entry["path"]

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows if name in row]


def name_of(item: Any) -> str:
    return "/".join(item.nested_key) or item.key


def read_run(folder: Path) -> OfflineRun:
    (file,) = folder.glob("*.wandb")
    run = OfflineRun(folder)
    for payload in payloads(file.read_bytes()):
        record = records.Record.FromString(payload)
        if record.HasField("run"):
            run.run = record.run
            run.config |= {c.key: json.loads(c.value_json) for c in record.run.config.update}
        elif record.HasField("config"):
            run.config |= {name_of(c): json.loads(c.value_json) for c in record.config.update}
        elif record.HasField("history"):
            row = {name_of(i): json.loads(i.value_json) for i in record.history.item}
            run.rows.append(row)
        elif record.HasField("summary"):
            run.summary |= {name_of(i): json.loads(i.value_json) for i in record.summary.update}
        elif record.HasField("artifact"):
            run.artifacts.append(record.artifact)
        elif record.HasField("exit"):
            run.exit_code = record.exit.exit_code
    return run
