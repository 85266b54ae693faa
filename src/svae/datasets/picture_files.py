"""Pictures in files, each read when it is asked for: PNG, JPEG and TIFF, page by page."""

import logging
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from svae.errors import one_line
from svae.files import natural

__all__ = [
    "SUFFIXES",
    "TIFF",
    "PictureFiles",
    "Source",
    "Unusable",
    "list_pictures",
    "one_channel",
    "reason",
]

TIFF = (".tif", ".tiff")
SUFFIXES = (".png", ".jpg", ".jpeg", *TIFF)

#: Where a page begins that is not there.
_NOWHERE = sys.maxsize

# It logs, in several lines, what is wrong with a file; the exceptions here say it in one.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


class Unusable(Exception):
    """A picture that no model can learn from; the message says why, without the file's name."""


class Source(ABC):
    """Images in a fixed order. It pickles without their pixels."""

    #: The folder or file that they come from.
    path: Path
    #: The file of each image, where they are files of their own or pages of one.
    file_names: list[str] | None = None
    #: The same without the page: the images of one file have one name.
    files: list[str] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, row: int) -> str:
        """What messages call an image."""

    @abstractmethod
    def read(self, row: int) -> np.ndarray:
        """One image, (H, W) or (H, W, 3), in the type that it is stored in; row 0 is the top.

        Raises:
            Unusable: The image cannot be read.
            ValueError: It has no such channel as is wanted.
        """

    @abstractmethod
    def own_labels(self) -> np.ndarray | None:
        """The label of each image as integers or words (N,), where the source says them."""


def list_pictures(folder: Path) -> list[str]:
    """The paths of all pictures below a folder, relative to it, in natural order.

    Hidden files and folders do not count.
    """

    def refuse(error: OSError) -> None:
        reason = (error.strerror or one_line(error)).lower()
        raise PermissionError(f"dataset.path: {error.filename} cannot be read ({reason})")

    found = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(place).relative_to(folder)
        found += [
            (below / name).as_posix()
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    if not found:
        raise ValueError(
            f"dataset.path: no picture in {folder} or its sub-folders; expected files that end "
            f"in {', '.join(SUFFIXES)}"
        )
    return sorted(found, key=natural)


def one_channel(image: np.ndarray, channel: int | None, name: str) -> np.ndarray:
    """A channel (H, W) of an image (H, W) or (H, W, C), counted from 0; all where it is None.

    Raises:
        ValueError: There is no such channel.
    """
    if channel is None:
        return image
    channels = image[..., np.newaxis] if image.ndim == 2 else image
    count = channels.shape[2]
    if channel >= count:
        raise ValueError(
            f"dataset.channel: {name} has {count} channel{'s' * (count > 1)}; expected a number "
            f"below {count}, or null, got {channel}"
        )
    return channels[..., channel]


class Page(NamedTuple):
    """Where an image is in its file; all is 0 where the file is no TIFF."""

    #: The byte that the page's directory begins at, and the frame that it tells of.
    offset: int = 0
    frame: int = 0
    #: The channel that it holds alone, where the file has each of several in pages of its own.
    channel: int | None = None


class PictureFiles(Source):
    """PNG, JPEG and TIFF files; each page of a TIFF is an image, called `stack.tif[3]` (from 0).

    Arguments:
        root: The folder.
        paths: The files' paths relative to it.
        channel: The one that is read of images with several, from 0; None for all of RGB; `all`
            if each of a TIFF that has them in pages of their own is an image.

    Raises:
        ValueError: A TIFF has several channels in pages of their own, and not this one.
    """

    def __init__(self, root: Path, paths: Iterable[str], channel: int | str | None = None) -> None:
        self.path = root
        self.channel = channel if isinstance(channel, int) else None
        self.file_names: list[str] = []
        self.files: list[str] = []
        self.pages: list[Page] = []
        for path in paths:
            tiff = path.lower().endswith(TIFF)
            pages, channels = _tiff_pages(root / path) if tiff else ([Page()], 1)
            if channels > 1 and channel != "all":
                if self.channel is None or self.channel >= channels:
                    raise ValueError(
                        f"dataset.channel: {path} has {channels} channels; expected 0 to "
                        f"{channels - 1}, or all if each is to be an image, got "
                        f"{'null' if channel is None else channel}"
                    )
                pages = [page for page in pages if page.channel in (channel, None)]
            self.file_names += (
                [path] if len(pages) == 1 else [f"{path}[{i}]" for i in range(len(pages))]
            )
            self.files += [path] * len(pages)
            self.pages += pages

    def __len__(self) -> int:
        return len(self.pages)

    def name(self, row: int) -> str:
        return self.file_names[row]

    def read(self, row: int) -> np.ndarray:
        page = self.pages[row]
        channel = self.channel if page.channel is None else None
        image = self._read(self.files[row], page, any_channels=channel is not None)
        return one_channel(image, channel, self.name(row))

    def _read(self, path: str, page: Page, any_channels: bool) -> np.ndarray:
        try:
            if path.lower().endswith(TIFF):
                return _read_tiff(self.path / path, page, any_channels)
            return _read_with_pillow(self.path / path)
        except Unusable:
            raise
        except PermissionError:
            raise Unusable("no permission to read it") from None
        # Decoders raise whatever they stumble over in a damaged file.
        except Exception as error:
            raise Unusable(f"it cannot be read ({reason(error)})") from error

    def own_labels(self) -> np.ndarray | None:
        """The first sub-folder's name, if all files lie in sub-folders and these differ."""
        folders = [path.rpartition("/")[0].partition("/")[0] for path in self.files]
        return np.array(folders) if all(folders) and len(set(folders)) > 1 else None


def reason(error: Exception) -> str:
    """What a decoder said, short and without the file's name, which the message has already."""
    text = re.sub(r"<[^>]*>|'[^']*/[^']*'", "", one_line(error)).strip(" :")
    return f"{text[:120]}..." if len(text) > 120 else text


def _read_with_pillow(path: Path) -> np.ndarray:
    content = path.read_bytes()
    if not content:
        raise Unusable("the file is empty")
    # Pillow would cut 16-bit colours to 8 bits; in a PNG, bytes 24 and 25 tell depth and colour.
    if content[:4] == b"\x89PNG" and content[24:25] == b"\x10" and content[25:26] != b"\0":
        return _over_black(imagecodecs.png_decode(content))
    with path.open("rb") as file, Image.open(file) as image:
        image.load()
        orientation = image.getexif().get(0x0112, 1)
        grey = image.mode in ("1", "L", "LA", "La")
        alpha = image.has_transparency_data
        plain = ("LA" if alpha else "L") if grey else "RGBA" if alpha else "RGB"
        deep = image.mode in ("I;16", "I;16B", "I;16L", "I", "F")
        pixels = np.asarray(image if deep else image.convert(plain))
        return _over_black(_upright(pixels, orientation))


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the turn that a camera noted (TIFF 6.0, tag Orientation: where row 0 is)."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def _over_black(image: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """(H, W), (H, W, 1), (H, W, 3) as they are; with alpha as a last channel laid over black."""
    if image.ndim == 3 and image.shape[2] in (2, 4):
        image, alpha = image[..., :-1], image[..., -1:]
        integer = alpha.dtype.kind == "u"
        opaque = np.iinfo(alpha.dtype).max if integer else 1
        if not premultiplied and (alpha != opaque).any():
            laid = image * (alpha / np.float32(opaque))
            image = (np.rint(laid) if integer else laid).astype(image.dtype)
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image


def _tiff_pages(path: Path) -> tuple[list[Page], int]:
    """The pages of a file, and how many channels it has in pages of their own."""
    try:
        # A file that names others of its set would have all of them opened.
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            pages = list(tiff.pages)
            # A large ImageJ stack has one directory, and all frames one after the other.
            frames = int((tiff.imagej_metadata or {}).get("images", 1)) if tiff.is_imagej else 1
            if len(pages) == 1 and frames > 1:
                images = [Page(pages[0].offset, frame) for frame in range(frames)]
            else:
                # Thumbnails and masks are pages as well.
                images = [Page(p.offset) for p in pages if not getattr(p, "subfiletype", 0) & 5]
            # Where the chain of pages breaks off, what is missing counts as one page.
            tiff.filehandle.seek(tiff.pages.next_page_offset or 0)
            end = bytes(tiff.tiff.offsetsize)
            if tiff.filehandle.read(len(end)) != end:
                images.append(Page(_NOWHERE))
            if len(images) < 2:
                return images or [Page(pages[0].offset)], 1
            found, channels = _channels(tiff)
            return [page._replace(channel=found.get(page)) for page in images], channels
    except Exception:
        return [Page(_NOWHERE)], 1  # what is wrong with the file is told when it is read


def _channels(tiff: tifffile.TiffFile) -> tuple[dict[Page, int], int]:
    """The channel of each page by the metadata of ImageJ or OME, and how many there are.

    Pages of files with one channel are not among them.
    """
    found: dict[Page, int] = {}
    channels = 1
    for series in tiff.series:
        inside = series.keyframe.ndim
        axes, shape = series.axes[:-inside], series.shape[:-inside]
        number = np.indices(shape)[axes.index("C")].ravel() if "C" in axes else np.zeros(1, int)
        if number.max() == 0:
            continue
        channels = max(channels, int(number.max()) + 1)
        # One directory may tell of all pages.
        one = len(series.pages) == 1
        for i, page in enumerate([series.pages[0]] * len(number) if one else series.pages):
            if page is not None:
                found[Page(page.offset, i if one else 0)] = int(number[i])
    return found, channels


def _read_tiff(path: Path, place: Page, any_channels: bool) -> np.ndarray:
    with tifffile.TiffFile(path) as tiff:
        if place.offset >= tiff.filehandle.size:
            raise Unusable("the file is damaged or truncated")
        tiff.filehandle.seek(place.offset)
        page = tifffile.TiffPage(tiff, 0)
        ends = [a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=False)]
        start = page.dataoffsets[0] + place.frame * page.nbytes if ends else 0
        if max([*ends, start + page.nbytes if place.frame else 0]) > tiff.filehandle.size:
            raise Unusable("the file is truncated")
        if place.frame and page.dtype is not None:
            dtype = np.dtype(tiff.byteorder + page.dtype.char)
            image = tiff.filehandle.read_array(dtype, page.size, start).reshape(page.shape)
        else:
            image = page.asarray()
        return _upright(_tiff_colours(page, image, any_channels), page.tags.valueof(274, 1))


def _tiff_colours(
    page: tifffile.TiffPage, image: np.ndarray, any_channels: bool = False
) -> np.ndarray:
    """Grey (H, W) or RGB (H, W, 3), whatever the page's samples mean.

    With `any_channels`, an image may have another number of them, (H, W, C).
    """
    if page.axes == "SYX":
        image = np.moveaxis(image, 0, -1)
    elif page.axes not in ("YX", "YXS"):
        raise Unusable(f"expected a flat picture, got one of shape {image.shape} ({page.axes})")
    meaning = page.photometric
    kind = meaning.name if isinstance(meaning, tifffile.PHOTOMETRIC) else str(meaning)
    if kind == "PALETTE" and page.colormap is not None:
        return (page.colormap.T >> 8).astype(np.uint8)[image]
    if kind not in ("MINISBLACK", "MINISWHITE", "RGB", "YCBCR"):
        raise Unusable(f"expected grey or RGB, got {kind}")
    if page.bitspersample in (1, 2, 4):
        image = image.astype(np.uint8) * np.uint8(255 // (2**page.bitspersample - 1))
    if kind == "MINISWHITE" and image.dtype.kind == "u":
        bits = max(8, page.bitspersample)
        image = image.dtype.type(2**bits - 1) - image
    extra = tuple(int(sample) for sample in page.extrasamples)
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels in (2, 4) and extra in ((1,), (2,)):
        return _over_black(image, premultiplied=extra == (1,))
    if channels not in (1, 3) and not any_channels:
        raise Unusable(
            f"expected 1 or 3 channels, got {channels}; dataset.channel=0 reads the first of them"
        )
    return image
