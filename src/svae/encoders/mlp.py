"""The inference network of the paper: fully connected layers on the flat image."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from svae.checks import at_least, image_shape_of
from svae.networks import Dense, hidden_layers

__all__ = ["MLP"]


class MLP(nn.Module):
    """Fully connected layers on the flat image.

    References:
        Explicitly disentangling image content from translation and rotation with spatial-VAE
        (Bepler et al., 2019), section 4.1.

    Arguments:
        image_shape: The shape of the images, (C, H, W).
        hidden: The width of every layer.
        layers: The number of hidden layers.
        activation: tanh, leaky_relu, gelu or silu.
        residual: Whether the layers after the first have residual connections.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        hidden: int = 500,
        layers: int = 2,
        activation: str = "tanh",
        residual: bool = False,
    ) -> None:
        super().__init__()
        inputs = math.prod(image_shape_of(image_shape))
        self.out_features = at_least("hidden", hidden, 1)
        self.net = nn.Sequential(
            nn.Flatten(),
            Dense(inputs, hidden, activation),
            hidden_layers(hidden, at_least("layers", layers, 1) - 1, activation, residual),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Features with shape (B, hidden), of images with shape (B, C, H, W)."""
        return self.net(image)
