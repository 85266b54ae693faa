"""The evidence lower bound of images, image by image."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["ELBO"]


@dataclass(frozen=True)
class ELBO:
    r"""The bound of each image in nats, constants included (spatial-VAE eq. 4).

    .. math:: \mathrm{ELBO} = E_q[\log p(y | z, \theta, \Delta x)] - \sum_k KL_k

    What is reported and what is optimised are two things with two names: `value` is the bound;
    `objective` is what training ascends, with `beta`, with the terms that a prior puts in the
    place of its exact divergence (eq. 3), and less the guidance of a first look and what holds
    objects in the middle.

    Arguments:
        log_likelihood: The expected log-likelihood, with shape (B,).
        kl: The divergence of every latent variable, each with shape (B,).
        optimised_kl: The terms that stand in for `kl` in the objective, each with shape (B,).
        is_bound: Whether `value` estimates a bound: not where training averages over poses before
            it decodes.
        guidance: What training subtracts beside the divergences, with shape (B,), if anything: it
            is no part of the bound.
        off_centre: The same for objects that are not where their origin is, with shape (B,).
    """

    log_likelihood: Tensor
    kl: dict[str, Tensor]
    optimised_kl: dict[str, Tensor]
    is_bound: bool = True
    guidance: Tensor | None = None
    off_centre: Tensor | None = None

    @property
    def aids(self) -> dict[str, Tensor]:
        """What training subtracts beside the divergences, by name."""
        both = {"guidance": self.guidance, "off_centre": self.off_centre}
        return {name: term for name, term in both.items() if term is not None}

    @property
    def value(self) -> Tensor:
        """The evidence lower bound, with shape (B,)."""
        return self.log_likelihood - _total(self.kl, self.log_likelihood)

    def objective(self, beta: float | Mapping[str, float] = 1.0) -> Tensor:
        """What training maximises, with shape (B,): the bound where beta is 1 and no term differs.

        Arguments:
            beta: The weight of all divergences, or of each by its name.

        References:
            beta-VAE: learning basic visual concepts (Higgins et al., 2017), eq. 4.
        """
        weights = beta if isinstance(beta, Mapping) else dict.fromkeys(self.optimised_kl, beta)
        weighted = {name: weights[name] * kl for name, kl in self.optimised_kl.items()}
        return self.log_likelihood - _total(weighted | self.aids, self.log_likelihood)


def _total(terms: dict[str, Tensor], like: Tensor) -> Tensor:
    return sum(terms.values(), start=like.new_zeros(()))
