r"""Correlation of two samples of angles.

Jammalamadaka and Sengupta correlate the sines about two directions :math:`\mu, \nu`,

.. math:: \rho = \frac{E[\sin(a - \mu) \sin(b - \nu)]}
                      {\sqrt{E[\sin^2(a - \mu)] \, E[\sin^2(b - \nu)]}}.

The plain form takes the circular means for :math:`\mu, \nu`. Where a margin is uniform it has no
mean direction: the sample's is noise, and so is the result. The numerator equals
:math:`\frac12 E[\cos(a - b - \mu + \nu) - \cos(a + b - \mu - \nu)]`, the denominator is
:math:`\frac12` for uniform margins, and the directions that make the first cosine largest and
the second smallest give :math:`|E e^{i(a - b)}| - |E e^{i(a + b)}|`, which needs no mean.

References:
    Topics in circular statistics (Jammalamadaka and Sengupta, 2001), section 8.2.
"""

import torch
from torch import Tensor

__all__ = ["circular_correlation", "circular_correlation_plain"]

# Angles whose sines about their mean have a root mean square below this are the same angle up to
# the rounding of `atan2`.
CONSTANT = 1e-12


def circular_correlation(a: Tensor, b: Tensor) -> Tensor:
    r"""Correlation for uniform margins, :math:`|E e^{i(a - b)}| - |E e^{i(a + b)}|`.

    It is 1 where `a - b` is constant, -1 where `a + b` is, and a constant added to either changes
    nothing. That holds for uniform angles: perfect agreement of angles that crowd around one
    direction has a large second term and stays below 1. Constant inputs give 0.

    Arguments:
        a: Angles in radians, with shape (B,).
        b: Angles in radians, with shape (B,).

    Returns:
        The correlation, a scalar in float64.
    """
    a, b = _angles(a, b)
    return _resultant(a - b) - _resultant(a + b)


def circular_correlation_plain(a: Tensor, b: Tensor) -> Tensor:
    r"""Correlation of the sines about the circular means, as `astropy.stats.circcorrcoef`.

    .. math:: \frac{\sum \sin(a - \bar a) \sin(b - \bar b)}
                   {\sqrt{\sum \sin^2(a - \bar a) \sum \sin^2(b - \bar b)}}

    The TARGET-VAE code reports this form. A constant input, which has no correlation with
    anything, gives 0.

    Arguments:
        a: Angles in radians, with shape (B,).
        b: Angles in radians, with shape (B,).

    Returns:
        The correlation, a scalar in float64.
    """
    a, b = _angles(a, b)
    sin_a = torch.sin(a - _mean_direction(a))
    sin_b = torch.sin(b - _mean_direction(b))
    rms_a, rms_b = sin_a.square().mean().sqrt(), sin_b.square().mean().sqrt()
    if min(rms_a, rms_b) < CONSTANT:
        return torch.zeros_like(rms_a)
    return (sin_a * sin_b).mean() / (rms_a * rms_b)


def _angles(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(
            f"angles: expected two tensors of one shape (B,), B at least 1, got "
            f"{tuple(a.shape)} and {tuple(b.shape)}"
        )
    # On the CPU because not every accelerator knows float64.
    return a.detach().cpu().double(), b.detach().cpu().double()


def _resultant(angle: Tensor) -> Tensor:
    """Length of the mean of the unit vectors."""
    return torch.hypot(torch.cos(angle).mean(), torch.sin(angle).mean())


def _mean_direction(angle: Tensor) -> Tensor:
    return torch.atan2(torch.sin(angle).mean(), torch.cos(angle).mean())
