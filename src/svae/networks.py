"""Pieces that several networks share."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from svae.checks import at_least, one_of

__all__ = ["Residual", "activation_named", "compute_dtype", "hidden_layers"]

#: The published code calls its leaky ReLU "relu". In place, because what it is given is always the
#: fresh result of a layer that does not need it again: half the memory of wide layers.
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "leaky_relu": partial(nn.LeakyReLU, inplace=True),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def activation_named(name: str) -> nn.Module:
    """The activation function called `name`: tanh, leaky_relu, gelu or silu."""
    return _ACTIVATIONS[one_of("activation", name, tuple(_ACTIVATIONS))]()


class Residual(nn.Module):
    """A hidden layer with a residual connection, act(W x + b + x)."""

    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x) + x)


def hidden_layers(width: int, count: int, activation: str, residual: bool = False) -> nn.Module:
    """`count` fully connected layers from `width` to `width`, each with its activation."""
    layers: list[nn.Module] = []
    for _ in range(at_least("layers", count, 0)):
        if residual:
            layers += [Residual(width, activation_named(activation))]
        else:
            layers += [nn.Linear(width, width), activation_named(activation)]
    return nn.Sequential(*layers)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which autocast multiplies matrices where `x` lives; that of `x` without it."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
