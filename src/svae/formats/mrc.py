"""MRC stacks: headers read and checked against the file, pixels mapped, stacks written.

The format is that of MRC2014 (https://www.ccpem.ac.uk/mrc_format/mrc2014.php). Headers that the
standard forbids but that programs write are understood: without the letters `MAP`, without or
with the wrong machine stamp.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import dtype_from_mode, machine_stamp_from_byte_order

from svae.checks import one_of
from svae.files import whole_file

__all__ = ["MODES", "MrcHeader", "read_header", "stack_header", "write_stack"]

#: The modes of real numbers that every program can read.
MODES = (0, 1, 2, 6, 12)

#: What IMOD writes at byte 152 when the next four bytes are its flags; the first of them says
#: that bytes are signed (https://bio3d.colorado.edu/imod/doc/mrc_format.txt).
_IMOD_STAMP = 1146047817

#: Modes of the standard that are not read: complex numbers, and half bytes.
_OTHER_MODES = (3, 4, 101)

#: How compressed files begin, and what unpacks them. No header begins so: it would promise images
#: of more than 100,000 columns.
_COMPRESSED = {
    b"\x1f\x8b\x08": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"PK\x03\x04": "unzip",
}

#: A side longer than this is a number read in the wrong byte order.
_LARGEST = 2**17


@dataclass(frozen=True)
class MrcHeader:
    """What an MRC file holds and where.

    Attributes:
        path: The file.
        count: Images, or sections of a volume.
        height: Rows of each.
        width: Columns of each.
        dtype: The type of a pixel, with its byte order.
        offset: The bytes before the first pixel.
        pixel_size: Å per pixel along x; `None` where the header has 0, or exactly 1, which is
            what programs write when they do not know.
    """

    path: Path
    count: int
    height: int
    width: int
    dtype: np.dtype
    offset: int
    pixel_size: float | None

    def map(self) -> np.ndarray:
        """All images, (count, height, width), mapped and not read."""
        shape = (self.count, self.height, self.width)
        return np.memmap(self.path, self.dtype, "r", self.offset, shape)


def read_header(path: Path) -> MrcHeader:
    """The header of an MRC file, checked against the file's size.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is empty, truncated, or no MRC file of real numbers.
    """
    with path.open("rb") as file:
        start = file.read(HEADER_DTYPE.itemsize)
        size = file.seek(0, 2)
    for magic, remedy in _COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(f"{path}: it is compressed; {remedy} it first")
    if len(start) < HEADER_DTYPE.itemsize:
        held = f"only {size} bytes" if size else "nothing"
        raise ValueError(f"{path}: no MRC file: it holds {held}, and a header has 1024 bytes")
    # Small numbers read in the wrong order are huge ones: what fits into the file is right.
    found = [_header(path, start, order) for order in _byte_orders(start)]
    for header in found:
        if isinstance(header, MrcHeader) and header.count <= _room(header, size):
            return header
    raise ValueError(f"{path}: {_why_not(found[0], size)}")


def _byte_orders(start: bytes) -> str:
    """Both byte orders; first the one that the machine stamp says, where it says one."""
    return "><" if start[212:214] == b"\x11\x11" else "<>"


def _header(path: Path, start: bytes, order: str) -> MrcHeader | str:
    """What the first 1024 bytes say, read in a byte order; or why they make no sense in it."""
    header = np.frombuffer(start, HEADER_DTYPE.newbyteorder(order))[0]
    mode, count, height, width, extended = (
        int(header[name]) for name in ("mode", "nz", "ny", "nx", "nsymbt")
    )
    if mode not in MODES:
        known = ", ".join(map(str, MODES))
        what = "an MRC file" if mode in _OTHER_MODES else "no MRC file, or damaged:"
        return f"{what} of mode {mode}; expected mode {known}"
    if min(count, height, width) < 1 or max(height, width) >= _LARGEST or extended < 0:
        return f"no MRC file, or damaged: its header promises {count} images of {height}x{width}"
    stamp, flags = np.frombuffer(start, f"{order}i4", 2, 152)
    unsigned = mode == 0 and stamp == _IMOD_STAMP and not flags & 1
    dtype = np.dtype(np.uint8) if unsigned else dtype_from_mode(mode).newbyteorder(order)
    size = float(header["cella"]["x"]) / max(1, int(header["mx"]))
    known_size = np.isfinite(size) and size > 0 and size != 1
    offset = HEADER_DTYPE.itemsize + extended
    return MrcHeader(path, count, height, width, dtype, offset, size if known_size else None)


def _room(header: MrcHeader, size: int) -> int:
    """How many images there is room for in a file of so many bytes."""
    return max(0, size - header.offset) // (header.height * header.width * header.dtype.itemsize)


def _why_not(header: MrcHeader | str, size: int) -> str:
    if isinstance(header, str):
        return header
    shape = f"{header.count} images of {header.height}x{header.width}"
    return f"truncated: its header promises {shape}, and it holds {_room(header, size)}"


def stack_header(
    count: int,
    height: int,
    width: int,
    *,
    pixel_size: float | None = None,
    mode: int = 2,
    statistics: tuple[float, float, float, float] = (0.0, -1.0, -2.0, -1.0),
) -> bytes:
    """The 1024 bytes before the pixels of an image stack, in this machine's byte order.

    Arguments:
        count: Images.
        height: Rows of each.
        width: Columns of each.
        pixel_size: Å per pixel, written as the voxel size; unknown by default.
        mode: The type of a pixel, one of `MODES`.
        statistics: Smallest, largest, mean value and standard deviation; by default what the
            format has for unknown ones.
    """
    header = np.zeros((), HEADER_DTYPE)
    header["nx"], header["ny"], header["nz"] = width, height, count
    header["mode"] = mode
    # An image stack, not a volume: space group 0 and one section per "cell".
    header["mx"], header["my"], header["mz"] = width, height, 1
    header["ispg"] = 0
    for axis, cells in (("x", width), ("y", height), ("z", 1)):
        header["cella"][axis] = cells * (pixel_size or 0.0)
    for angle in ("alpha", "beta", "gamma"):
        header["cellb"][angle] = 90.0
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["dmin"], header["dmax"], header["dmean"], header["rms"] = statistics
    header["nversion"] = 20141
    header["map"] = b"MAP "
    header["machst"] = machine_stamp_from_byte_order("<" if sys.byteorder == "little" else ">")
    header["nlabl"] = 1
    header["label"][0] = b"svae"
    return header.tobytes()


def write_stack(
    path: Path,
    images: Iterable[np.ndarray],
    count: int,
    height: int,
    width: int,
    pixel_size: float | None = None,
    mode: int = 2,
) -> None:
    """Write an image stack, a few images at a time, whole or not at all.

    Arguments:
        path: The file.
        images: Images (H, W) or batches of them (B, H, W), in their order.
        count: How many there are, all together.
        height: Rows of each.
        width: Columns of each.
        pixel_size: Å per pixel; unknown by default.
        mode: The type of a pixel: 0 (int8), 1 (int16), 2 (float32), 6 (uint16), 12 (float16).
            Values are rounded for whole numbers.

    Raises:
        ValueError: Other images than announced, or values that the mode cannot hold.
    """
    one_of("mode", str(mode), [str(known) for known in MODES])
    dtype = dtype_from_mode(mode)
    written, total, squares, low, high = 0, 0.0, 0.0, np.inf, -np.inf
    with whole_file(path) as file:
        file.write(stack_header(count, height, width, pixel_size=pixel_size, mode=mode))
        for chunk in images:
            if chunk.shape[-2:] != (height, width):
                raise ValueError(
                    f"{path}: expected images of {height}x{width}, got {chunk.shape[-2:]}"
                )
            batch = np.asarray(chunk).reshape(-1, height, width)
            # Unlike the built-in functions, these do not lose a NaN.
            low = float(np.minimum(low, batch.min(initial=np.inf)))
            high = float(np.maximum(high, batch.max(initial=-np.inf)))
            _check_range(path, dtype, low, high)
            total += float(batch.sum(dtype=np.float64))
            squares += float(np.square(batch, dtype=np.float64).sum())
            written += len(batch)
            rounded = np.rint(batch) if dtype.kind in "iu" else batch
            file.write(np.ascontiguousarray(rounded, dtype).data)
        if written != count:
            raise ValueError(f"{path}: expected {count} images, got {written}")
        mean = total / (count * height * width)
        spread = max(0.0, squares / (count * height * width) - mean**2) ** 0.5
        file.seek(0)
        file.write(
            stack_header(
                count,
                height,
                width,
                pixel_size=pixel_size,
                mode=mode,
                statistics=(low, high, mean, spread),
            )
        )


def _check_range(path: Path, dtype: np.dtype, low: float, high: float) -> None:
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
    least, most = float(limits.min), float(limits.max)
    if not (np.isfinite([low, high]).all() and least <= low and high <= most):
        raise ValueError(
            f"{path}: pixels from {low:g} to {high:g} do not fit into {dtype}, "
            f"which holds {least:g} to {most:g}"
        )
