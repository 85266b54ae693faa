"""Moving pictures."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from svae.checks import at_least, positive
from svae.figures.mosaic import Array, display_range, mosaic, to_images
from svae.files import write_atomic

__all__ = ["write_gif"]

# The longer side of an image is enlarged to at least so many pixels.
SIDE_PX = 160


def write_gif(
    path: str | Path,
    frames: Array,
    *,
    seconds_per_frame: float = 0.08,
    scale: int | None = None,
    there_and_back: bool = True,
) -> None:
    """Write an animated GIF that runs for ever. All its frames share one grey scale or palette.

    Arguments:
        path: The file. It is there as a whole or not at all.
        frames: The frames, with shape (S, C, H, W), C 1 or 3, or several animations side by side,
            with shape (P, S, C, H, W).
        seconds_per_frame: How long a frame stays; the format counts in hundredths.
        scale: How many pixels along a side a pixel becomes; by default so many that the longer
            side of an image has at least 160.
        there_and_back: Whether the frames run back to the first, or jump.
    """
    films = torch.as_tensor(frames)
    films = films.unsqueeze(0) if films.ndim == 4 else films
    if films.ndim != 5:
        raise ValueError(
            "frames: expected shape (S, C, H, W) or (P, S, C, H, W), got "
            f"{tuple(torch.as_tensor(frames).shape)}"
        )
    shown = display_range(to_images("frames", films.flatten(0, 1)))
    longer = max(films.shape[-2:])
    factor = -(-SIDE_PX // longer) if scale is None else at_least("scale", scale, 1)
    pictures = []
    for moment in films.unbind(1):
        picture = mosaic(to_images("frames", moment), len(moment), shown, gap=max(1, longer // 16))
        pixels = np.round(255 * picture).astype(np.uint8)
        pictures.append(pixels.repeat(factor, axis=0).repeat(factor, axis=1))
    order = list(range(len(pictures)))
    if there_and_back:
        order += order[-2:0:-1]

    coded = _coded(pictures)
    content = io.BytesIO()
    # Hundredths of a second; most viewers take fewer than two for ten.
    duration = max(20, 10 * round(100 * positive("seconds_per_frame", seconds_per_frame)))
    coded[0].save(
        content,
        format="GIF",
        save_all=True,
        append_images=[coded[i] for i in order[1:]],
        duration=duration,
        loop=0,
    )
    write_atomic(Path(path), content.getvalue())


def _coded(pictures: list[np.ndarray]) -> list[Image.Image]:
    """The pictures (H, W, 3) in 256 greys, or with one palette of 256 colours."""
    if not any(np.ptp(picture, axis=-1).any() for picture in pictures):
        return [Image.fromarray(picture[..., 0]) for picture in pictures]
    palette = Image.fromarray(np.concatenate(pictures)).quantize(256)
    # Dithering would flicker.
    dither = Image.Dither.NONE
    return [Image.fromarray(p).quantize(palette=palette, dither=dither) for p in pictures]
