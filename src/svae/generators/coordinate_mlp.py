r"""The spatial generator: one function of the coordinate describes the whole image.

.. math:: \log p(y | z, \theta, \Delta x) = \sum_i \log p_g(y_i | R(-\theta)(x_i - shift), z)

References:
    Explicitly disentangling image content from translation and rotation with spatial-VAE
    (Bepler et al., 2019), equations 1 and 2.
    Fourier features let networks learn high frequency functions in low dimensional domains
    (Tancik et al., 2020), as used by TARGET-VAE (Nasiri and Bepler, 2022).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import bilinear, linear

from svae.checks import at_least, image_shape_of, one_of, positive
from svae.generators.chunks import in_chunks
from svae.geometry import pixel_size
from svae.hardware import has_amx
from svae.networks import activation_named, compute_dtype, hidden_layers, split_linear

__all__ = ["CoordinateMLP"]

#: Pixels in a chunk: on a processor as many as fit its cache, in bfloat16 with AMX as many as take
#: long enough beside the calls, on a GPU as give it enough to do.
_ON_PROCESSOR, _WITH_AMX, _ON_GPU = 4096, 2**14, 2**18
#: Fourier features that are computed at once on a processor: in float32 they fit its cache.
_NUMBERS_AT_ONCE = 2**20


class ExpandedCoordinates(nn.Module):
    """Coordinates with their squares and products: (x, y, x^2, y^2, x y) in two dimensions."""

    def __init__(self, coord_dims: int) -> None:
        super().__init__()
        self.out_features = coord_dims * (coord_dims + 3) // 2

    def forward(self, coords: Tensor) -> Tensor:
        """From (..., D) to (..., D (D + 3) / 2)."""
        axes = coords.unbind(-1)
        products = [a * b for i, a in enumerate(axes) for b in axes[i + 1 :]]
        return torch.stack([*axes, *(a**2 for a in axes), *products], dim=-1)


class FourierFeatures(nn.Module):
    r"""Random Fourier features :math:`\cos(W x / \sigma + b)`, W normal and b uniform.

    Arguments:
        coord_dims: The number of coordinates D.
        count: The number of features.
        shortest: The least length :math:`\sigma` in grid units (TARGET-VAE: always one pixel).
        longest: The greatest; those of the features between have equal ratios.
        learnable: Whether W and b are trained, as in TARGET-VAE's own runs.
    """

    def __init__(
        self, coord_dims: int, count: int, shortest: float, longest: float, learnable: bool
    ) -> None:
        super().__init__()
        self.out_features = count
        scales = torch.logspace(math.log10(shortest), math.log10(longest), count)
        self.weight = nn.Parameter(torch.randn(count, coord_dims) / scales[:, None], learnable)
        self.bias = nn.Parameter(torch.rand(count) * 2 * math.pi, learnable)

    def forward(self, coords: Tensor) -> Tensor:
        """From (..., D) to (..., count), in the type that matrices are multiplied in."""
        features: Tensor = _Cosine.apply(coords, self.weight, self.bias, compute_dtype(coords))
        return features


class _Cosine(torch.autograd.Function):
    """cos(W x + b) and its derivative at once, rounded only when they lie between -1 and 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        flat = x.flatten(0, -2)
        cosine = x.new_empty(len(flat), len(weight), dtype=dtype)
        sine = torch.empty_like(cosine) if any(ctx.needs_input_grad) else None
        rows = max(1, _NUMBERS_AT_ONCE // len(weight) if x.device.type == "cpu" else len(flat))
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, len(flat), rows):
                part = slice(start, start + rows)
                phase = linear(flat[part], weight, bias)
                if sine is not None:
                    sine[part] = phase.sin()
                cosine[part] = phase.cos_()
        shape = (*x.shape[:-1], len(weight))
        if sine is not None:
            ctx.save_for_backward(x, weight, sine.view(shape))
        return cosine.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, sine = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        grad = (grad * sine).flatten(0, -2)
        of_x = -(grad @ weight.to(grad)).view(x.shape).to(x) if wants_x else None
        of_weight = -(grad.t() @ x.flatten(0, -2).to(grad)).to(x) if wants_weight else None
        return of_x, of_weight, -grad.sum(0).to(x) if wants_bias else None, None


class CoordinateMLP(nn.Module):
    """A multilayer perceptron from an object-frame coordinate and content to a pixel.

    Arguments:
        image_shape: The shape of the images, (C, H, W): how large a pixel is.
        z_dim: The length of the content; may be 0.
        out_features: How many numbers describe a pixel (the likelihood says).
        coord_dims: The number of coordinates; 2 for images.
        hidden: The width of every layer.
        layers: The number of hidden layers.
        activation: tanh, leaky_relu, gelu or silu.
        residual: Whether the layers after the first have residual connections.
        expand_coords: Whether squares and products of the coordinates are inputs too.
        bilinear: Whether products of coordinates and content enter the first layer.
        fourier_features: The number of random Fourier features; 0 for plain coordinates.
        fourier_scale_px: The length that they resolve, in pixels; None for all lengths from 2
            pixels to half of the image's longer side.
        fourier_learnable: Whether they are trained.
        chunk_pixels: How many pixels a chunk holds, here and in `svae.engine`; `auto` for as many
            as suit the device. None evaluates all in one piece, with all that autograd keeps of
            it: what the chunks are tested against.
    """

    #: Pose and single pixels make sense: the generator is a function of the coordinate.
    coordinate_based = True

    def __init__(
        self,
        image_shape: Sequence[int],
        z_dim: int,
        out_features: int,
        *,
        coord_dims: int = 2,
        hidden: int = 500,
        layers: int = 2,
        activation: str = "leaky_relu",
        residual: bool = False,
        expand_coords: bool = False,
        bilinear: bool = False,
        fourier_features: int = 0,
        fourier_scale_px: float | None = None,
        fourier_learnable: bool = False,
        chunk_pixels: int | str | None = "auto",
    ) -> None:
        super().__init__()
        _, height, width = image_shape_of(image_shape)
        if isinstance(chunk_pixels, str):
            one_of("chunk_pixels", chunk_pixels, ("auto",))
        elif chunk_pixels is not None:
            at_least("chunk_pixels", chunk_pixels, 1)
        self.chunk_pixels = chunk_pixels
        at_least("hidden", hidden, 1)
        at_least("z_dim", z_dim, 0)
        self.features: nn.Module = nn.Identity()
        in_features = at_least("coord_dims", coord_dims, 1)
        if at_least("fourier_features", fourier_features, 0):
            if expand_coords:
                raise ValueError("expand_coords: expected false together with fourier_features")
            shortest, longest = 2.0, max(height, width) / 2
            if fourier_scale_px is not None:
                shortest = longest = positive("fourier_scale_px", fourier_scale_px)
            size = pixel_size(height, width)
            self.features = FourierFeatures(
                coord_dims, fourier_features, shortest * size, longest * size, fourier_learnable
            )
            in_features = fourier_features
        elif expand_coords:
            self.features = ExpandedCoordinates(coord_dims)
            in_features = self.features.out_features

        self.from_coords = nn.Linear(in_features, hidden)
        self.from_z = nn.Linear(z_dim, hidden, bias=False) if z_dim else None
        self.bilinear = (
            nn.Bilinear(in_features, z_dim, hidden, bias=False) if bilinear and z_dim else None
        )
        self.activation, self.activation_name = activation_named(activation), activation
        self.hidden = hidden_layers(
            hidden, at_least("layers", layers, 1) - 1, activation, residual
        )
        self.to_pixel = nn.Linear(hidden, out_features)

    def forward(self, coords: Tensor, z: Tensor) -> Tensor:
        """The parameters of each pixel.

        Arguments:
            coords: Coordinates in the object frame, with shape (B, N, D).
            z: Content, with shape (B, z_dim).

        Returns:
            Pixel parameters, with shape (B, N, out_features).
        """
        at_once = self.pixels_at_once(coords.device)
        if at_once is None:
            return self.pixels(coords, z)
        return in_chunks(self.pixels, coords, z, at_once)

    def compile(self, *args: Any, **options: Any) -> None:
        """`torch.compile` what decodes a chunk; the loop over chunks stays as it is."""
        self.pixels = torch.compile(self.pixels, *args, **options)  # type: ignore[method-assign]

    def pixels_at_once(self, device: torch.device) -> int | None:
        """How many pixels a chunk holds on a device; None for all in one piece."""
        if isinstance(self.chunk_pixels, str):
            if device.type != "cpu":
                return _ON_GPU
            half = torch.is_autocast_enabled("cpu")
            return _WITH_AMX if half and has_amx() else _ON_PROCESSOR
        return self.chunk_pixels

    def pixels(self, coords: Tensor, z: Tensor) -> Tensor:
        """`forward` in one piece; shapes as there."""
        return self.to_pixel(self.hidden(self._first_layer(coords, z)))

    def _first_layer(self, coords: Tensor, z: Tensor) -> Tensor:
        """The first layer with its activation, (B, N, hidden)."""
        features = self.features(coords)
        # Coordinates in full precision: bfloat16 would round those of large images to a pixel.
        # What Fourier features make of them lies between -1 and 1 and is not so delicate.
        delicate = not isinstance(self.features, FourierFeatures)
        z_rows = z.unsqueeze(1).expand(*coords.shape[:-1], -1)
        if self.bilinear is None:
            weight = self.from_coords.weight
            if self.from_z is not None:
                weight = torch.cat((weight, self.from_z.weight), 1)
            together = torch.cat((features, z_rows), -1) if delicate else z_rows
            h = split_linear(
                together,
                weight,
                self.from_coords.bias,
                self.activation_name,
                rounded=None if delicate else features,
            )
            if h is not None:
                return h
        device = coords.device.type
        enabled = torch.is_autocast_enabled(device) and not delicate
        with torch.autocast(device, enabled=enabled):
            h = self.from_coords(features)
            if self.from_z is not None:
                h = h + self.from_z(z).unsqueeze(1)
            if self.bilinear is not None:
                h = h + bilinear(features.to(z_rows), z_rows.contiguous(), self.bilinear.weight)
        return self.activation(h.to(compute_dtype(h)))
