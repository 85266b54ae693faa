"""What an approximate posterior answers; training, evaluation and figures ask only this."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from svae.latents import Latents
from svae.networks import precise_linear
from svae.noise import Noise
from svae.priors import Prior

__all__ = ["Frame", "Look", "Posterior", "PosteriorHead"]

#: How what was encoded lies in the image of which the latents are: turned counter-clockwise by an
#: angle (B,), and its centre (B, 2) before that.
Frame = tuple[Tensor, Tensor]

#: From poses in images, batch (B, K), to corrections (B, K, n) of a posterior in their frames.
Look = Callable[[Latents], Tensor]


class Posterior(Protocol):
    """The approximate posterior q(z, theta, shift, scale | image) of a batch of B images."""

    @property
    def guidance(self) -> Tensor | None:
        """What training subtracts beside the divergences (B,), if anything."""

    @property
    def gives_bound(self) -> bool:
        """Whether `rsample` gives samples of the posterior, so that the ELBO is a bound."""

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

    def log_prior(self, latents: Latents, priors: Mapping[str, Prior]) -> Tensor:
        """Log-density of the prior; shapes as for `log_prob`."""

    def excess(self, latents: Latents, priors: Mapping[str, Prior]) -> Tensor | None:
        """By how much the prior that `kl` compares with is above `log_prior`; None: nowhere.

        Its expectation under q is what `kl` lacks. Shapes as for `log_prob`.
        """

    def log_prob(self, latents: Latents) -> Tensor:
        """Log-density in nats, with shape (..., B), of latents with shape (..., B, ...)."""


class PosteriorHead(nn.Module, ABC):
    """What turns an encoder's features into a posterior: a linear layer, and what it stands for.

    Arguments:
        in_features: The length of a feature vector.
        sizes: How many numbers each part of the posterior takes.
        priors: What each inferred variable is compared with.
        terms: The names of the divergences.
    """

    def __init__(
        self,
        in_features: int,
        sizes: Sequence[int],
        priors: Mapping[str, Prior],
        terms: Sequence[str],
    ) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.head = nn.Linear(in_features, sum(sizes))
        # The methods only: the model owns the priors, which would be modules of this one too.
        self.families = {name: prior.family for name, prior in priors.items()}
        #: The names of the divergences.
        self.terms = tuple(terms)
        #: Those in whose place training minimises another term.
        self.replaced = tuple(name for name, prior in priors.items() if prior.replaces_kl)

    def params(self, features: Tensor) -> Tensor:
        """The posterior's parameters (B, ..., n), from features (B, ..., in_features)."""
        # In full precision: bfloat16 would round an angle to a degree.
        return precise_linear(features, self.head)

    @abstractmethod
    def forward(self, params: Tensor, frame: Frame | None = None) -> Posterior:
        """The posterior of each image, from what `params` gave.

        Arguments:
            params: Parameters, with shape (B, ..., n).
            frame: Where the image that was encoded lies in that of which the latents are, if it
                is not the same: the prior is of the latter.
        """

    def trained(self, params: Tensor, noise: Noise, frame: Frame | None = None) -> Posterior:
        """The posterior in the training step that `noise` belongs to."""
        return self(params, frame)

    @property
    @abstractmethod
    def can_look_again(self) -> bool:
        """Whether the poses that it finds are few enough for `looked_again`."""

    @abstractmethod
    def looked_again(
        self, params: Tensor, look: Look, noise: Noise | None = None, frame: Frame | None = None
    ) -> Posterior:
        """The posterior after a second look at each image in the poses found (`SecondLook`).

        Arguments:
            params: What the first look gave, as for `forward`.
            look: Sees each image that was encoded in given poses.
            noise: Of the training step, for the posterior that is trained; it has `guidance` then.
            frame: As for `forward`.
        """
