r"""Poses as RELION and cryoSPARC write them.

RELION counts x to the right and y **down** from the pixel `N // 2`, as do its offsets. An aligned
image is

.. math:: aligned(R(\psi)(x + o)) = particle(x), \qquad
          R(\psi) = \begin{pmatrix} \cos\psi & -\sin\psi \\ \sin\psi & \cos\psi \end{pmatrix},

moved by the offset o first, then turned. Here y runs **up** from the middle of the image,
`(N - 1) / 2`, and `image(x) = object(R(-theta)(x - shift))` (`svae.geometry`). In RELION's axes,
with h the way from the one centre to the other (half a pixel for even N, else zero) and t the
shift in pixels with y down, the aligned image is the upright object if

.. math:: \psi = \theta, \qquad o = h - t - R(-\psi) h.

An image that was Fourier-cropped from N to n pixels keeps the centre: pixel `N // 2` became
`n // 2`. Its poses are those of the particle in the file with offsets N / n times as long; the
half pixel is that of the image which the model sees.
"""

import math

import numpy as np

from svae.checks import positive
from svae.geometry import pixel_size

__all__ = ["from_relion", "to_relion"]


def to_relion(
    theta: np.ndarray, shift: np.ndarray, height: int, width: int, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Poses in a model's image as RELION's angle and offset.

    Arguments:
        theta: Angles in radians, counter-clockwise, with shape (N,).
        shift: Object centres in grid units, y up, with shape (N, 2).
        height: Of the images that the model sees, in pixels.
        width: The same.
        scale: Pixels of the file per pixel of the model.

    Returns:
        `rlnAnglePsi` in degrees within [-180, 180), with shape (N,), and `rlnOriginX`,
        `rlnOriginY` in pixels of the file, with shape (N, 2); float64. Times Å per pixel, these
        are `rlnOriginXAngst`, `rlnOriginYAngst`.
    """
    psi = np.asarray(theta, np.float64)
    t = np.asarray(shift, np.float64) * (1, -1) / pixel_size(height, width)
    half = _half_pixel(height, width)
    offset = half - t - _turned(half, -psi)
    degrees = np.remainder(np.rad2deg(psi) + 180, 360) - 180
    return degrees, offset * positive("scale", scale)


def from_relion(
    psi_deg: np.ndarray, offset: np.ndarray, height: int, width: int, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `to_relion`: angles (N,) in radians and shifts (N, 2) in grid units.

    Arguments:
        psi_deg: `rlnAnglePsi`, with shape (N,).
        offset: `rlnOriginX`, `rlnOriginY` in pixels of the file, with shape (N, 2).
        height: Of the images that the model sees, in pixels.
        width: The same.
        scale: Pixels of the file per pixel of the model.
    """
    theta = np.deg2rad(np.asarray(psi_deg, np.float64))
    half = _half_pixel(height, width)
    t = half - np.asarray(offset, np.float64) / positive("scale", scale) - _turned(half, -theta)
    return np.remainder(theta + math.pi, 2 * math.pi) - math.pi, t * (1, -1) * pixel_size(
        height, width
    )


def _half_pixel(height: int, width: int) -> np.ndarray:
    """From the middle of the image to the pixel that RELION counts from, x and y down."""
    return np.array([width // 2 - (width - 1) / 2, height // 2 - (height - 1) / 2])


def _turned(vector: np.ndarray, angle: np.ndarray) -> np.ndarray:
    r"""One vector (2,) turned by each of the angles (N,), :math:`R(\psi) v`: (N, 2)."""
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = vector
    return np.stack((cos * x - sin * y, sin * x + cos * y), axis=-1)
