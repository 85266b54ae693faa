"""A limit on gradients that adapts to how large they usually are."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

__all__ = ["SpikeLimit"]

# What one step contributes to the usual norm of the gradient.
_SHARE = 0.02


class SpikeLimit(nn.Module):
    """Scales a gradient down that is much larger than usual.

    What is usual depends on the likelihood, the image size and the stage of training, so that no
    fixed limit serves all. It is the running geometric mean, over about 50 steps, of the norms
    that were let through.

    Arguments:
        times: How many times the usual norm a gradient may have; more than 1.
    """

    def __init__(self, times: float) -> None:
        super().__init__()
        if not times > 1:
            raise ValueError(
                f"max_gradient_spike: expected null or a number above 1, got {times!r}"
            )
        self.times = times
        # A buffer, so that a resumed run goes on exactly.
        self.register_buffer("usual_log_norm", torch.tensor(float("nan")))
        self.usual_log_norm: Tensor

    @torch.no_grad()
    def limit(self, gradients: Sequence[Tensor]) -> Tensor:
        """Scale the gradients of one step in place, by one factor.

        Returns:
            The norm that they had, with shape ().
        """
        # On the device throughout: a comparison in Python would wait for it.
        norm = get_total_norm(gradients)
        usual = torch.where(self.usual_log_norm.isnan(), norm.log(), self.usual_log_norm)
        factor = (usual.exp() * self.times / norm).clamp(max=1.0)
        torch._foreach_mul_(list(gradients), factor)
        let_through = (norm * factor).log()
        self.usual_log_norm = torch.where(
            let_through.isfinite(), usual + _SHARE * (let_through - usual), self.usual_log_norm
        )
        return norm
