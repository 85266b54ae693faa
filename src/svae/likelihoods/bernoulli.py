r"""Binary pixels.

.. math:: \log p(y) = y \log p + (1 - y) \log (1 - p), \qquad p = \mathrm{sigmoid}(logit)

For grey values between 0 and 1 this is the cross-entropy that both papers report. It is then no
density (it does not integrate to one over [0, 1]), so that such numbers compare with the papers'
and with one another, but not with those of other likelihoods.

References:
    Explicitly disentangling image content from translation and rotation with spatial-VAE
    (Bepler et al., 2019), sections 2.1 and 4.1.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from svae.likelihoods.base import Likelihood

__all__ = ["Bernoulli"]

_LEAST_VARIANCE = 1e-6


class Bernoulli(Likelihood):
    """Pixels that are 0 or 1, or grey values in between; arguments as in `Likelihood`."""

    params_per_channel = 1

    def log_prob(self, params: Tensor, target: Tensor) -> Tensor:
        logits = params.to(torch.promote_types(params.dtype, torch.float32))
        return (target * logits - softplus(logits)).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        return torch.sigmoid(params.to(torch.promote_types(params.dtype, torch.float32)))

    def stddev(self, params: Tensor) -> Tensor:
        p = self.mean(params)
        # Never 0, to which a certain pixel would be rounded: it is divided by.
        return (p * (1 - p)).clamp(min=_LEAST_VARIANCE).sqrt()

    def check(self, image: Tensor) -> None:
        super().check(image)
        if not image.numel():
            return
        low, high = image.min().item(), image.max().item()
        if low < 0 or high > 1:
            raise ValueError(
                f"images: a Bernoulli likelihood expects pixel values from 0 to 1, got {low:.4g} "
                f"to {high:.4g}; scale the images or use model/likelihood=gaussian"
            )
