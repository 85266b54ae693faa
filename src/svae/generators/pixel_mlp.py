"""The generator of the vanilla VAE: content to all pixels at once."""

from collections.abc import Sequence

from torch import Tensor, nn

from svae.checks import at_least, image_shape_of
from svae.networks import Dense, hidden_layers

__all__ = ["PixelMLP"]


class PixelMLP(nn.Module):
    """A multilayer perceptron from content to every pixel (the paper's baseline, section 4.1).

    Arguments:
        image_shape: The shape of the images, (C, H, W).
        z_dim: The length of the content.
        out_features: How many numbers describe a pixel (the likelihood says).
        hidden: The width of every layer.
        layers: The number of hidden layers.
        activation: tanh, leaky_relu, gelu or silu.
        residual: Whether the layers after the first have residual connections.
    """

    #: Pixels have no coordinates here, so that no pose can move them.
    coordinate_based = False

    def __init__(
        self,
        image_shape: Sequence[int],
        z_dim: int,
        out_features: int,
        *,
        hidden: int = 500,
        layers: int = 2,
        activation: str = "tanh",
        residual: bool = False,
    ) -> None:
        super().__init__()
        _, height, width = image_shape_of(image_shape)
        self.net = nn.Sequential(
            Dense(at_least("z_dim", z_dim, 1), at_least("hidden", hidden, 1), activation),
            hidden_layers(hidden, at_least("layers", layers, 1) - 1, activation, residual),
            nn.Linear(hidden, height * width * out_features),
            nn.Unflatten(1, (height * width, out_features)),
        )

    def forward(self, coords: Tensor, z: Tensor) -> Tensor:
        """Pixel parameters (B, H*W, out_features) from content (B, z_dim); no coordinates."""
        return self.net(z)
