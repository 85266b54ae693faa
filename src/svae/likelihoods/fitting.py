"""The likelihood that fits a pile of images."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

__all__ = ["fitting"]


def fitting(images: Iterable[Tensor], mask_radius_px: float | None = None) -> dict[str, Any]:
    """The config of the likelihood that fits images: what `model/likelihood=auto` stands for.

    Bernoulli for values from 0 to 1, as both papers have it for MNIST. Otherwise Gaussian, its
    standard deviation trained, because nobody knows the noise of somebody else's images.

    Arguments:
        images: Parts of the images, each with any shape.
        mask_radius_px: As in `Likelihood`.
    """
    bernoulli = all(part.min() >= 0 and part.max() <= 1 for part in images)
    node: dict[str, Any] = {"_target_": "svae.likelihoods.Bernoulli"}
    if not bernoulli:
        node = {"_target_": "svae.likelihoods.Gaussian", "learn_std": True}
    return node | {"_partial_": True, "mask_radius_px": mask_radius_px}
