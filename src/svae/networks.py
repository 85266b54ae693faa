"""Pieces that several networks share."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from svae.checks import at_least, one_of

__all__ = [
    "Dense",
    "activation_named",
    "compute_dtype",
    "fused_linear",
    "fuses",
    "hidden_layers",
    "precise_linear",
    "split_linear",
    "through_activation",
]

#: The published code calls its leaky ReLU "relu". In place, because what it is given is always the
#: fresh result of a layer that does not need it again: half the memory of wide layers.
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "leaky_relu": partial(nn.LeakyReLU, inplace=True),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}

# So many feature vectors are multiplied at once in float32: on a processor they fit its cache, a
# GPU has enough to do with them.
_ROWS, _ROWS_ON_GPU = 2**14, 2**21

_SLOPE = nn.LeakyReLU().negative_slope

#: Of activations whose derivative follows from their result: oneDNN's arguments, and the gradient
#: of the input from that of the result and the result.
_FUSED: dict[str, tuple[list[float], Callable[[Tensor, Tensor], Tensor]]] = {
    "tanh": ([], torch.ops.aten.tanh_backward),
    "leaky_relu": (
        [_SLOPE],
        lambda grad, y: torch.ops.aten.leaky_relu_backward(grad, y, _SLOPE, True),
    ),
}


def activation_named(name: str) -> nn.Module:
    """The activation function called `name`: tanh, leaky_relu, gelu or silu."""
    return _ACTIVATIONS[one_of("activation", name, tuple(_ACTIVATIONS))]()


class Dense(nn.Module):
    """A fully connected layer with its activation, act(W x + b), or act(W x + b + x).

    Arguments:
        in_features: The length of the input.
        out_features: The length of the result.
        activation: tanh, leaky_relu, gelu or silu.
        residual: Whether the input is added before the activation.
    """

    def __init__(
        self, in_features: int, out_features: int, activation: str, residual: bool = False
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.activation = activation_named(activation)
        self.name, self.residual = activation, residual

    def forward(self, x: Tensor) -> Tensor:
        """From (..., in_features) to (..., out_features)."""
        if self.residual:
            return self.activation(self.linear(x) + x)
        if fuses(x, self.name):
            x = x.to(torch.bfloat16)
            return Fused.apply(x, self.linear.weight, self.linear.bias, self.name)
        return self.activation(self.linear(x))


def split_linear(
    x: Tensor, weight: Tensor, bias: Tensor, activation: str, rounded: Tensor | None = None
) -> Tensor | None:
    """act(W x + b) in bfloat16 of a float32 input, of which 16 bits count and not 8.

    bfloat16 rounds a coordinate of a large image to a pixel. What rounding leaves over is put
    beside it as further inputs with the same weights.

    Arguments:
        x: Input, with shape (..., n).
        weight: Weights (out, m + n), those of `rounded` first.
        bias: With shape (out,).
        activation: tanh, leaky_relu, gelu or silu.
        rounded: Further input, with shape (..., m), that may be rounded.

    Returns:
        The result (..., out), bfloat16; None where the machine at hand gains nothing by it.
    """
    if not fuses(x, activation):
        return None
    high = x.to(torch.bfloat16)
    parts = [high, (x - high).to(torch.bfloat16)]
    weights = [weight, weight[:, -x.shape[-1] :]] if x.shape[-1] else [weight]
    if rounded is not None:
        parts = [rounded.to(torch.bfloat16), *parts]
    result: Tensor = Fused.apply(torch.cat(parts, -1), torch.cat(weights, 1), bias, activation)
    return result


def precise_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """A layer in its own precision, of features that may be rounded: (..., n) to (..., m).

    Of rounded features no precise copy is kept.
    """
    with torch.autocast(x.device.type, enabled=False):
        if x.dtype == layer.weight.dtype:
            return layer(x)
        result: Tensor = _Precise.apply(x, layer.weight, layer.bias)
        return result


def hidden_layers(
    width: int, count: int, activation: str, residual: bool = False
) -> nn.Sequential:
    """`count` fully connected layers from `width` to `width`, each with its activation."""
    layers = range(at_least("layers", count, 0))
    return nn.Sequential(*(Dense(width, width, activation, residual) for _ in layers))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which autocast multiplies matrices where `x` lives; that of `x` without it."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


@cache
def _onednn_multiplies_bfloat16() -> bool:
    """Whether oneDNN, as this torch has it, multiplies bfloat16 fast here."""
    ops = torch.ops.mkldnn
    if not hasattr(ops, "_linear_pointwise") or not hasattr(ops, "_is_mkldnn_bf16_supported"):
        return False
    return bool(torch.backends.mkldnn.is_available() and ops._is_mkldnn_bf16_supported())


def fuses(x: Tensor, activation: str) -> bool:
    """Whether a layer with that activation is one operation for input like `x`."""
    # The compiler fuses layers itself, and does not know these operations.
    return (
        not torch.compiler.is_compiling()
        and activation in _FUSED
        and x.device.type == "cpu"
        and compute_dtype(x) == torch.bfloat16
        and bool(torch.backends.mkldnn.enabled)
        and _onednn_multiplies_bfloat16()
    )


def fused_linear(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """act(W x + b) of bfloat16 tensors in one operation, where `fuses` says so; no gradients."""
    scalars, _ = _FUSED[activation]
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, scalars, "")
    return y


def through_activation(grad: Tensor, y: Tensor, activation: str) -> Tensor:
    """The gradient of an activation's input, from that of its result y and y."""
    return _FUSED[activation][1](grad, y)


class Fused(torch.autograd.Function):
    """act(W x + b) in bfloat16: the activation costs nothing beside the product.

    Only the result is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        weight = weight.to(torch.bfloat16)
        y = fused_linear(x, weight, bias.to(torch.bfloat16), activation)
        ctx.activation = activation
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        grad = through_activation(grad, y, ctx.activation).flatten(0, -2)
        of_x = (grad @ weight).view(x.shape) if wants_x else None
        of_weight = grad.t() @ x.flatten(0, -2) if wants_weight else None
        return of_x, of_weight, grad.sum(0) if wants_bias else None, None


def _in_parts(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows of all of them at a time."""
    size = _ROWS if rows[0].device.type == "cpu" else _ROWS_ON_GPU
    return zip(*(some.split(size) for some in rows), strict=True)


class _Precise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = weight.new_empty(*x.shape[:-1], len(weight))
        for some_y, some_x in _in_parts(y.flatten(0, -2), x.flatten(0, -2)):
            torch.addmm(bias, some_x.to(weight), weight.t(), out=some_y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        of_weight = torch.zeros_like(weight)
        grad = grad.flatten(0, -2)
        parts = _in_parts(x.flatten(0, -2), of_x.view(-1, x.shape[-1]), grad)
        for some_x, some_of_x, some in parts:
            some_of_x.copy_(some.to(x) @ weight.to(x))
            of_weight.addmm_(some.t(), some_x.to(weight))
        return of_x, of_weight, grad.sum(0)
