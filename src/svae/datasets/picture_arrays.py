"""Pictures in one array: `.npy` and `.npz` files, memory-mapped where that is possible."""

import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from svae.datasets.picture_files import Source, one_channel, reason

__all__ = ["LABEL_NAMES", "ArrayFile", "Header", "headers_of", "load_array"]

#: What an array of images or of labels is called in an `.npz`, where nobody says.
IMAGE_NAMES = ("images", "image", "x", "arr_0")
LABEL_NAMES = ("labels", "label", "y")

SHAPES = "(N, H, W), (N, H, W, 1), (N, H, W, 3), (N, 1, H, W) or (N, 3, H, W)"

_UNPACKING = threading.Lock()


class Header(NamedTuple):
    """What an array is, without its elements."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    def __str__(self) -> str:
        kinds = {"O": "Python objects", "U": "words", "S": "bytes", "c": "complex numbers"}
        return f"{kinds.get(self.dtype.kind, str(self.dtype))} of shape {self.shape}"


class ArrayFile(Source):
    """The images of an `.npy` or `.npz`; memory-mapped, unless the `.npz` is compressed.

    Arguments:
        path: The file.
        array: The name of the array in an `.npz`.
        channel: The one that is read of images with several, from 0; None for all.
    """

    def __init__(self, path: Path, array: str | None = None, channel: int | None = None) -> None:
        self.path, self.channel = path, channel
        self.headers = headers_of(path)
        self.array = _image_array(path, self.headers, array)
        header = self.headers[self.array]
        shape = header.shape
        what = f"{path}: array {self.array!r}" if self.array else f"{path}"
        if header.dtype.kind not in "buif":
            raise ValueError(f"{what}: expected integers or floats, got {header}")
        self.channels_first = _channels_first(what, shape)
        if not shape[0]:
            raise ValueError(f"{what}: expected images, got the shape {shape}")
        self.count = shape[0]
        self._pixels: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None}

    def __len__(self) -> int:
        return self.count

    def name(self, row: int) -> str:
        return f"{self.path.name}{f':{self.array}' if self.array else ''}[{row}]"

    def read(self, row: int) -> np.ndarray:
        # Several threads read; an array that must be unpacked is unpacked by one of them.
        with _UNPACKING:
            if self._pixels is None:
                self._pixels = load_array(self.path, self.array)
        image = self._pixels[row]
        image = np.moveaxis(image, 0, -1) if self.channels_first else image
        image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
        return one_channel(image, self.channel, self.name(row))

    def own_labels(self) -> np.ndarray | None:
        for name in LABEL_NAMES:
            header = self.headers.get(name)
            if header and header.shape == (len(self),) and header.dtype.kind in "biuU":
                return load_array(self.path, name)
        return None


@contextmanager
def _whole(path: Path, what: str) -> Iterator[None]:
    """Whatever a damaged file makes numpy and zipfile raise, as one line that names it."""
    try:
        yield
    except PermissionError:
        raise PermissionError(f"{path}: no permission to read it") from None
    except (
        ValueError,
        OSError,
        EOFError,
        KeyError,
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
        NotImplementedError,
    ) as error:
        raise ValueError(f"{path}: {what} ({reason(error)})") from error


def headers_of(path: Path) -> dict[str, Header]:
    """Every array of an `.npz` by its name; that of an `.npy` under an empty name."""
    with _whole(path, f"not a whole {path.suffix.lower()} file"):
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return {"": _header(file)}
        headers = {}
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".npy"):
                    with archive.open(name) as member:
                        headers[name.removesuffix(".npy")] = _header(member)
        return headers


def _header(file: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return Header(*np.lib.format.read_array_header_1_0(file))
    if version == (2, 0):
        return Header(*np.lib.format.read_array_header_2_0(file))
    raise ValueError(f"format version {version}")


def load_array(path: Path, name: str) -> np.ndarray:
    """An array of an `.npy` (where the name is empty) or `.npz`, mapped where that is possible."""
    with _whole(path, f"its array {name!r} is damaged" if name else "it is damaged"):
        if not name:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type == zipfile.ZIP_STORED:
                return _map_member(path, member)
            with archive.open(member) as file:
                return np.lib.format.read_array(file, allow_pickle=False)


def _map_member(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    """A memory map of an array that lies uncompressed in a zip file."""
    with path.open("rb") as file:
        # A local header has 30 bytes and two fields, whose lengths are its last two numbers.
        file.seek(member.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
        file.seek(member.header_offset + 30 + name + extra)
        shape, fortran, dtype = _header(file)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _image_array(path: Path, headers: dict[str, Header], asked: str | None) -> str:
    """The name of the array that holds the images."""
    if "" in headers:
        return ""
    there = ", ".join(f"{name} ({header})" for name, header in headers.items())
    if asked is not None:
        if asked not in headers:
            raise ValueError(
                f"dataset.array: {path} has no {asked!r}; it has {there or 'nothing'}"
            )
        return asked
    if len(headers) == 1:
        return next(iter(headers))
    deep = [name for name, header in headers.items() if len(header.shape) in (3, 4)]
    if named := [name for name in IMAGE_NAMES if name in deep]:
        return named[0]
    if len(deep) == 1:
        return deep[0]
    raise ValueError(
        f"{path}: which array holds the images? It has {there or 'none'}; "
        "name one with dataset.array=NAME"
    )


def _channels_first(what: str, shape: tuple[int, ...]) -> bool:
    """Whether an array of images is (N, C, H, W).

    Raises:
        ValueError: It is no array of images, or may be one in two ways.
    """
    if len(shape) == 3 and shape[2] not in (1, 3):
        return False
    if len(shape) == 3:
        raise ValueError(
            f"{what} has the shape {shape}, which looks like a single picture; expected {SHAPES}"
        )
    if len(shape) != 4:
        raise ValueError(f"{what}: expected the shape {SHAPES}, got {shape}")
    first = shape[1] in (1, 3) and min(shape[2:]) > 1
    last = shape[3] in (1, 3) and min(shape[1:3]) > 1
    if first and last:
        raise ValueError(
            f"{what} has the shape {shape}, in which the second or the last axis may be the "
            "channels; write the images as PNG or TIFF files instead"
        )
    if not (first or last):
        raise ValueError(f"{what}: expected 1 or 3 channels, as in {SHAPES}, got {shape}")
    return first
