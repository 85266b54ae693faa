"""Stacks of images: where the files lie that a list names, what is in them, and their pixels."""

import mmap
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from svae.formats import mrc

__all__ = ["STACKS", "ArrayHeader", "Header", "fetch", "find_stacks", "open_stack", "open_stacks"]

#: The files that hold images.
STACKS = (".mrcs", ".mrc", ".npy")


@dataclass(frozen=True)
class ArrayHeader:
    """An `.npy` of images, as an MRC header says it."""

    path: Path
    count: int
    height: int
    width: int
    pixel_size: float | None = None

    def map(self) -> np.ndarray:
        images = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return images if images.ndim == 3 else images[np.newaxis]


#: What is known of a stack without its pixels; `map()` gives these.
Header = mrc.MrcHeader | ArrayHeader


def find_stacks(path: Path, texts: list[str], datadir: Path | None) -> list[Path]:
    """The stacks that a file names, absolute.

    Arguments:
        path: The file; they are looked for from its folder and the folders above.
        texts: What it writes for each.
        datadir: A folder to look in first, and there by their names alone, too.

    Raises:
        FileNotFoundError: One is nowhere.
        PermissionError: One may be where nobody is let in.
    """
    folders = [*([datadir] if datadir else []), path.parent, *path.parent.parents]
    found, lost = [], []
    forbidden: PermissionError | None = None
    for text in texts:
        places = [folder / text for folder in folders]
        if datadir:
            places.append(datadir / PurePosixPath(text).name)
        for place in places:
            try:
                place.stat()
            except PermissionError as error:
                forbidden = error
            except OSError:
                continue
            else:
                found.append(place)
                break
        else:
            lost.append(text)
    if lost and forbidden:
        raise forbidden
    if lost:
        told = "dataset.datadir" + (f" ({datadir})" if datadir else "")
        raise FileNotFoundError(
            f"{path}: of its {len(texts)} stacks {len(lost)} cannot be found, such as {lost[0]}; "
            f"set {told} to the folder that these paths start from"
        )
    return found


def open_stack(path: Path) -> Header:
    """The header of a stack, checked against the file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no stack, or damaged.
    """
    try:
        if path.suffix != ".npy":
            return mrc.read_header(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except IsADirectoryError:
        raise ValueError(f"{path}: expected a stack, found a folder") from None
    except (ValueError, EOFError) as error:
        if path.suffix != ".npy":
            raise
        raise ValueError(f"{path}: no whole .npy file ({error})") from error
    if array.ndim not in (2, 3) or array.dtype.kind not in "buif" or not array.size:
        raise ValueError(
            f"{path}: expected images (N, H, W) of numbers, got {array.dtype} of shape "
            f"{array.shape}"
        )
    return ArrayHeader(path, *((1,) * (3 - array.ndim) + array.shape))


def open_stacks(path: Path, stacks: list[Path], stack: np.ndarray) -> list[Header]:
    """The header of every stack; all are good, and all images of one size.

    Arguments:
        path: The file that names them, for messages.
        stacks: The stack files.
        stack: Which of them each particle lies in, with shape (N,).

    Raises:
        PermissionError: One may not be read.
        ValueError: One is bad, or of another size.
    """
    heads, errors = [], []
    for file in stacks:
        try:
            heads.append(open_stack(file))
        except (ValueError, OSError) as error:
            errors.append(error)
    if errors:
        more = f" ({len(errors)} of the {len(stacks)} stacks are bad)" * (len(errors) > 1)
        if isinstance(errors[0], PermissionError):
            raise errors[0]
        raise ValueError(f"{errors[0]}{more}") from errors[0]
    sizes = np.array([(head.height, head.width) for head in heads])
    other = (sizes != sizes[0]).any(axis=1)
    if other.any():
        first = int(np.flatnonzero(other)[0])
        height, width = sizes[0]
        raise ValueError(
            f"{path}: images of different sizes: {stacks[0]} has {height}x{width}, "
            f"{stacks[first]} has {sizes[first][0]}x{sizes[first][1]} "
            f"({int(other[stack].sum())} of {len(stack)} particles have another than the first)"
        )
    return heads


def fetch(pixels: np.ndarray, place: np.ndarray) -> None:
    """Have the system read the images at `place` (B,) of a map (N, H, W) all at once.

    As they are copied, a disk would be asked for one piece after the other: several times slower.
    """
    held: object = pixels.base
    if not isinstance(pixels, np.memmap) or not isinstance(held, mmap.mmap):
        return
    if not hasattr(mmap, "MADV_WILLNEED"):  # Windows
        return
    start, size = pixels.offset % mmap.ALLOCATIONGRANULARITY, pixels.strides[0]
    for first in (start + place * size).tolist():
        page = first - first % mmap.PAGESIZE
        held.madvise(mmap.MADV_WILLNEED, page, first + size - page)
