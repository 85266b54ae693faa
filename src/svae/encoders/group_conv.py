r"""The encoder of TARGET-VAE: equivariant to translations and to R rotations.

.. math:: h_{k}(t, r) = \sum_u w_k(R(-\theta_r) u) \, y(t + u) + b_k, \qquad \theta_r = 2 \pi r / R

Every filter is laid over the image at every position and in every one of R turns; what follows
acts on each (position, rotation) by itself. An image turned by :math:`\theta_r` so has the
features of the original, with the rotations moved on by r and the positions turned, and a shifted
image has shifted features. A filter turned counter-clockwise answers to an object turned
counter-clockwise: rotation r stands for the angle :math:`\theta_r` of `geometry.py`.

References:
    Unsupervised object representation learning using translation and rotation group equivariant
    VAE (Nasiri and Bepler, 2022).
    Group equivariant convolutional networks (Cohen and Welling, 2016), section 6.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import fold, linear, pad

from svae.checks import at_least, image_shape_of, positive
from svae.geometry import pixel_grid, pixel_size, rotate_image
from svae.lattice import Lattice
from svae.networks import (
    activation_named,
    compute_dtype,
    fused_linear,
    fuses,
    hidden_layers,
    through_activation,
)

__all__ = ["GroupConv"]

# Numbers in the patches of the images that are multiplied at once: on a processor what fits its
# cache, on a GPU what gives it enough to do.
_PATCHES_AT_ONCE, _PATCHES_ON_GPU = 4_000_000, 2**28
# Numbers in the features of the images that are encoded at once.
_NUMBERS_AT_ONCE, _NUMBERS_ON_GPU = 64_000_000, 2**29


class GroupConv(nn.Module):
    """A lifting convolution with turned filters, then layers on each (position, rotation).

    The lattice of positions is symmetric about the image's centre. Equivariance is exact for
    turns by 90 degrees of square images (where R is a multiple of 4) and for shifts by whole
    strides that keep the object within the padded image; for turns between, as exact as bilinear
    interpolation of image and filters.

    Arguments:
        image_shape: The shape of the images, (C, H, W).
        group_order: The number of rotations R; 1 is a plain convolution.
        channels: The number of filters, and the width of the layers that follow.
        kernel_size: The side of the filters in pixels; at most that of the image.
        padding: How many black pixels are put around the image; each lets the lattice reach one
            pixel further.
        stride: The distance of neighbouring positions in pixels.
        layers: The number of layers, the convolution among them.
        activation: tanh, leaky_relu, gelu or silu.
        disc: Whether filters are cut to a disc, so that no turn loses their corners.
        initial_width_px: The standard deviation of a Gaussian window over the initial filters,
            which keeps their norm: they begin with what lies about their centre. Null for none.
        pool_rotations: Whether the rotations are merged by a learned weighted sum: the lattice
            has positions only, and the angle is left to the posterior at each of them.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        group_order: int = 8,
        channels: int = 128,
        kernel_size: int = 28,
        padding: int = 8,
        stride: int = 1,
        layers: int = 2,
        activation: str = "leaky_relu",
        disc: bool = True,
        initial_width_px: float | None = None,
        pool_rotations: bool = False,
    ) -> None:
        super().__init__()
        in_channels, height, width = image_shape_of(image_shape)
        self.group_order = at_least("group_order", group_order, 1)
        self.kernel_size = at_least("kernel_size", kernel_size, 1)
        #: How much of an image is looked at as one object, in pixels.
        self.window = (kernel_size, kernel_size) if kernel_size > 1 else None
        self.stride = at_least("stride", stride, 1)
        if kernel_size > min(height, width):
            raise ValueError(
                f"kernel_size: expected at most the {min(height, width)} pixels of the image's "
                f"shorter side, got {kernel_size}"
            )
        at_least("padding", padding, 0)
        rows, top = _positions(height, kernel_size, padding, stride)
        columns, left = _positions(width, kernel_size, padding, stride)
        # (left, right, top, bottom): what the positions do not reach is not padded.
        self.margins = (left, left, top, top)
        self.out_features = at_least("channels", channels, 1)
        at_least("layers", layers, 1)

        bound = 1 / math.sqrt(in_channels * kernel_size**2)
        filters = torch.empty(channels, in_channels, kernel_size, kernel_size)
        filters.uniform_(-bound, bound)
        if initial_width_px is not None:
            filters *= _window(kernel_size, positive("initial_width_px", initial_width_px))
        self.filters = nn.Parameter(filters)
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))
        self.activation, self.activation_name = activation_named(activation), activation
        self.pointwise = hidden_layers(channels, layers - 1, activation)
        self.pool = nn.Linear(group_order, 1) if pool_rotations else None

        kept = torch.ones(kernel_size, kernel_size)
        if disc:
            kept = _disc(kernel_size)
        self.register_buffer("kept", kept, persistent=False)
        self.kept: Tensor
        spacing = stride * pixel_size(height, width)
        rotations = 1 if pool_rotations else group_order
        #: The poses that the features belong to.
        self.lattice = Lattice.centred(rotations, (rows, columns), spacing)
        #: How many numbers a training step keeps for each image.
        self.numbers_per_image = rows * columns * group_order * channels * layers

    def images_at_once(self, device: torch.device) -> int:
        """How many images are best encoded at a time."""
        numbers = _NUMBERS_AT_ONCE if device.type == "cpu" else _NUMBERS_ON_GPU
        return max(1, numbers // self.numbers_per_image)

    def extra_repr(self) -> str:
        rows, columns = self.lattice.shape
        return f"positions={rows}x{columns}, rotations={self.group_order}"

    def turned_filters(self) -> Tensor:
        """Every filter in every turn, with shape (R, K, C, k, k)."""
        filters = self.filters * self.kept
        # Turns by a quarter are exact, so that those of a multiple of 4 are made from one quarter.
        quarters = 4 if self.group_order % 4 == 0 else 1
        count = self.group_order // quarters
        angles = torch.arange(count, device=filters.device) * (2 * math.pi / self.group_order)
        if count > 1 and self.kernel_size > 1:
            images = filters.flatten(0, 1).expand(count, -1, -1, -1)
            turned = rotate_image(images, angles).unflatten(1, filters.shape[:2])
            turned = torch.cat((filters[None], turned[1:]))
        else:
            turned = filters.expand(count, *filters.shape)
        return torch.cat([torch.rot90(turned, i, (-2, -1)) for i in range(quarters)])

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, P, R, channels) at every lattice point, of images (B, C, H, W)."""
        dtype = compute_dtype(image)
        filters = self.turned_filters().flatten(0, 1).flatten(1).to(dtype)  # (R K, C k k)
        padded = pad(image.to(dtype), self.margins)
        bias = self.bias.to(dtype).repeat(self.group_order)
        fused = self.activation_name if fuses(image, self.activation_name) else None
        features = _Lift.apply(padded, filters, bias, self.kernel_size, self.stride, fused)
        if fused is None:
            features = self.activation(features)
        features = features.unflatten(-1, (self.group_order, -1))
        if self.pool is not None:
            features = self.pool(features.transpose(-1, -2)).transpose(-1, -2)
        return self.pointwise(features)


class _Lift(torch.autograd.Function):
    """Cross-correlation with image-sized filters as a matrix product, a few images at a time.

    The patches take as many times the memory of the image as a filter has pixels; they are made
    again in the backward pass instead of kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        filters: Tensor,
        bias: Tensor,
        kernel: int,
        stride: int,
        activation: str | None,
    ) -> Tensor:
        ctx.kernel, ctx.stride, ctx.activation = kernel, stride, activation
        images, result = len(image), None
        for part, rows in _parts(image, kernel, stride):
            patches = _patches(part, kernel, stride)
            if activation is None:
                some = linear(patches, filters, bias)
            else:
                some = fused_linear(patches, filters, bias, activation)
            if result is None:
                result = some.new_empty(images, *some.shape[1:])
            result[rows] = some
        assert result is not None
        ctx.save_for_backward(image, filters, result if activation else None)
        return result  # (B, P, R K)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, filters, result = ctx.saved_tensors
        wants_image, wants_filters, wants_bias, *_ = ctx.needs_input_grad
        of_image = torch.empty_like(image) if wants_image else None
        of_filters = torch.zeros_like(
            filters, dtype=torch.promote_types(filters.dtype, torch.float32)
        )
        of_bias = of_filters.new_zeros(len(filters))
        for part, rows in _parts(image, ctx.kernel, ctx.stride):
            some = grad[rows]
            if ctx.activation:
                some = through_activation(some, result[rows], ctx.activation)
            flat = some.flatten(0, 1)
            if wants_filters:
                of_filters += flat.t() @ _patches(part, ctx.kernel, ctx.stride).flatten(0, 1)
            if wants_bias:
                of_bias += flat.sum(0)
            if of_image is not None:
                of_image[rows] = fold(
                    (some @ filters).transpose(1, 2),
                    image.shape[-2:],
                    ctx.kernel,
                    stride=ctx.stride,
                )
        return of_image, of_filters, of_bias, None, None, None


def _parts(image: Tensor, kernel: int, stride: int) -> Iterator[tuple[Tensor, slice]]:
    """A few of the images (B, C, H, W) at a time, and their rows; of no images, one part."""
    channels, height, width = image.shape[1:]
    positions = ((height - kernel) // stride + 1) * ((width - kernel) // stride + 1)
    numbers = _PATCHES_AT_ONCE if image.device.type == "cpu" else _PATCHES_ON_GPU
    count = max(1, numbers // (positions * channels * kernel**2))
    for start in range(0, max(1, len(image)), count):
        rows = slice(start, start + count)
        yield image[rows], rows


def _patches(image: Tensor, kernel: int, stride: int) -> Tensor:
    """What lies under the filter at every position: (B, P, C k k) of images (B, C, H, W)."""
    patches = image.unfold(2, kernel, stride).unfold(3, kernel, stride)  # (B, C, h, w, k, k)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def _window(size: int, width_px: float) -> Tensor:
    """A Gaussian (size, size) with a mean square of one."""
    place = torch.arange(size) - (size - 1) / 2
    window = torch.exp(-(place[:, None] ** 2 + place**2) / (2 * width_px**2))
    return window / window.square().mean().sqrt()


def _disc(size: int) -> Tensor:
    """1 inside of the disc that touches the sides of a square of pixels, else 0: (size, size)."""
    if size == 1:
        return torch.ones(1, 1)
    # An even square has no pixel in the middle of a side, but two beside it.
    radius = 1.0 if size % 2 else math.hypot(1, 1 / (size - 1))
    return (pixel_grid(size, size).norm(dim=-1) <= radius + 1e-6).float().view(size, size)


def _positions(size: int, kernel: int, padding: int, stride: int) -> tuple[int, int]:
    """How many positions there are along one side, and how much padding they need on each end."""
    reach = size + 2 * padding - kernel
    count, left_over = reach // stride + 1, reach % stride
    if left_over % 2 and stride % 2:
        # With one position less, what is left over is shared equally.
        count, left_over = count - 1, left_over + stride
    if left_over % 2:
        raise ValueError(
            f"stride: positions {stride} px apart cannot lie symmetrically about the centre of "
            f"{size} px under a kernel of {kernel} px; use a kernel one pixel larger or smaller, "
            "or an odd stride"
        )
    if reach < 0 or count < 1:
        raise ValueError(
            f"kernel_size, padding, stride: a kernel of {kernel} px on {size} px with {padding} "
            f"px of padding and a stride of {stride} px leaves no position; use more padding"
        )
    return count, padding - left_over // 2
