r"""Which pixels of an image a training step scores: an unbiased estimate from a few of them.

.. math:: \sum_i \log p(y_i | \cdot) = E\left[\frac{1}{n} \sum_{j=1}^n
          \frac{\log p(y_{i_j} | \cdot)}{\pi(i_j)}\right], \qquad i_j \sim \pi

The draws are spread by taking one from each of n equal parts of the cumulative distribution,
which makes the estimate less noisy than independent draws.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from svae.noise import Noise

__all__ = ["Pixels", "draw_pixels", "every_few_pixels"]

# The side in pixels of the window in which contrast is looked for.
_WINDOW = 5


class Pixels(NamedTuple):
    """Some pixels of every image.

    Arguments:
        places: Where they are in the flat image, with shape (B, n).
        weight: What each stands for, with shape (B, n): weighted sums over them estimate sums over
            all scored pixels.
    """

    places: Tensor
    weight: Tensor


def draw_pixels(
    image: Tensor, noise: Noise, scored: Tensor, count: int, focus: float = 0.0
) -> Pixels:
    """A few random pixels of every image.

    Arguments:
        image: Images, with shape (B, C, H, W).
        noise: Where the randomness comes from.
        scored: The pixels to choose from, as places in the flat image, with shape (N,).
        count: How many are drawn.
        focus: The part of the draws that goes by local contrast, to where there is something to
            see; the rest goes anywhere. Below 1, so that every pixel can be drawn.
    """
    part = (torch.arange(count, device=scored.device) + noise.uniform("pixels", count)) / count
    if not focus:
        place = (part * len(scored)).long().clamp(max=len(scored) - 1)
        return Pixels(scored[place], torch.full_like(part, len(scored) / count).to(image))
    contrast = _contrast(image)[:, scored].double()
    # Where an image is constant, there is nothing to choose by.
    contrast = contrast + 1e-6 * contrast.mean(1, keepdim=True) + 1e-12
    density = focus * contrast / contrast.sum(1, keepdim=True) + (1 - focus) / len(scored)
    cumulative = density.cumsum(1)
    place = torch.searchsorted(cumulative / cumulative[:, -1:], part)
    place = place.clamp(max=len(scored) - 1)
    return Pixels(scored[place], (1 / (count * density.gather(1, place))).to(image))


def _contrast(image: Tensor) -> Tensor:
    """The range of the values around each pixel, summed over channels, with shape (B, H W)."""
    lowest = -max_pool2d(-image, _WINDOW, 1, _WINDOW // 2)
    highest = max_pool2d(image, _WINDOW, 1, _WINDOW // 2)
    return (highest - lowest).sum(1).flatten(1)


def every_few_pixels(height: int, width: int, across: int, scored: Tensor) -> Tensor:
    """The scored pixels of every few rows and columns, as places in the flat image.

    Arguments:
        height: Of the image, in pixels.
        width: Likewise.
        across: About how many lie along the shorter side; all, if it has fewer.
        scored: The places of the scored pixels.
    """
    step = max(1, round(min(height, width) / across))
    row = torch.arange(height).sub(height // 2).remainder(step) == 0
    column = torch.arange(width).sub(width // 2).remainder(step) == 0
    chosen = (row[:, None] & column).flatten()
    return scored[chosen[scored]]
