r"""The frame: pixel grids, rotation, the object frame and the units of a pose.

This file owns every sign and axis of the project.

* Coordinates have the last axis `(x, y)`: x to the right, y **up**. Pixel centres run from -1 to
  +1 along the longer side of the image; both axes share that scale. Row 0 of an image is the top.
* `theta` is in radians, counter-clockwise as seen in the image.
* `shift` is the object's centre in the **image** frame, in grid units.
* `log_scale` is the logarithm of the object's size s > 0 relative to the model's own.
* An image is an object that was resized and turned, then moved:

  .. math:: image(x) = object(R(-\theta)(x - shift) / s), \qquad
            R(\theta) = \begin{pmatrix} \cos\theta & -\sin\theta \\
                                        \sin\theta & \cos\theta \end{pmatrix}.

The papers have no size; s is 1 wherever none is given.

The papers write the same with other signs. Both multiply row vectors by
`[[cos, sin], [-sin, cos]]`, which turns *coordinates* counter-clockwise and so the picture
clockwise: their angle is `-theta`. spatial-VAE (eq. 2) rotates first and adds its
`dx = -R(-theta) shift` in the object frame; TARGET-VAE subtracts the shift first, as here.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from svae.constants import Constant

__all__ = [
    "centre_of_mass",
    "centre_of_points",
    "pixel_grid",
    "pixel_size",
    "remove_pose",
    "rotate",
    "rotate_image",
    "to_object_frame",
    "transform_image",
    "windows_on",
    "wrap_angle",
]


def pixel_size(height: int, width: int) -> float:
    """Distance between neighbouring pixel centres in grid units: 2 / (longer side - 1)."""
    longer = max(height, width)
    if min(height, width) < 1 or longer < 2:
        raise ValueError(f"image: expected at least 2 pixels along a side, got {height}x{width}")
    return 2.0 / (longer - 1)


def pixel_grid(height: int, width: int) -> Tensor:
    """Coordinates of all pixel centres, row by row from the top left.

    Returns:
        The grid, with shape (H*W, 2), float64. Rows run downwards, so y falls along them.
    """
    step = pixel_size(height, width)
    # By count and never by step, so that the length is right for every size.
    x = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2) * step
    y = ((height - 1) / 2 - torch.arange(height, dtype=torch.float64)) * step
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((columns, rows), dim=-1).flatten(0, 1)


def rotate(points: Tensor, theta: Tensor) -> Tensor:
    r"""Turn points counter-clockwise about the origin, :math:`R(\theta) x`.

    Arguments:
        points: The points, with shape (..., 2).
        theta: The angles in radians, with a shape that broadcasts against `points[..., 0]`.
    """
    # Element by element rather than as a matrix product: autocast would round that to bfloat16,
    # and a coordinate needs its 24 bits.
    cos, sin = torch.cos(theta), torch.sin(theta)
    x, y = points.unbind(-1)
    return torch.stack((cos * x - sin * y, sin * x + cos * y), dim=-1)


def to_object_frame(
    coords: Tensor, theta: Tensor, shift: Tensor, log_scale: Tensor | None = None
) -> Tensor:
    r"""Image coordinates seen from the object, :math:`R(-\theta)(x - shift) / s`.

    References:
        spatial-VAE, equation 2, with s = 1.

    Arguments:
        coords: Points in the image frame, with shape (N, 2) or (..., N, 2).
        theta: Angles in radians, with shape (...).
        shift: Object centres in grid units, with shape (..., 2).
        log_scale: Logarithms of the sizes s, with shape (...); None for size 1.

    Returns:
        Points in the object frame, with shape (..., N, 2).
    """
    points = rotate(coords - shift.unsqueeze(-2), -theta.unsqueeze(-1))
    return points if log_scale is None else points * torch.exp(-log_scale)[..., None, None]


@Constant
def _grid_on(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return pixel_grid(height, width).to(device, dtype)


def transform_image(
    image: Tensor, theta: Tensor, shift: Tensor, log_scale: Tensor | None = None
) -> Tensor:
    """Resize every image, turn it by `theta`, then move it by `shift`: bilinear, zeros outside.

    Arguments:
        image: Objects, with shape (B, C, H, W).
        theta: Angles in radians, counter-clockwise, with shape (B,).
        shift: Displacements in grid units, with shape (B, 2).
        log_scale: Logarithms of the factors s > 0, more than 1 being larger, with shape (B,); None
            for size 1.

    Returns:
        The images, with shape (B, C, H, W).
    """
    _, _, height, width = image.shape
    grid = _grid_on(height, width, image.dtype, image.device)
    log_scale = None if log_scale is None else log_scale.to(image)
    source = to_object_frame(grid, theta.to(image), shift.to(image), log_scale)
    return _sampled(image, source.unflatten(-2, (height, width)))


def _sampled(image: Tensor, points: Tensor) -> Tensor:
    """Images (B, C, H, W) at points (B, h, w, 2) in grid units: bilinear, zeros outside."""
    height, width = image.shape[2:]
    # `grid_sample` wants y down and each axis in units of its own half side.
    half = pixel_size(height, width) / 2
    x, y = points.unbind(-1)
    points = torch.stack((x / (max(width - 1, 1) * half), y / (-max(height - 1, 1) * half)), -1)
    return grid_sample(image, points, mode="bilinear", padding_mode="zeros", align_corners=True)


def remove_pose(
    image: Tensor, theta: Tensor, shift: Tensor, log_scale: Tensor | None = None
) -> Tensor:
    """The inverse of `transform_image`: every image moved, turned and resized back."""
    back = -rotate(shift, -theta)
    if log_scale is None:
        return transform_image(image, -theta, back)
    return transform_image(image, -theta, back * torch.exp(-log_scale).unsqueeze(-1), -log_scale)


def windows_on(
    image: Tensor,
    theta: Tensor,
    shift: Tensor,
    log_scale: Tensor,
    shape: tuple[int, int],
) -> Tensor:
    """What a window shows that lies on each of K objects in every image, turned as they are.

    As `remove_pose` for each of them, and of that the middle: bilinear, zeros outside.

    Arguments:
        image: Images, with shape (B, C, H, W).
        theta: The objects' angles in radians, with shape (B, K).
        shift: Their centres in grid units, with shape (B, K, 2).
        log_scale: The logarithms of their sizes, with shape (B, K).
        shape: The height h and width w of the window in pixels.

    Returns:
        The windows, with shape (B, K, C, h, w).
    """
    _, _, height, width = image.shape
    step = pixel_size(height, width) / pixel_size(*shape)
    grid = _grid_on(*shape, image.dtype, image.device) * step
    theta, shift, log_scale = (value.to(image) for value in (theta, shift, log_scale))
    scale = log_scale.exp()[..., None, None]
    points = rotate(grid * scale, theta.unsqueeze(-1)) + shift.unsqueeze(-2)  # (B, K, h w, 2)
    return _sampled(image, points).transpose(1, 2).unflatten(-1, shape)


def rotate_image(image: Tensor, theta: Tensor) -> Tensor:
    """Turn every image counter-clockwise about its centre; shapes as in `transform_image`."""
    return transform_image(image, theta, theta.new_zeros(len(theta), 2))


def centre_of_mass(image: Tensor, places: Tensor | None = None) -> Tensor:
    """The centre of mass of what stands out from the background, (B, 2) in grid units.

    The background is the median of the outermost tenth of the pixels; what differs from it by less
    than a tenth of what differs most belongs to it. The centre of a blank image is the middle.

    Arguments:
        image: Images, with shape (B, C, H, W).
        places: The pixels that count, as places in the flat image; all by default.
    """
    grid = pixel_grid(*image.shape[2:]).to(image)
    flat = image.flatten(2)
    if places is not None:
        grid, flat = grid[places], flat[..., places]
    return centre_of_points(flat, grid)


def centre_of_points(values: Tensor, coords: Tensor) -> Tensor:
    """`centre_of_mass` of images that are known at some points alone.

    Arguments:
        values: The images there, with shape (B, C, N).
        coords: The points in grid units, with shape (N, 2).
    """
    mass = (values - _background(values, coords)).abs().sum(1)  # (B, N)
    mass = torch.where(mass < 0.1 * mass.amax(-1, keepdim=True), 0.0, mass)
    total = (mass.unsqueeze(-1) * coords).sum(1)
    return total / mass.sum(-1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)


def without_background(image: Tensor) -> Tensor:
    """Images (B, C, H, W) less the median of the outermost tenth of their pixels, by channels.

    What `transform_image` puts outside, zero, is then their background.
    """
    grid = pixel_grid(*image.shape[2:]).to(image)
    return image - _background(image.flatten(2), grid).unsqueeze(-1)


def _background(flat: Tensor, grid: Tensor) -> Tensor:
    """The median of pixels (B, C, N) at the outermost tenth of their places (N, 2): (B, C, 1)."""
    distance = grid.norm(dim=-1)
    rim = distance >= distance.quantile(0.9)
    # Not `flat[..., rim]`, whose shape a processor would have to wait for.
    return torch.where(rim, flat, math.nan).nanmedian(-1, keepdim=True).values


def wrap_angle(theta: Tensor) -> Tensor:
    """The same angles within [-pi, pi)."""
    return torch.remainder(theta + math.pi, 2 * math.pi) - math.pi
