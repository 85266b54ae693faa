"""Many images as one picture, and the figure that holds it."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["Array", "display_range", "mosaic", "mosaic_axes", "to_images"]

Array = Tensor | np.ndarray

# Part of the pixels that may be clipped at either end, so that a few hot ones do not darken all.
CLIPPED = 1e-3


def to_images(name: str, images: Array) -> Tensor:
    """`images` as float32 on the CPU, if they have shape (B, C, H, W), C 1 or 3, B at least 1."""
    images = torch.as_tensor(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(
            f"{name}: expected shape (B, C, H, W) with C 1 or 3 and B at least 1, "
            f"got {tuple(images.shape)}"
        )
    return images.detach().cpu().float()


def display_range(images: Tensor) -> tuple[float, float]:
    """The values drawn as black and white: the range of grey images, [0, 1] for RGB."""
    if images.shape[1] == 3:
        return 0.0, 1.0
    # By numpy: `torch.quantile` takes no more than 2**24 values.
    low, high = np.nanquantile(images.numpy(), [CLIPPED, 1 - CLIPPED])
    return float(low), float(high)


def mosaic(images: Tensor, columns: int, black: float, white: float, gap: int = 0) -> np.ndarray:
    """Images row by row from the top left, as one RGB picture in [0, 1].

    Arguments:
        images: The images, with shape (B, C, H, W), B a multiple of `columns`.
        columns: The number of images in a row.
        black: The value drawn as black.
        white: The value drawn as white.
        gap: White pixels between neighbours.

    Returns:
        The picture, with shape (H', W', 3).
    """
    images = ((images - black) / max(white - black, 1e-12)).clamp(0, 1)
    count, channels, height, width = images.shape
    padded = torch.ones(count, 3, height + gap, width + gap)
    padded[:, :, :height, :width] = images.expand(-1, 3, -1, -1) if channels == 1 else images
    rows = padded.unflatten(0, (count // columns, columns))  # (rows, columns, 3, H, W)
    picture = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return picture[: len(picture) - gap, : picture.shape[1] - gap].numpy()


def mosaic_axes(
    picture: np.ndarray,
    width_inches: float,
    *,
    left: float,
    right: float,
    top: float,
    bottom: float,
) -> tuple[Figure, Axes]:
    """A figure with one picture that keeps its proportions, and margins in inches.

    The figure has an Agg canvas of its own and is unknown to pyplot, so that it needs no screen
    and threads may draw at the same time.
    """
    inner_width = width_inches - left - right
    inner_height = inner_width * picture.shape[0] / picture.shape[1]
    height_inches = inner_height + top + bottom
    figure = Figure(figsize=(width_inches, height_inches), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_axes(
        (
            left / width_inches,
            bottom / height_inches,
            inner_width / width_inches,
            inner_height / height_inches,
        )
    )
    axes.imshow(picture, aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, pad=4)
    return figure, axes
