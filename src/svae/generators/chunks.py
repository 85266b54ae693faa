"""The decoder seam: a function of single pixels, evaluated in chunks that fit the cache."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["in_chunks"]

_AT_ONCE = 4


def in_chunks(
    function: Callable[[Tensor, Tensor], Tensor], coords: Tensor, z: Tensor, pixels: int
) -> Tensor:
    """`function(coords, z)` in chunks whose activations are recomputed in the backward pass.

    What is kept per pixel is its parameters and nothing of the network, so that memory does not
    grow with width and depth times the image. Result and gradients are those of the plain call.

    Arguments:
        function: Pixel parameters (b, n, K) from coordinates (b, n, D) and content (b, z_dim).
        coords: Coordinates in the object frame, with shape (B, N, D).
        z: Content, with shape (B, z_dim).
        pixels: At most this many pixels, counted over images, are in one chunk. Up to four
            chunks are evaluated in one piece: there, recomputing costs more than it saves.

    Returns:
        Pixel parameters, with shape (B, N, K).
    """
    images_total, pixels_total, _ = coords.shape
    if images_total * pixels_total <= _AT_ONCE * pixels:
        return function(coords, z)
    if torch.is_grad_enabled():
        # Nothing in a generator is random, so that no generator state needs to be put back.
        function = partial(
            checkpoint,
            function,
            use_reentrant=False,
            preserve_rng_state=False,
            determinism_check="none",
        )
    columns = min(pixels_total, pixels)
    rows = max(1, pixels // columns)
    return torch.cat(
        [
            torch.cat(
                [function(part, z_rows) for part in coords_rows.split(columns, dim=1)], dim=1
            )
            for coords_rows, z_rows in zip(coords.split(rows), z.split(rows), strict=True)
        ]
    )
