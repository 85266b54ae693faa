"""RELION's STAR files: read with every value as it was written, changed, and written again.

They are read by RELION's rules, a row per line, and not by those of CIF, which forbid paths that
RELION writes: those that are not ASCII, or that begin with `_`, `$` or `data_`.

A star of RELION 3.1 and later has a block `optics` and a block `particles`, joined on
`rlnOpticsGroup`; one of RELION 3.0 and before has a single block.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from svae.files import whole_file

__all__ = ["Loop", "StarTable", "new_star", "read_star", "write_star"]

#: What RELION 3.1 and later look for: without it, a star is taken for one of RELION 3.0.
_VERSION = "# version 30001"

#: Values with blanks in them are in quotes, which end before a blank.
_WORDS = re.compile(rb"""'.*?'(?=\s|$)|".*?"(?=\s|$)|\S+""")

#: Rows that are Python's objects at a time, each of whose values takes some 40 bytes more.
_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Loop:
    """A table, or pairs of tag and value, which are a table of one row.

    Attributes:
        block: The name of the block that it lies in.
        comment: The comment above the block, such as `# version 30001`; empty for what follows
            in the same block.
        columns: Values as they were written, quotes included, by their tag without `_`; bytes.
        pairs: Whether it is written as pairs.
    """

    block: str
    comment: str
    columns: dict[str, np.ndarray]
    pairs: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0


@dataclass(frozen=True)
class StarTable:
    """A star file: its loops in their order, one of which lists particles.

    Attributes:
        loops: All of them.
        particles: Which one lists the particles: the one with `rlnImageName`.
        optics: Which one lists the optics groups, where one does.
    """

    loops: list[Loop]
    particles: int
    optics: int | None = None

    def __len__(self) -> int:
        return len(self.loops[self.particles])

    def column(self, tag: str, *, optics: bool = False) -> np.ndarray | None:
        """The values of a tag, as bytes, of every particle or every optics group."""
        number = self.optics if optics else self.particles
        return None if number is None else self.loops[number].columns.get(tag)

    def select(self, rows: np.ndarray) -> "StarTable":
        """The same file with some of its particles, in the given order."""
        loop = self.loops[self.particles]
        columns = {tag: values[rows] for tag, values in loop.columns.items()}
        return self._with(self.particles, columns)

    def with_columns(
        self, columns: Mapping[str, np.ndarray | Sequence[str]], *, optics: bool = False
    ) -> "StarTable":
        """The same file with other columns of the particles, or of the optics groups.

        Columns that are there keep their place; others come last. Floats are written with six
        decimals, as RELION does; words that need it are quoted.

        Raises:
            ValueError: A column has another length, or there are no optics groups.
        """
        number = self.optics if optics else self.particles
        if number is None:
            raise ValueError("the star has no optics groups")
        loop = self.loops[number]
        for tag, values in columns.items():
            if len(values) != len(loop):
                raise ValueError(f"{tag}: expected {len(loop)} values, got {len(values)}")
        return self._with(
            number, loop.columns | {tag: _text(values) for tag, values in columns.items()}
        )

    def without(self, tags: Iterable[str]) -> "StarTable":
        """The same file without some columns of the particles, where they are there."""
        gone, own = set(tags), self.loops[self.particles].columns
        return self._with(
            self.particles, {tag: values for tag, values in own.items() if tag not in gone}
        )

    def _with(self, number: int, columns: dict[str, np.ndarray]) -> "StarTable":
        loops = list(self.loops)
        loops[number] = replace(loops[number], columns=columns)
        return replace(self, loops=loops)


def new_star(
    particles: Mapping[str, np.ndarray | Sequence[str]],
    optics: Mapping[str, np.ndarray | Sequence[str]],
) -> StarTable:
    """A star of RELION 3.1 from columns; `particles` has `rlnImageName`."""
    blocks = {"optics": optics, "particles": particles}
    loops = [
        Loop(name, _VERSION, {tag: _text(values) for tag, values in columns.items()})
        for name, columns in blocks.items()
    ]
    return StarTable(loops, particles=1, optics=0)


def read_star(path: Path) -> StarTable:
    """A star file that lists particles.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no star file, or lists no particles.
    """
    try:
        loops = _loops(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: no whole star file: {error}") from error
    with_images = [i for i, loop in enumerate(loops) if "rlnImageName" in loop.columns]
    if not with_images:
        there = ", ".join(f"data_{loop.block}" for loop in loops) or "nothing"
        raise ValueError(f"{path}: no column rlnImageName: it lists no particles (it has {there})")
    optics = [i for i, loop in enumerate(loops) if loop.block == "optics"]
    return StarTable(loops, with_images[0], optics[0] if optics else None)


def write_star(path: Path, table: StarTable) -> None:
    """Write a star file, whole or not at all: blocks, columns and values as the table has them."""
    with whole_file(path) as file:
        block = None
        for loop in table.loops:
            if loop.block != block or loop.comment:
                block = loop.block
                comment = f"{loop.comment}\n\n" if loop.comment else ""
                file.write(os.fsencode(f"\n{comment}data_{block}\n"))
            file.write(_body(loop))


class _Rows:
    """The rows of a loop while they are read, a few thousand of them as Python's objects."""

    def __init__(self) -> None:
        self.tags: list[str] = []
        self.parts: list[list[np.ndarray]] = []
        self.rows: list[list[bytes]] = []

    def append(self, words: list[bytes]) -> None:
        self.rows.append(words)
        if len(self.rows) == _ROWS_AT_ONCE:
            self._pack()

    def columns(self) -> dict[str, np.ndarray]:
        if twice := [tag for tag, times in Counter(self.tags).items() if times > 1]:
            raise ValueError(f"{twice[0]} is there twice")
        self._pack()
        joined = map(np.concatenate, zip(*self.parts, strict=True))
        nothing = (np.zeros(0, "S1") for _ in self.tags)
        return dict(zip(self.tags, joined if self.parts else nothing, strict=True))

    def _pack(self) -> None:
        if self.rows:
            self.parts.append([np.array(column) for column in zip(*self.rows, strict=True)])
            self.rows = []


def _loops(text: bytes) -> list[Loop]:
    """All loops and pairs of a file, in their order."""
    found: list[tuple[str, str, bool, _Rows]] = []
    comments: list[str] = []
    block, above = None, ""
    rows: _Rows | None = None  # of the loop that is being read
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if b"'" in line or b'"' in line:
            words = _WORDS.findall(line)
        first = words[0]
        if first.startswith(b"#"):
            comments.append(os.fsdecode(line.strip()))
        elif len(words) == 1 and first.startswith(b"data_"):
            block, above, rows = first[5:].decode(), "\n".join(comments), None
            comments = []
        elif block is None:
            raise ValueError(f"line {number}: expected data_, got {_shown(line)}")
        elif words == [b"loop_"]:
            rows = _Rows()
            found.append((block, above, False, rows))
            above = ""
        elif rows and not rows.rows and not rows.parts and first.startswith(b"_"):
            rows.tags.append(first[1:].decode())
        elif rows and len(words) == len(rows.tags):
            rows.append(words)
            comments = []
        elif first.startswith(b"_") and len(words) > 1:
            if not found or found[-1][0] != block or not found[-1][2]:
                found.append((block, above, True, _Rows()))
                above = ""
            pairs = found[-1][3]
            pairs.tags.append(first[1:].decode())
            pairs.rows = [[*(pairs.rows[0] if pairs.rows else []), words[1]]]
            rows = None
        else:
            expected = f"{len(rows.tags)} values" if rows else "data_, loop_ or a tag"
            raise ValueError(f"line {number}: expected {expected}, got {_shown(line)}")
    return [Loop(name, comment, read.columns(), pairs) for name, comment, pairs, read in found]


def _shown(line: bytes) -> str:
    text = line.strip().decode(errors="replace")
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _text(values: np.ndarray | Sequence[str]) -> np.ndarray:
    """Numbers and words as they are written into a star."""
    array = np.asarray(values)
    if array.dtype.kind == "S":
        return array
    if array.dtype.kind == "f":
        return np.array([f"{value:.6f}" for value in array.tolist()], dtype="S")
    if array.dtype.kind in "iub":
        return np.array([str(int(value)) for value in array.tolist()], dtype="S")
    return np.array([os.fsencode(_quoted(str(value))) for value in array.tolist()], dtype="S")


def _quoted(word: str) -> str:
    return f'"{word}"' if not word or len(word.split()) > 1 or word[0] in "'\"#" else word


def _body(loop: Loop) -> bytes:
    if loop.pairs:
        width = max(map(len, loop.columns), default=0) + 1
        lines = [f"_{tag:<{width}} ".encode() + values[0] for tag, values in loop.columns.items()]
        return b"\n" + b"\n".join(lines) + b"\n\n"
    tags = "".join(f"_{tag} #{i}\n" for i, tag in enumerate(loop.columns, start=1))
    columns = [values.tolist() for values in loop.columns.values()]
    rows = b"".join(b" ".join(row) + b"\n" for row in zip(*columns, strict=True))
    return f"\nloop_\n{tags}".encode() + rows + b"\n"
