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

import numpy as np
import torch

from svae.checks import positive
from svae.geometry import pixel_size, rotate, wrap_angle

__all__ = ["to_relion"]


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
    psi = torch.from_numpy(np.asarray(theta, np.float64))
    t = np.asarray(shift, np.float64) * (1, -1) / pixel_size(height, width)
    # From the middle of the image to the pixel that RELION counts from, x and y down.
    half = np.array([width // 2 - (width - 1) / 2, height // 2 - (height - 1) / 2])
    offset = half - t - rotate(torch.from_numpy(half), -psi).numpy()
    return np.rad2deg(wrap_angle(psi).numpy()), offset * positive("scale", scale)
