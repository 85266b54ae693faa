"""Particles with their pose removed, without the blur of interpolation between neighbours."""

import math

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from svae.geometry import rotate

__all__ = ["align"]

# So few that what is worked on stays in a processor's cache.
_AT_ONCE = 16
_QUARTER = math.pi / 2


def align(
    images: Tensor, psi_deg: Tensor, offset: Tensor, log_scale: Tensor | None = None
) -> Tensor:
    r"""Images moved and turned as RELION does it, `aligned(R(psi)(x + o)) = image(x)`.

    Band-limited: a turn by a multiple of 90 degrees moves pixels, and what is left of it, within
    45 degrees, is three shears, each of them a shift of every row or column by Fourier phases.
    Noise keeps its variance and spectrum, which averages of neighbouring pixels would smooth. What
    comes from outside the image is the mean of its outermost pixels.

    RELION knows no sizes. Where some are given, they are removed in the end, about the middle of
    the image, by trigonometric interpolation.

    Arguments:
        images: Square images, with shape (B, N, N).
        psi_deg: `rlnAnglePsi` in degrees, with shape (B,).
        offset: `rlnOriginX`, `rlnOriginY` in pixels of these images, with shape (B, 2).
        log_scale: Logarithms of the sizes that become 1, with shape (B,); None for size 1.

    Returns:
        The aligned images, with shape (B, N, N), float32, on the device of `images`.

    References:
        Convolution-based interpolation for fast, high-quality rotation of images (Unser,
        Thévenaz and Yaroslavsky, 1995).
    """
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(
            f"images: expected square images with shape (B, N, N), got {tuple(images.shape)}"
        )
    whole = [images.float(), psi_deg.to(images.device), offset.to(images.device)]
    whole += [] if log_scale is None else [log_scale.to(images.device)]
    parts = zip(*(tensor.split(_AT_ONCE) for tensor in whole), strict=True)
    return torch.cat([_aligned(*part) for part in parts])


def _aligned(
    images: Tensor, psi_deg: Tensor, offset: Tensor, log_scale: Tensor | None = None
) -> Tensor:
    size = images.shape[-1]
    psi = torch.deg2rad(psi_deg.double())
    quarters = (psi / _QUARTER).round()
    # Seen from the middle of the image, about which right angles move pixels onto pixels, the
    # same pose has another offset.
    half = torch.full((2,), size // 2 - (size - 1) / 2, dtype=torch.float64, device=psi.device)
    moved = rotate(offset.double() - half + rotate(half, -psi), quarters * _QUARTER)
    whole = moved.round()
    # A square turned by 45 degrees is 1.414 times as wide.
    padded = next_fast_len(math.ceil(1.42 * size) + 2, real=True)
    before = (padded - size) // 2
    canvas = _canvas(images, quarters, whole, padded, before)

    x, y = (moved - whole).unsqueeze(1).unbind(-1)
    rest = (psi - quarters * _QUARTER).unsqueeze(1)
    across, along = -torch.tan(rest / 2), torch.sin(rest)
    places = torch.arange(padded, dtype=torch.float64, device=psi.device)
    places = places - (before + (size - 1) / 2)
    canvas = _rows_moved(canvas, x + across * (places + y))
    canvas = _rows_moved(canvas.mT, y + along * places).mT
    canvas = _rows_moved(canvas, across * places)
    if log_scale is not None:
        middle = before + (size - 1) / 2
        wanted = places[before : before + size] * log_scale.double().exp().unsqueeze(1) + middle
        at = _interpolation(wanted, padded).float()
        return at @ canvas @ at.mT
    return canvas[:, before : before + size, before : before + size]


def _canvas(images: Tensor, quarters: Tensor, by: Tensor, padded: int, before: int) -> Tensor:
    """Images (B, N, N) turned by right angles, then moved by whole pixels, with a rim around."""
    size = images.shape[-1]
    # In half pixels from the middle, which for even sizes lies between two pixels.
    places = 2 * torch.arange(padded, dtype=torch.int32, device=images.device)
    places = places - (2 * before + size - 1)
    x, y = (places - 2 * by.int()[:, axis : axis + 1] for axis in (0, 1))
    turn = quarters * _QUARTER
    cos, sin = (part.round().int().reshape(-1, 1, 1) for part in (turn.cos(), turn.sin()))
    x, y = x.unsqueeze(1), y.unsqueeze(2)
    columns = (cos * x + sin * y + (size - 1)) // 2
    rows = (cos * y - sin * x + (size - 1)) // 2
    inside = (columns >= 0) & (columns < size) & (rows >= 0) & (rows < size)
    index = torch.where(inside, rows * size + columns, 0).long()
    found = images.flatten(1).gather(1, index.flatten(1)).unflatten(1, (padded, padded))
    rim = torch.ones(size, size, dtype=torch.bool, device=images.device)
    rim[1:-1, 1:-1] = False
    return torch.where(inside, found, images[:, rim].mean(1).reshape(-1, 1, 1))


def _interpolation(places: Tensor, size: int) -> Tensor:
    """What gives a periodic row of pixels its values at places (B, N): (B, N, size).

    Places beyond its ends are at them.
    """
    own = torch.arange(size, dtype=places.dtype, device=places.device)
    distance = places.clamp(0, size - 1).unsqueeze(-1) - own
    angle = math.pi * distance / size
    # Of an even number of pixels, half of the highest frequency is a cosine.
    below = torch.tan(angle) if size % 2 == 0 else torch.sin(angle)
    value = torch.sin(math.pi * distance) / (size * below)
    return torch.where(angle.abs() < 1e-9, 1.0, value)


def _rows_moved(images: Tensor, by: Tensor) -> Tensor:
    """Every row of images (B, S, S) moved to the right by so many pixels (B, S)."""
    size = images.shape[-1]
    turns = by.float().unsqueeze(-1) * torch.fft.rfftfreq(size, device=images.device)
    phase = (turns - turns.round()) * (-2 * math.pi)
    moved = torch.fft.rfft(images) * torch.complex(phase.cos(), phase.sin())
    return torch.fft.irfft(moved, size)
