"""A stack that is written part by part, and that goes on where a kill left it."""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from svae.files import write_atomic
from svae.formats.mrc import stack_header

__all__ = ["MODES", "GrowingStack"]

#: The mode of an MRC file, by the type of its pixels.
MODES = {"float32": 2, "float16": 12}

#: What the system says where no more can be written.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Seen:
    """What was written so far.

    Arguments:
        images: How many.
        low: The smallest value.
        high: The largest.
        total: The sum of all values.
        squares: The sum of their squares.
        unusable: Why images cannot be used, by their place in the stack.
    """

    images: int = 0
    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    squares: float = 0.0
    unusable: dict[int, str] = field(default_factory=dict)


class GrowingStack:
    """An MRC stack of images that come part by part, in their order.

    Until all are there, it has another name. Beside it lies a file with a line for each part that
    is on the disk: whoever opens the stack again goes on after the last of them, and what comes
    out has the same bytes as if nothing had happened.

    Arguments:
        path: The stack.
        count: How many images it is to have.
        height: Rows of each.
        width: Columns of each.
        dtype: One of `MODES`.
        pixel_size: Å per pixel; None: unknown.
    """

    def __init__(
        self,
        path: Path,
        count: int,
        height: int,
        width: int,
        dtype: str = "float32",
        pixel_size: float | None = None,
    ) -> None:
        self.path, self.count, self.dtype = path, count, np.dtype(dtype)
        self.height, self.width, self.pixel_size = height, width, pixel_size
        self._partial = path.with_name(f".{path.name}.part")
        self._progress = path.with_name(f".{path.name}.progress")
        self._seen = _read(self._progress)

    @property
    def written(self) -> int:
        """How many images are there."""
        return self._seen.images

    @property
    def unusable(self) -> dict[int, str]:
        """Why some of them cannot be used, by their place."""
        return self._seen.unusable

    def __enter__(self) -> "GrowingStack":
        mode = "r+b" if self._partial.exists() else "w+b"
        with ExitStack() as files, self._full_disk_told():
            self._file = files.enter_context(self._partial.open(mode))
            self._reserve(len(self._header()) + self.count * self._bytes)
            # Without what a kill may have left of the last line.
            write_atomic(self._progress, _line(self._seen))
            self._lines = files.enter_context(self._progress.open("a"))
            self._files = files.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def add(self, images: np.ndarray, unusable: dict[int, str]) -> None:
        """Write the next images (B, H, W), some of which cannot be used, by their place here.

        Raises:
            OSError: The disk is full; what was written before stays, and it can go on.
        """
        seen, values = self._seen, images.astype(np.float64)
        new = {seen.images + place: why for place, why in unusable.items()}
        after = Seen(
            seen.images + len(images),
            min(seen.low, float(values.min())),
            max(seen.high, float(values.max())),
            seen.total + float(values.sum()),
            seen.squares + float(np.square(values).sum()),
            new,
        )
        with self._full_disk_told():
            self._file.seek(len(self._header()) + seen.images * self._bytes)
            self._file.write(np.ascontiguousarray(images, self.dtype).data)
            self._sync()  # first the images, then the line that says that they are there
            self._lines.write(_line(after))
            self._lines.flush()
        after.unusable = seen.unusable | new
        self._seen = after

    def finish(self) -> None:
        """Give the stack its name, after all images were added."""
        with self._full_disk_told():
            self._file.seek(0)
            self._file.write(self._header())
            self._sync()
        os.replace(self._partial, self.path)

    def forget(self) -> None:
        """Remove what says how far it was, after all is done."""
        self._progress.unlink(missing_ok=True)

    @property
    def _bytes(self) -> int:
        """Of an image."""
        return self.height * self.width * self.dtype.itemsize

    def _header(self) -> bytes:
        seen, values = self._seen, max(1, self._seen.images * self.height * self.width)
        mean = seen.total / values
        spread = math.sqrt(max(0.0, seen.squares / values - mean**2))
        size, mode = self.pixel_size, MODES[self.dtype.name]
        statistics = (seen.low, seen.high, mean, spread)
        return stack_header(
            self.count, self.height, self.width, pixel_size=size, mode=mode, statistics=statistics
        )

    def _reserve(self, size: int) -> None:
        """Take all the room at once, so that a full disk is told before hours of work."""
        held = os.fstat(self._file.fileno()).st_size
        if held >= size:
            return
        free = shutil.disk_usage(self.path.parent).free
        if free < size - held:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            if error.errno in _FULL:
                self._file.truncate(held)  # the disk is not left full
                raise

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    @contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            size = (len(self._header()) + self.count * self._bytes) / 1e9
            raise OSError(
                f"{self.path}: {os.strerror(error.errno).lower()}: it takes {size:.3g} GB; "
                f"{self.written} of its {self.count} images are written; make room, and the same "
                "command goes on"
            ) from error


def _line(seen: Seen) -> str:
    return json.dumps(asdict(seen)) + "\n"


def _read(path: Path) -> Seen:
    """What a file says was written; nothing if there is no file."""
    seen = Seen()
    unusable: dict[int, str] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            said = Seen(**json.loads(line))
        except ValueError:  # what a kill left of the last line
            break
        unusable |= {int(place): why for place, why in said.unusable.items()}
        seen = said
    seen.unusable = unusable
    return seen
