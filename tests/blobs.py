"""A smooth object without symmetry, drawn in any pose, and RELION's way to align images of it."""

import numpy as np
import torch
from scipy import ndimage

from svae.geometry import pixel_size, to_object_frame

# x, y, width and height of Gaussian blobs, in grid units.
_BLOBS = (
    (0.25, 0.1, 0.08, 1.0),
    (-0.2, 0.2, 0.1, 0.7),
    (0.05, -0.25, 0.09, 1.3),
    (-0.1, -0.05, 0.15, 0.5),
)


def image_of(size, theta=0.0, shift=(0.0, 0.0), cropped_to=None, opening=0.0, log_scale=0.0):
    """The object in an image of so many pixels, analytically.

    Arguments:
        size: The side of the image in pixels.
        theta: Its angle in radians.
        shift: Its place in grid units.
        cropped_to: The pose is that in the image after it was Fourier-cropped to this side.
        opening: How far one of its parts is displaced, in grid units.
        log_scale: The logarithm of its size.
    """
    seen = size if cropped_to is None else cropped_to
    # From the pixel that stays the centre, in pixels of the image that the pose belongs to.
    steps = (np.arange(size) - size // 2) * seen / size + seen // 2 - (seen - 1) / 2
    x, y = np.meshgrid(steps, -steps)
    coords = torch.from_numpy(np.stack((x.ravel(), y.ravel()), -1) * pixel_size(seen, seen))
    pose = (torch.from_numpy(np.array(value, float)) for value in (theta, shift, log_scale))
    points = to_object_frame(coords, *pose).numpy()
    image = np.zeros(size * size)
    for i, (bx, by, width, height) in enumerate(_BLOBS):
        centre = (bx + opening * (i == 0), by)
        image += height * np.exp(-((points - centre) ** 2).sum(-1) / 2 / width**2)
    return image.reshape(size, size)


def relion_aligned(image, psi_deg, offset_px):
    """`aligned(x_out) = image(x_in)`, `x_out = R(psi)(x_in + o)`, about N // 2, y down."""
    size = len(image)
    psi = np.deg2rad(psi_deg)
    turn = np.array([[np.cos(psi), -np.sin(psi)], [np.sin(psi), np.cos(psi)]])
    rows, columns = np.indices(image.shape)
    out = np.stack((columns.ravel(), rows.ravel())) - size // 2
    x, y = np.linalg.inv(turn) @ out - np.reshape(offset_px, (2, 1)) + size // 2
    return ndimage.map_coordinates(image, [y, x], order=5).reshape(size, size)


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]
