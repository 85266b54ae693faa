"""The likelihood that fits a pile of images."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["fitting"]

# Of black and white pixels the share is 1, of MNIST 0.84 (turned: 0.74), of the digits of
# scikit-learn, blurred by their enlargement, 0.59, of galaxies 0.12.
BLACK_AND_WHITE = 0.4


def fitting(images: Sequence[Tensor], mask_radius_px: float | None = None) -> dict[str, Any]:
    r"""The config of the likelihood that fits images: what `model/likelihood=auto` stands for.

    Bernoulli, as both papers have it for MNIST, where pixels lie between 0 and 1 and are mostly
    black or white: where their variance is at least 0.4 of :math:`m (1 - m)`, which pixels of 0
    and 1 with the same mean m would have. Otherwise Gaussian with its standard deviation trained
    from that of the pixels on. (On grey tones a Bernoulli likelihood pays few nats for detail: of
    galaxies it learned no more than their size and brightness, and no angle.)

    Arguments:
        images: Parts of the images, each with any shape.
        mask_radius_px: As in `Likelihood`.
    """
    count = sum(part.numel() for part in images)
    # A thousand images at a time, so that no second copy of them all is made.
    parts = [few for part in images for few in part.split(1000)]
    mean = sum(few.double().sum().item() for few in parts) / count
    variance = sum((few.double() - mean).square().sum().item() for few in parts) / count
    inside = all(few.min() >= 0 and few.max() <= 1 for few in parts)
    node: dict[str, Any] = {"_target_": "svae.likelihoods.Bernoulli"}
    if not inside or variance < BLACK_AND_WHITE * mean * (1 - mean):
        std = math.sqrt(variance)
        # Finite numbers are asked for later, by the likelihood itself.
        node = {
            "_target_": "svae.likelihoods.Gaussian",
            "std": float(f"{std:.3g}") if 0 < std < math.inf else 1.0,
            "learn_std": True,
        }
    return node | {"_partial_": True, "mask_radius_px": mask_radius_px}
