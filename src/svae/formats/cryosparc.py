"""cryoSPARC's `.cs` files: one record per particle, as a NumPy array or as a CSDAT stream."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from svae.files import whole_file

__all__ = ["CsTable", "read_cs", "read_group", "write_cs"]

_CSDAT = b"\x95CSDAT"
_NUMPY = b"\x93NUMPY"


@dataclass(frozen=True)
class CsTable:
    """A `.cs` file.

    Attributes:
        records: A record per particle; a field may hold several numbers.
        csdat: Whether it was read from the newer kind, and is written as such.
    """

    records: np.ndarray
    csdat: bool = False

    def __len__(self) -> int:
        return len(self.records)

    def column(self, name: str) -> np.ndarray | None:
        """A field of every particle, such as `ctf/df1_A`; `None` where there is none."""
        return self.records[name] if name in (self.records.dtype.names or ()) else None

    def select(self, rows: np.ndarray) -> "CsTable":
        """The same file with some of its particles, in the given order."""
        return replace(self, records=self.records[rows])

    def with_columns(self, columns: Mapping[str, np.ndarray]) -> "CsTable":
        """The same file with other fields.

        Fields that are there keep their place and type, words that need it their length apart;
        others come last, with the type that they are given in.

        Raises:
            ValueError: A field has another length.
        """
        given = {name: _fixed(values) for name, values in columns.items()}
        for name, values in given.items():
            if len(values) != len(self):
                raise ValueError(f"{name}: expected {len(self)} values, got {len(values)}")
        old = self.records.dtype
        fields = {name: (old[name].base, old[name].shape) for name in old.names or ()}
        for name, values in given.items():
            if name not in fields:
                fields[name] = (values.dtype, values.shape[1:])
            elif values.dtype.kind == "S":
                fields[name] = (np.promote_types(fields[name][0], values.dtype), ())
        records = np.empty(len(self), [(name, *kind) for name, kind in fields.items()])
        for name in fields:
            records[name] = given[name] if name in given else self.records[name]
        return replace(self, records=records)


def _fixed(values: np.ndarray) -> np.ndarray:
    """Words as bytes, which is how a `.cs` has them."""
    array = np.asarray(values)
    return np.char.encode(array) if array.dtype.kind == "U" else array


def read_cs(path: Path) -> CsTable:
    """A `.cs` file of either kind.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no `.cs` file, or a CSDAT one and `cryosparc-tools` is not installed.
    """
    with path.open("rb") as file:
        magic = file.read(6)
    if magic == _CSDAT:
        dataset = _dataset(path)
        try:
            records = dataset.load(str(path)).to_records(fixed=True)
        except Exception as error:
            raise ValueError(f"{path}: no whole .cs file ({error})") from error
        return CsTable(np.asarray(records), csdat=True)
    if magic != _NUMPY:
        raise ValueError(f"{path}: no .cs file: it begins with neither NUMPY nor CSDAT")
    try:
        # A header with hundreds of fields is longer than what NumPy takes by default.
        records = np.load(path, allow_pickle=False, max_header_size=2**24)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: no whole .cs file ({error})") from error
    if records.dtype.names is None or records.ndim != 1:
        raise ValueError(f"{path}: no .cs file: an array of {records.dtype}, not of records")
    return CsTable(records)


def read_group(path: Path) -> tuple[Path, Path | None]:
    """The `.cs` file of a `.csg`, which lists the fields of a group and where they are.

    Returns:
        The file, and the one with the fields that were passed through, where there are two.

    Raises:
        OSError: The file cannot be read, or one that it lists is not there.
        ValueError: It is no `.csg` file, or lists none or more than two.
    """
    try:
        results = yaml.safe_load(path.read_bytes())["results"].values()
        written = {result["metafile"].removeprefix(">") for result in results}
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path}: no .csg file: expected `results` with a `metafile` each, which is a .cs file"
        ) from error
    files = sorted(written, key=lambda name: ("passthrough" in Path(name).name, name))
    if not 1 <= len(files) <= 2:
        names = f" ({', '.join(files)})" if files else ""
        raise ValueError(
            f"{path}: expected one or two .cs files in it, found {len(files)}{names}; give one as "
            "dataset.path and one as dataset.passthrough"
        )
    for name in files:
        if not (path.parent / name).is_file():
            raise FileNotFoundError(
                f"{path}: it lists {name}, and there is no {path.parent / name}; copy the .cs "
                "files of a group with it"
            )
    return path.parent / files[0], path.parent / files[1] if len(files) == 2 else None


def write_cs(path: Path, table: CsTable) -> None:
    """Write a `.cs` file of the kind that the table was read from, whole or not at all."""
    with whole_file(path) as file:
        if table.csdat:
            content = io.BytesIO()
            dataset = _dataset(path)
            dataset(table.records).save(content, format=2)
            file.write(content.getvalue())
        else:
            np.lib.format.write_array(file, table.records, allow_pickle=False)


def _dataset(path: Path):
    """The class of `cryosparc-tools` that reads and writes CSDAT."""
    try:
        from cryosparc.dataset import Dataset
    except ImportError as error:
        raise ValueError(
            f"{path}: this newer kind of .cs file (CSDAT) needs cryosparc-tools; "
            "pip install 'svae[cryosparc]', or write it as NumPy in cryoSPARC"
        ) from error
    return Dataset
