"""What the tests of the figures share."""

import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

__all__ = ["bar_of", "check_page", "flat", "picture_of", "shown_title", "texts_of", "tick_texts"]


def picture_of(figure: Figure) -> np.ndarray:
    """The drawn mosaic, (H, W, 3), row 0 at the top."""
    axes = figure.axes[0]
    (image,) = axes.images
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # rows run downwards
    return np.asarray(image.get_array())


def bar_of(figure: Figure, number: int = 0) -> tuple[float, float, str]:
    """The ends of a colour bar, and its label."""
    bar = figure.axes[1 + number]
    low, high = bar.get_ylim()
    return low, high, bar.get_ylabel()


def texts_of(figure: Figure) -> list[str]:
    """Every text of the figure that is not empty."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def shown_title(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.texts)


def tick_texts(figure: Figure, axis: str = "x") -> list[str]:
    labels = getattr(figure.axes[0], f"get_{axis}ticklabels")()
    return [label.get_text() for label in labels]


def flat(values: Tensor, channels: int = 1, size: int = 4) -> Tensor:
    """Images of one value each, (B, C, size, size)."""
    return values.reshape(-1, 1, 1, 1).expand(-1, channels, size, size)


def check_page(figure: Figure) -> None:
    """Everything lies within the page, and the file is a picture of its size."""
    renderer = figure.canvas.get_renderer()
    box, page = figure.get_tightbbox(renderer), figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= page[0]
    assert box.y1 <= page[1]
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    file.seek(0)
    pixels = matplotlib.image.imread(file)
    assert pixels.shape[:2] == pytest.approx(tuple(100 * page[::-1]), abs=1)
