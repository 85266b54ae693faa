"""From the pixels of a file to those that a model sees: cut, coloured, resized, normalised."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

from svae.datasets.picture_files import Unusable

__all__ = ["NORMALIZE", "Normalization", "Shaping", "from_pixels", "from_type"]

NORMALIZE = ("auto", "depth", "range", "image_range", "standard", "image_standard", "none")

#: The share of the pixels that may be clipped at either end: hot pixels must not darken all.
CLIPPED = 0.001

#: The weights of red, green and blue in grey (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Shaping:
    """What is done to an image before its values are normalised.

    Arguments:
        crop: The side in pixels of the central square that is cut out first.
        resize: The side in pixels of the square that is made of it.
        fit: How what is no square becomes one: `crop` cuts off, `pad` adds the border's median.
        color: `keep`, `grey` or `rgb`.
    """

    crop: int | None = None
    resize: int | None = None
    fit: str = "crop"
    color: str = "keep"

    def __call__(self, raw: np.ndarray, name: str) -> np.ndarray:
        """The image (C, H, W), float32, made of (H, W) or (H, W, 3) of any real type.

        Raises:
            Unusable: A pixel is not finite, or all are equal.
            ValueError: The image is smaller than what is to be cut out.
        """
        height, width = raw.shape[:2]
        if self.crop is not None:
            if self.crop > min(height, width):
                raise ValueError(
                    f"dataset.crop: expected at most the {min(height, width)} pixels of {name} "
                    f"({width} x {height}), got {self.crop}"
                )
            raw = _central(raw, self.crop)
        channels = (raw if raw.ndim == 3 else raw[..., np.newaxis]).transpose(2, 0, 1)
        with np.errstate(over="ignore"):  # of float64; what becomes infinite is refused below
            pixels = np.array(channels, np.float32, order="C")
        if not np.isfinite(pixels).all():
            wrong = (~np.isfinite(pixels)).any(0)
            raise Unusable(f"{wrong.sum()} of its {wrong.size} pixels are NaN or infinite")
        if self.color == "grey" and len(pixels) == 3:
            pixels = sum(w * channel for w, channel in zip(LUMA, pixels, strict=True))[np.newaxis]
        elif self.color == "rgb" and len(pixels) == 1:
            pixels = pixels.repeat(3, axis=0)
        if self.resize is not None:
            pixels = self._resized(pixels, self.resize)
        if (pixels == pixels[:, :1, :1]).all():
            value = ", ".join(f"{value:g}" for value in pixels[:, 0, 0])
            raise Unusable(f"it is constant: every pixel is {value}")
        return pixels

    def _resized(self, pixels: np.ndarray, side: int) -> np.ndarray:
        height, width = pixels.shape[1:]
        if self.fit == "crop":
            pixels = _central(pixels.transpose(1, 2, 0), min(height, width)).transpose(2, 0, 1)
            return _scaled(pixels, side, side)
        longer = max(height, width)
        rows, columns = (max(1, round(size * side / longer)) for size in (height, width))
        edges = [pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]]
        fill = np.median(np.concatenate(edges, axis=1), axis=1)
        padded = np.empty((len(pixels), side, side), np.float32)
        padded[:] = fill[:, np.newaxis, np.newaxis]
        top, left = (side - rows) // 2, (side - columns) // 2
        padded[:, top : top + rows, left : left + columns] = _scaled(pixels, rows, columns)
        return padded


def _central(image: np.ndarray, side: int) -> np.ndarray:
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def _scaled(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    if pixels.shape[1:] == (height, width):
        return pixels
    batch = torch.from_numpy(np.ascontiguousarray(pixels)).unsqueeze(0)
    scaled = interpolate(
        batch, (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    # Rounding in the weights may leave the range by one part in ten million.
    return scaled[0].clamp_(float(pixels.min()), float(pixels.max())).numpy()


@dataclass(frozen=True)
class Normalization:
    """The values that a model sees: (raw - offset) / scale.

    Arguments:
        kind: One of `NORMALIZE` but `auto`.
        offset: What becomes 0; of `depth`, `range` and `standard`.
        scale: What becomes 1 above it; of the same.
        invert: Whether bright becomes dark.
    """

    kind: str
    offset: float | None = None
    scale: float | None = None
    invert: bool = False

    def __call__(self, pixels: np.ndarray, name: str) -> np.ndarray:
        """The image (C, H, W), float32, with its values normalised.

        Raises:
            ValueError: `depth` leaves [0, 1].
        """
        offset, scale = self.offset, self.scale
        if self.kind == "image_range":
            offset, scale = value_range(pixels, pixels.min(), pixels.max())
        elif self.kind == "image_standard":
            offset, scale = mean_and_std(pixels)
        if offset is None or scale is None:
            return 1 - pixels if self.invert else pixels
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - offset) / scale
        if self.kind == "depth" and (pixels.min() < 0 or pixels.max() > 1):
            raise ValueError(
                f"dataset.normalize: depth expects pixels from {offset:g} to {offset + scale:g}, "
                f"got {low:g} to {high:g} in {name}; write dataset.normalize=range"
            )
        if self.kind in ("range", "image_range"):
            pixels = pixels.clip(0, 1)
        if self.invert:
            pixels = -pixels if self.kind in ("standard", "image_standard") else 1 - pixels
        return pixels


def value_range(pixels: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Where values are to begin, and the length that they are to span.

    Arguments:
        pixels: All values, or a sample, of any shape.
        low: The least of all values.
        high: The largest.
    """
    first, last = (float(value) for value in np.quantile(pixels, (CLIPPED, 1 - CLIPPED)))
    # A few bright pixels on a black ground are the image, not outliers.
    return (first, last - first) if last > first else (float(low), float(high) - float(low))


def mean_and_std(pixels: np.ndarray) -> tuple[float, float]:
    mean = float(pixels.mean(dtype=np.float64))
    return mean, float(np.sqrt(np.square(pixels - mean).mean(dtype=np.float64)))


def from_type(wanted: Normalization, dtype: np.dtype, name: str) -> Normalization | None:
    """The normalization of images of a type, or None where their pixels must be looked at.

    Raises:
        ValueError: `depth` was asked for and the type is no integer.
    """
    kind = wanted.kind
    if kind == "auto" and dtype in (np.uint8, np.bool_):
        kind = "depth"
    if kind == "depth" and dtype.kind == "f":
        raise ValueError(
            f"dataset.normalize: depth divides integers by their type's largest value, but {name} "
            f"holds {dtype}; write dataset.normalize=range or none"
        )
    if wanted.scale is not None or kind in ("none", "image_range", "image_standard"):
        return wanted
    if kind == "depth":
        largest = 1 if dtype == np.bool_ else np.iinfo(dtype).max
        return Normalization("depth", 0.0, float(largest), wanted.invert)
    return None


def from_pixels(
    wanted: Normalization, dtype: np.dtype, sample: np.ndarray, low: float, high: float
) -> Normalization:
    """The normalization that the pixels decide.

    Arguments:
        wanted: The one that was asked for: `auto`, `range` or `standard`.
        dtype: The type that the images are stored in.
        sample: Some of their pixels, of any shape.
        low: The least of all pixels.
        high: The largest.
    """
    if wanted.kind == "auto" and dtype.kind == "f" and low >= 0 and high <= 1:
        return Normalization("none", invert=wanted.invert)
    if wanted.kind == "standard":
        return Normalization("standard", *mean_and_std(sample), wanted.invert)
    return Normalization("range", *value_range(sample, low, high), wanted.invert)
