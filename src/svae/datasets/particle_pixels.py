r"""From the pixels of a particle stack to those that a model sees: cropped, normalised, masked.

Every radius is measured from the pixel N//2, RELION's centre, and every image is treated by
itself: how many come at once changes no pixel.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from svae.checks import at_least, one_of, positive, truth_or_auto

__all__ = [
    "NORMALIZE",
    "Images",
    "Preparation",
    "contrast",
    "cropped_pixel_size",
    "fourier_crop",
    "normalise",
    "radius",
    "soft_mask",
]

log = logging.getLogger(__name__)

NORMALIZE = ("background", "image", "dataset", "none")

#: How many images, evenly spaced over all, decide what is left open; how many are read at once.
SAMPLE, AT_ONCE = 1000, 50

#: In fractions of half the side: within the first is particle, beyond the second background.
INSIDE, OUTSIDE = 0.5, 0.8

#: A background that varies less than this part of the whole image holds no noise to measure.
LEAST_NOISE = 1e-3


class Images(Protocol):
    """Images by their rows: (B,) int64 to (B, H, W) float32."""

    def __getitem__(self, rows: Tensor) -> Tensor: ...


def radius(height: int, width: int) -> Tensor:
    """The distance in pixels of every pixel from pixel N//2, with shape (H, W), float64."""
    y = torch.arange(height, dtype=torch.float64) - height // 2
    x = torch.arange(width, dtype=torch.float64) - width // 2
    return torch.hypot(y[:, None], x[None, :])


def cropped_pixel_size(pixel_size: float, before: int, after: int) -> float:
    """The pixel size of images that were cropped from a side of `before` pixels to `after`."""
    return pixel_size * before / after


def fourier_crop(images: Tensor, size: int) -> Tensor:
    r"""Make square images smaller by leaving out high frequencies.

    What is below the new Nyquist frequency is kept as it is, mean and amplitude included: of the
    usual transforms, that is a factor of (size / N)\ :sup:`2`. The coefficients at the new Nyquist
    frequency of an even size are 0: the two of the image, at +size/2 and -size/2, would have to
    share one, which can hold neither's phase, so that a cropped image could no longer be moved by
    a part of a pixel, and its mirror image would not be the cropped mirror image.

    Pixel N//2 becomes pixel size//2, so that offsets in Å stay true, for odd and even sizes. The
    middle of svae's grid, (N-1)/2, is half a pixel before that in both axes where the size is
    even; that half pixel is a longer way once pixels are larger. An object at RELION's centre has
    the shift (1, -1) / (N - 1) in grid units before, and (1, -1) / (size - 1) after (0 where the
    size is odd).

    Arguments:
        images: The images, with shape (..., N, N), float32.
        size: The new side in pixels; that of the images leaves them as they are.

    Returns:
        The cropped images, with shape (..., size, size).

    Raises:
        ValueError: The images are no squares, or smaller than that.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(f"size: expected square images to crop, got {width} x {height} pixels")
    if size > height:
        raise ValueError(f"size: expected at most the {height} pixels of the images, got {size}")
    if size == height:
        return images
    # The centre of even sizes is where it has to be already.
    odd = height % 2 or size % 2
    if odd:
        images = torch.fft.ifftshift(images, (-2, -1))
    kept = (size - 1) // 2  # the highest frequency below the new Nyquist frequency
    # Axis by axis, so that the second transform is of what is kept alone; along rows, because
    # transforms along columns take several times as long.
    rows = torch.fft.rfft(images, norm="forward")[..., : kept + 1]
    spectrum = torch.fft.fft(rows.mT.contiguous(), norm="forward")
    cropped = spectrum.new_zeros(*spectrum.shape[:-1], size)
    cropped[..., : kept + 1] = spectrum[..., : kept + 1]
    cropped[..., size - kept :] = spectrum[..., height - kept :]
    columns = torch.fft.ifft(cropped, norm="forward").mT.contiguous()
    small = torch.fft.irfft(columns, size, norm="forward")
    return torch.fft.fftshift(small, (-2, -1)) if odd else small


def normalise(
    images: Tensor,
    kind: str = "background",
    background_radius_px: float | None = None,
    mean: float | None = None,
    std: float | None = None,
    ramp: bool = False,
) -> tuple[Tensor, Tensor]:
    """Bring images to mean 0 and standard deviation 1.

    Arguments:
        images: The images, with shape (B, H, W), float32.
        kind: Whose mean and deviation: `background`, each image's pixels beyond a radius, as
            RELION does; `image`, all pixels of each; `dataset`, the given; `none` changes nothing.
        background_radius_px: The radius; 0.75 of half the shorter side by default.
        mean: Of the data set.
        std: Of the data set.
        ramp: Whether the plane that fits the background best is subtracted first.

    Returns:
        The images, and which of them could be normalised, with shape (B,), bool: not those whose
        pixels (of the background) are constant up to rounding.

    Raises:
        ValueError: A radius beyond which there are not three pixels, or no mean for `dataset`.
    """
    one_of("normalize", kind, NORMALIZE)
    fine = torch.ones(len(images), dtype=torch.bool, device=images.device)
    if kind == "none":
        return images, fine
    if kind == "dataset":
        if mean is None or std is None:
            raise ValueError("normalize: dataset expects the mean and std of the data set")
        return (images - mean) / std, fine
    flat = images.flatten(1)
    if kind == "image":
        middle, deviation = _mean_and_std(flat)
        least = torch.finfo(flat.dtype).eps * flat.abs().amax(1)
    else:
        outside = _outside(images, background_radius_px)
        if ramp:
            background = flat.index_select(1, outside)
            flat = flat - _plane(background, outside, images.shape[-2:])
        middle, deviation = _mean_and_std(flat.index_select(1, outside))
        least = LEAST_NOISE * _mean_and_std(flat)[1]
    fine = ~(deviation <= least)
    safe = torch.where(fine, deviation, 1.0)
    return ((flat - middle[:, None]) / safe[:, None]).view_as(images), fine


def _mean_and_std(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Of every row."""
    # In float64, where the order of a sum, which may differ from batch to batch, hardly matters;
    # `torch.std_mean` would take thirty times as long.
    values = flat.double()
    mean = values.mean(1, keepdim=True)
    std = values.sub_(mean).square_().mean(1).sqrt()
    return mean[:, 0].float(), std.float()


def _outside(images: Tensor, background_radius_px: float | None) -> Tensor:
    """The places in the flat image beyond the radius."""
    height, width = images.shape[-2:]
    if background_radius_px is None:
        background_radius_px = 0.75 * min(height, width) / 2
    outside = (radius(height, width).flatten() > background_radius_px).nonzero()[:, 0]
    if len(outside) < 3:
        raise ValueError(
            "background_radius: expected pixels beyond it to measure the background, but there "
            f"are {len(outside)} beyond {background_radius_px:g} px of the centre of images of "
            f"{width} x {height}"
        )
    return outside.to(images.device)


def _plane(background: Tensor, outside: Tensor, shape: torch.Size) -> Tensor:
    """The plane through the background that fits best, with shape (B, H*W)."""
    height, width = shape
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height, dtype=torch.float64),
        torch.linspace(-1, 1, width, dtype=torch.float64),
        indexing="ij",
    )
    terms = torch.stack((torch.ones_like(x), x, y), -1).flatten(0, 1).to(background.device)
    orthogonal, triangle = torch.linalg.qr(terms[outside])
    everywhere = torch.linalg.solve_triangular(triangle, terms, upper=True, left=False)
    # Sum by sum rather than as a matrix product, which may round otherwise in another batch.
    plane = torch.zeros(len(background), len(terms), dtype=torch.float64, device=terms.device)
    for k in range(terms.shape[1]):
        plane += (background * orthogonal[:, k]).sum(1, keepdim=True) * everywhere[:, k]
    return plane.float()


def soft_mask(images: Tensor, radius_px: float, edge_px: float = 5.0) -> Tensor:
    """Replace what is beyond a radius by its mean, each image's own.

    Arguments:
        images: The images, with shape (B, H, W).
        radius_px: Up to here pixels stay as they are.
        edge_px: So much further out nothing is left of them; a raised cosine between.
    """
    distance = radius(*images.shape[-2:]) - radius_px
    edge = distance / edge_px if edge_px > 0 else (distance > 0).double()
    gone = ((1 - torch.cos(math.pi * edge.clamp(0, 1))) / 2).to(images)
    if not gone.any():
        return images
    fill = (images * gone).flatten(1).sum(1, dtype=torch.float64) / gone.sum(dtype=torch.float64)
    return images + gone * (fill.to(images)[:, None, None] - images)


def contrast(images: Tensor) -> Tensor:
    """How much brighter than the background the particle is, in standard deviations, (B,).

    The mean within half of half the side less that beyond 0.8 of it, over the image's deviation.
    """
    height, width = images.shape[-2:]
    distance = (radius(height, width) / (min(height, width) / 2)).flatten().to(images.device)
    flat = images.flatten(1)
    inside, outside = (
        flat[:, where].mean(1, dtype=torch.float64)
        for where in (distance < INSIDE, distance > OUTSIDE)
    )
    return (inside - outside) / _mean_and_std(flat)[1]


@dataclass(frozen=True)
class Preparation:
    """What is done to particles before a model sees them, in this order.

    Arguments:
        size: The side in pixels that they are Fourier-cropped to; None: as they are.
        normalize: One of `NORMALIZE`, see `normalise`.
        background_radius: Where the background begins, in fractions of half the side.
        ramp: Whether a plane is subtracted from `background`.
        mean: What becomes 0 in `dataset`, a value of the cropped images; None: found.
        std: What becomes 1 above it; None: found.
        invert: Whether dark becomes bright; `auto`: if particles are darker than the background.
        mask_radius: Beyond which pixels are replaced by their mean, in fractions of half the
            side; None: no mask.
        mask_edge: The width of the mask's edge in pixels (after cropping).

    Raises:
        ValueError: A setting is out of its range.
    """

    size: int | None = None
    normalize: str = "background"
    background_radius: float = 0.75
    ramp: bool = False
    mean: float | None = None
    std: float | None = None
    invert: bool | str = "auto"
    mask_radius: float | None = None
    mask_edge: float = 5.0

    def __post_init__(self) -> None:
        if self.size is not None:
            at_least("size", self.size, 2)
        one_of("normalize", self.normalize, NORMALIZE)
        positive("background_radius", self.background_radius)
        if not isinstance(self.ramp, bool):
            raise ValueError(f"ramp: expected true or false, got {self.ramp!r}")
        truth_or_auto("invert", self.invert)
        if self.mask_radius is not None:
            positive("mask_radius", self.mask_radius)
        if self.mask_edge != 0:
            positive("mask_edge", self.mask_edge)
        if self.mean is not None and not (
            isinstance(self.mean, int | float) and math.isfinite(self.mean)
        ):
            raise ValueError(f"mean: expected a number, got {self.mean!r}")
        if self.std is not None:
            positive("std", self.std)

    def check(self, height: int, width: int) -> None:
        """Raise ValueError if images of this size cannot be cropped or normalised."""
        able = replace(self, mean=0.0, std=1.0, invert=False)
        able.prepared(torch.zeros(1, height, width))

    def settled(self, images: Images, count: int) -> "Preparation":
        """The same with what was left open decided by a sample of the images; told in the log.

        Arguments:
            images: The images as they are read, by their rows.
            count: Their number.
        """
        measure = self.normalize == "dataset" and (self.mean is None or self.std is None)
        if self.invert != "auto" and not measure:
            return self
        values, contrasts = _Moments(), []
        for batch in _sample(images, count):
            # What cannot be used decides nothing; it is told with its name later.
            unusable = _unusable(batch)
            batch = batch[[place for place in range(len(batch)) if place not in unusable]]
            if not len(batch):
                continue
            contrasts.append(contrast(batch))
            if measure:
                values.add(batch if self.size is None else fourier_crop(batch, self.size))
        if not contrasts:
            raise ValueError(
                "none of the images that were looked at can be used: each is constant"
                " or holds NaN or infinity"
            )
        settled = self
        if self.invert == "auto":
            settled = replace(settled, invert=_darker(torch.cat(contrasts)))
        if measure:
            mean = values.mean if self.mean is None else self.mean
            std = values.std if self.std is None else self.std
            log.info("dataset.normalize=dataset: mean %.6g, standard deviation %.6g", mean, std)
            settled = replace(settled, mean=mean, std=std)
        return settled

    def __call__(self, images: Tensor, name: Callable[[int], str] = "image {}".format) -> Tensor:
        """The images as a model sees them.

        Arguments:
            images: The images as they are read, with shape (B, H, W), float32.
            name: What each is called, by its place in the batch, for messages.

        Returns:
            The images, with shape (B, size, size), float32.

        Raises:
            ValueError: Some cannot be used; the first is named, with the reason.
        """
        prepared, unusable = self.prepared(images)
        if unusable:
            place, reason = next(iter(unusable.items()))
            more = f" (and {len(unusable) - 1} more of these {len(images)})"
            raise ValueError(f"{name(place)}: {reason}{more if len(unusable) > 1 else ''}")
        return prepared

    def prepared(self, images: Tensor) -> tuple[Tensor, dict[int, str]]:
        """The images as a model sees them, and why some cannot be used, by place.

        Those that cannot are 0 everywhere.
        """
        if self.invert == "auto":
            raise ValueError("invert: auto must be decided first, by `settled`")
        unusable = _unusable(images)
        if self.normalize == "background":
            # Before cropping, which spreads the particle over what was constant.
            beyond = self.background_radius * min(images.shape[-2:]) / 2
            background = images.flatten(1).index_select(1, _outside(images, beyond))
            for place in _unusable(background):
                unusable.setdefault(place, self._why_not())
        if unusable:
            images = images.clone()
            images[list(unusable)] = 0
        if self.size is not None:
            images = fourier_crop(images, self.size)
        half = min(images.shape[-2:]) / 2
        images, fine = normalise(
            images, self.normalize, self.background_radius * half, self.mean, self.std, self.ramp
        )
        for place in (~fine).nonzero()[:, 0].tolist():
            unusable.setdefault(place, self._why_not())
        if self.invert:
            images = -images
        if self.mask_radius is not None:
            images = soft_mask(images, self.mask_radius * half, self.mask_edge)
        if unusable:
            images[list(unusable)] = 0
        flat = images.flatten(1)
        for place in (~(flat.amin(1) - flat.amax(1)).isfinite()).nonzero()[:, 0].tolist():
            unusable[place] = "its values are too large for float32"
            images[place] = 0
        return images, dict(sorted(unusable.items()))

    def _why_not(self) -> str:
        if self.normalize == "image":
            return "nothing of it is left after cropping"
        return (
            f"its background, beyond {self.background_radius:g} of half the side, is constant, as "
            "after masking; dataset.normalize=image does without"
        )


class _Moments:
    """Mean and standard deviation of values that come in parts."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, values: Tensor) -> None:
        var, mean = torch.var_mean(values.double(), correction=0)
        total = self.count + values.numel()
        away = mean.item() - self.mean
        self._squares += var.item() * values.numel()
        self._squares += away**2 * self.count * values.numel() / total
        self.mean += away * values.numel() / total
        self.count = total

    @property
    def std(self) -> float:
        return math.sqrt(self._squares / self.count)


def _sample(images: Images, count: int) -> Iterator[Tensor]:
    rows = torch.linspace(0, count - 1, min(count, SAMPLE), dtype=torch.float64).round().long()
    for part in rows.split(AT_ONCE):
        yield images[part]


def _darker(contrasts: Tensor) -> bool:
    """Whether particles are darker than the background; told in the log."""
    mean = contrasts.mean().item()
    error = contrasts.std().item() / math.sqrt(len(contrasts)) if len(contrasts) > 1 else 0.0
    found = f"{mean:.3g} ± {error:.2g} standard deviations, from {len(contrasts)} images"
    if abs(mean) <= 2 * error:
        log.warning(
            "dataset.invert=auto: cannot tell whether particles are darker than the background "
            "(%s): not inverted; write dataset.invert=true or false",
            found,
        )
        return False
    brighter, done = ("darker", "inverted") if mean < 0 else ("brighter", "not inverted")
    log.info(
        "dataset.invert=auto: particles are %s than the background (%s): %s", brighter, found, done
    )
    return mean < 0


def _unusable(images: Tensor) -> dict[int, str]:
    """Why images cannot be used, by their place."""
    flat = images.flatten(1)
    low, high = flat.amin(1), flat.amax(1)  # `aminmax` takes a hundred times as long
    finite = low.isfinite() & high.isfinite()
    reasons = {}
    for place in (~(finite & (high > low))).nonzero()[:, 0].tolist():
        if finite[place]:
            reasons[place] = f"it is constant: every pixel is {low[place].item():g}"
        else:
            wrong = (~flat[place].isfinite()).sum().item()
            reasons[place] = f"{wrong} of its {flat.shape[1]} pixels are NaN or infinite"
    return reasons
