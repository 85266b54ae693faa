"""A small convolutional inference network."""

from collections.abc import Sequence

from torch import Tensor, nn

from svae.checks import at_least, image_shape_of
from svae.networks import activation_named

__all__ = ["CNN"]


class CNN(nn.Module):
    """Strided convolutions, then one fully connected layer that keeps where things are.

    Every convolution halves the image; the channels double from `channels` on.

    Arguments:
        image_shape: The shape of the images, (C, H, W).
        channels: The channels of the first convolution.
        convolutions: The number of convolutions.
        kernel_size: The side of the filters in pixels.
        hidden: The width of the last layer.
        activation: tanh, leaky_relu, gelu or silu.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: int = 32,
        convolutions: int = 3,
        kernel_size: int = 5,
        hidden: int = 500,
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        in_channels, height, width = image_shape_of(image_shape)
        at_least("channels", channels, 1)
        at_least("kernel_size", kernel_size, 1)
        self.out_features = at_least("hidden", hidden, 1)
        layers: list[nn.Module] = []
        for i in range(at_least("convolutions", convolutions, 1)):
            if min(height, width) < kernel_size:
                raise ValueError(
                    f"kernel_size: convolution {i + 1} of {convolutions} sees {height}x{width} "
                    f"pixels, fewer than its kernel of {kernel_size}; use fewer convolutions, "
                    f"a smaller kernel or larger images"
                )
            out_channels = channels * 2**i
            layers += [
                nn.Conv2d(in_channels, out_channels, kernel_size, 2, padding=kernel_size // 2),
                activation_named(activation),
            ]
            in_channels = out_channels
            height, width = (
                (size + 2 * (kernel_size // 2) - kernel_size) // 2 + 1 for size in (height, width)
            )
        layers += [
            nn.Flatten(),
            nn.Linear(in_channels * height * width, hidden),
            activation_named(activation),
        ]
        self.net = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """Features with shape (B, hidden), of images with shape (B, C, H, W)."""
        return self.net(image)
