r"""The engine of the pixel decoder: log-likelihoods of images and their gradients, in chunks.

The log-likelihood of an image is a sum over its pixels, so that neither the sum nor its gradients
need anything kept of a pixel: the engine runs the decoder forward and backward on as many pixels
as fit the cache, adds up, and goes on with the next. Memory so does not grow with the number of
images, nor with their size.

.. math:: \nabla \sum_b w_b \log p(y_b | \ell_b)
          = \sum_{\mathrm{chunks}} \sum_{b, i} w_b \nabla \log p(y_{b i} | \ell_b)

Where the weights w of the images are known beforehand (the training ELBO: those of posterior
samples), one pass gives both. Elsewhere, and where the gradient that comes back is not in
proportion to them, the chunks are evaluated again in the backward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from svae.latents import Latents

__all__ = ["log_likelihood_in_chunks"]

#: From the latents (b, ...) of some images, the rows of these and some places of pixels, to the
#: log-likelihood (b,) that those pixels add.
Score = Callable[[Latents, slice, slice], Tensor]

#: How many tensors the latents are, which come before the parameters.
_LATENTS = len(fields(Latents))


def log_likelihood_in_chunks(
    score: Score,
    latents: Latents,
    parameters: Sequence[Tensor],
    pixels: int,
    at_once: int,
    weights: Tensor | None = None,
) -> Tensor:
    """The log-likelihood of images, and its gradients, without anything kept per pixel.

    Arguments:
        score: What some pixels of some images add.
        latents: The latents of the images, with shape (I, ...).
        parameters: Whatever else `score` depends on and gradients are wanted of.
        pixels: The number of pixels of each image.
        at_once: At most this many pixels, counted over images, are in one chunk.
        weights: The weights (I,) that the images will have in what is differentiated, up to a
            common factor, where they are known.

    Returns:
        The log-likelihoods, with shape (I,).
    """
    plan = _Plan(score, pixels, at_once, None if weights is None else weights.detach())
    if not torch.is_grad_enabled():
        return plan.value(latents)
    value: Tensor = _InChunks.apply(plan, *latents.tensors(), *parameters)
    return value


@dataclass
class _Plan:
    score: Score
    pixels: int
    at_once: int
    weights: Tensor | None

    def chunks(self, images: int) -> Iterator[tuple[slice, slice]]:
        columns = min(self.pixels, self.at_once)
        rows = max(1, self.at_once // columns)
        for row in range(0, images, rows):
            for column in range(0, self.pixels, columns):
                yield slice(row, row + rows), slice(column, column + columns)

    def value(self, latents: Latents) -> Tensor:
        """The log-likelihoods (I,)."""
        value = torch.zeros_like(latents.theta)
        for rows, columns in self.chunks(len(latents)):
            value[rows] += self.score(latents[rows], rows, columns)
        return value

    def gradients(
        self, inputs: Sequence[Tensor], wanted: Sequence[bool], weights: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The log-likelihoods (I,), and the gradients of their weighted sum where wanted."""
        images, shared = inputs[:_LATENTS], inputs[_LATENTS:]
        device = weights.device.type
        value = torch.zeros_like(inputs[1])
        sums = [
            torch.zeros_like(x) if want else None for x, want in zip(inputs, wanted, strict=True)
        ]
        trained = [x for x, want in zip(shared, wanted[_LATENTS:], strict=True) if want]
        for rows, columns in self.chunks(len(weights)):
            own = [
                x[rows].detach().requires_grad_(want)
                for x, want in zip(images, wanted, strict=False)
            ]
            with torch.enable_grad():
                part = self.score(Latents(*own), rows, columns)
            value[rows] += part.detach()
            if not part.requires_grad:
                continue
            leaves = [x for x in own if x.requires_grad] + trained
            # As in any backward pass: what was computed in float32 has gradients in float32.
            with torch.autocast(device, enabled=False):
                found = torch.autograd.grad(
                    part, leaves, weights[rows].to(part), allow_unused=True
                )
            places = [total[rows] for total in sums[:_LATENTS] if total is not None]
            places += [total for total in sums[_LATENTS:] if total is not None]
            for place, gradient in zip(places, found, strict=True):
                if gradient is not None:
                    place += gradient
        return value, sums


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *inputs: Tensor) -> Tensor:
        ctx.plan = plan
        ctx.device = device = inputs[0].device.type
        ctx.autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        ctx.inputs = len(inputs)
        wanted = ctx.needs_input_grad[1:]
        if plan.weights is None or not any(wanted):
            ctx.save_for_backward(*inputs)
            return plan.value(Latents(*inputs[:_LATENTS]))
        value, sums = plan.gradients(inputs, wanted, plan.weights)
        ctx.save_for_backward(*inputs, *sums)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, sums = ctx.saved_tensors[: ctx.inputs], ctx.saved_tensors[ctx.inputs :]
        weights = ctx.plan.weights
        if sums and weights is not None and len(weights):
            factor = (grad * weights).sum() / (weights * weights).sum()
            # Rounding differs by where the factor was applied; anything else differs by far more.
            if torch.allclose(
                grad, factor * weights, rtol=1000 * torch.finfo(grad.dtype).eps, atol=0.0
            ):
                return None, *(None if total is None else factor * total for total in sums)
        enabled, dtype = ctx.autocast
        with torch.autocast(ctx.device, dtype=dtype, enabled=enabled):
            _, sums = ctx.plan.gradients(inputs, ctx.needs_input_grad[1:], grad)
        return None, *sums
