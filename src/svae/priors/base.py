"""What a prior answers."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from svae.distributions import Distribution
from svae.latents import Latents

__all__ = ["Prior", "cut_at"]


def cut_at(output: Tensor, largest: float) -> Tensor:
    """A network's output where it is at most `largest`, and that where it is more.

    Its gradient is cut nowhere, so that a divergence brings back what has run away.
    """
    return output + (output.clamp(max=largest) - output).detach()


class Prior(nn.Module, ABC):
    """The prior of one latent variable.

    It decides the family of the approximate posterior as well: a prior on the circle asks for a
    posterior on the circle. A new prior is a subclass in a file of its own and a config file.
    """

    #: How many numbers a network gives for each posterior of this variable.
    num_params: int

    #: The unit of a posterior's parameters: a network's outputs near zero mean about the prior, or
    #: about a radian where that is wider.
    unit: float = 1.0

    #: About how far values lie from its middle, or a radian where that is less.
    width: float = 1.0

    @abstractmethod
    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, with shape (...), of values with shape (..., *event)."""

    @abstractmethod
    def family(self, params: Tensor, around: Tensor | float = 0.0) -> Distribution:
        """The approximate posterior with these parameters.

        Arguments:
            params: A network's output, with shape (..., num_params).
            around: The offset that the posterior is centred on, broadcastable to (..., *event).
        """

    def corrected(self, params: Tensor, correction: Tensor, pose: Latents) -> Tensor:
        """The parameters of a posterior with a correction, which was found in another frame.

        Arguments:
            params: With shape (B, num_params).
            correction: What is added to them in its frame, with shape (B, num_params).
            pose: How that frame, the object's, is turned and sized in the image; batch (B,).
        """
        return params + correction

    @abstractmethod
    def kl(self, q: Any) -> Tensor:
        """The divergence KL(q || prior) in nats, with shape (...): what is reported.

        Arguments:
            q: A distribution that `family` made.
        """

    @property
    def replaces_kl(self) -> bool:
        """Whether training minimises another term than the divergence."""
        return type(self).optimised_kl is not Prior.optimised_kl

    def optimised_kl(self, q: Any) -> Tensor:
        """The term that training minimises in the place of `kl`, where the two differ."""
        return self.kl(q)

    @abstractmethod
    def on_lattice(self, points: Tensor) -> "tuple[Tensor, Prior | None]":
        """The prior for a posterior that first picks one of `points`, with shape (..., M, *event).

        Returns:
            The log-weights of the points (they sum to one), with shape (..., M); and the prior of
            the deviation from a point, or `None` where the variable lies on the points themselves.
        """

    def between(self, spacing: float) -> Any:
        """The prior of the deviation from the points of a lattice of positions.

        Arguments:
            spacing: The distance of neighbouring points.

        Raises:
            ValueError: There is none for this variable.
        """
        raise ValueError(
            f"prior.shift: {type(self).__name__} leaves nothing between the positions of a "
            "lattice; use model.posterior.shift_offsets=false"
        )
