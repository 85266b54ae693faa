"""What an approximate posterior answers; training, evaluation and figures ask only this."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from svae.latents import Latents
from svae.noise import Noise
from svae.priors import Prior

__all__ = ["Posterior"]


class Posterior(Protocol):
    """The approximate posterior q(z, theta, shift | image) of a batch of B images."""

    def turned(self, angle: Tensor) -> "Posterior":
        """The posterior of the latents of the images turned counter-clockwise by `angle` (B,)."""

    def rsample(self, count: int, noise: Noise) -> tuple[Latents, Tensor]:
        """Reparameterised samples (count, B, ...) and their weights (count, B).

        The expectation under q of anything is its weighted sum over the samples.
        """

    def mode(self) -> Latents:
        """The most probable latents (B, ...)."""

    def uncertainty(self) -> Latents:
        """The standard deviation of every latent (B, ...): zero where nothing is inferred."""

    def representation(self) -> Tensor:
        """Mean and standard deviation of z at the mode, side by side, with shape (B, 2 z_dim).

        What TARGET-VAE clusters images by.
        """

    def kl(self, priors: Mapping[str, Prior]) -> dict[str, Tensor]:
        """The divergence from the prior by variable, in nats, each with shape (B,)."""

    def optimised_kl(self, priors: Mapping[str, Prior]) -> dict[str, Tensor]:
        """The terms that training minimises in the place of `kl`, each with shape (B,)."""

    def log_prob(self, latents: Latents) -> Tensor:
        """Log-density in nats, with shape (..., B), of latents with shape (..., B, ...)."""
