r"""Ways of sampling the lattice of an attention posterior.

Training needs gradients of the attention, but to choose a point is no smooth function of it.
What is *reported* always comes from points that were really drawn, so that it is a bound.
"""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from svae.checks import at_least, positive
from svae.geometry import wrap_angle
from svae.latents import Latents
from svae.noise import Noise
from svae.posteriors.attention import AttentionPosterior, gumbel

__all__ = ["Soft", "StraightThrough", "Truncated"]


class Soft:
    r"""The published way: a soft average over the whole lattice.

    .. math:: w = \mathrm{softmax}((\log q + g) / \tau), \quad
              z = \sum w \mu_z + \epsilon \sum w \sigma_z, \quad
              \theta = \sum w \mu_\theta + \epsilon' \sum w \sigma_\theta, \quad
              t = \sum w t, \qquad g \sim \mathrm{Gumbel}

    It averages contents and angles that belong to different poses, angles as if pi and -pi were
    far from each other, and what it gives is no sample of the posterior: what training maximises
    is no bound. Evaluation draws points.

    References:
        Categorical reparameterization with Gumbel-softmax (Jang et al., 2017).

    Arguments:
        temperature: tau.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = positive("temperature", temperature)

    def cuts(self, count: int) -> bool:
        return False

    def reported(self, q: AttentionPosterior) -> AttentionPosterior:
        return q

    def trained(self, q: AttentionPosterior, noise: Noise) -> AttentionPosterior:
        return replace(q, sampler=self._sample, gives_bound=False)

    def _sample(self, q: AttentionPosterior, count: int, noise: Noise) -> tuple[Latents, Tensor]:
        factors = q.at()
        parts = []
        for i in range(count):
            weights = _relaxed(q.log_weights, noise, i, self.temperature)
            values = {}
            for name, factor in factors.items():
                mean, std = _average(weights, factor.mode), _average(weights, factor.stddev)
                standard = noise.normal(f"{name} {i}", *mean.shape[1:]).to(mean)
                values[name] = mean + std * standard
            parts.append(q.latents(values))
        return _stacked(parts)


class StraightThrough:
    r"""A drawn point going forward; the gradient of the soft average coming back.

    The temperature falls exponentially over the first steps: a high one gives gradients to many
    points, a low one gives nearly unbiased but noisy ones.

    References:
        Categorical reparameterization with Gumbel-softmax (Jang et al., 2017), section 2.2.

    Arguments:
        temperature: tau at first.
        final_temperature: tau after `anneal_steps`.
        anneal_steps: The number of training steps over which it falls.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        final_temperature: float = 0.3,
        anneal_steps: int = 5000,
    ) -> None:
        self.temperature = positive("temperature", temperature)
        self.final_temperature = positive("final_temperature", final_temperature)
        self.anneal_steps = at_least("anneal_steps", anneal_steps, 1)

    def temperature_at(self, step: int) -> float:
        """The temperature in a training step."""
        part = min(1.0, step / self.anneal_steps)
        return self.temperature * (self.final_temperature / self.temperature) ** part

    def cuts(self, count: int) -> bool:
        return False

    def reported(self, q: AttentionPosterior) -> AttentionPosterior:
        return q

    def trained(self, q: AttentionPosterior, noise: Noise) -> AttentionPosterior:
        assert isinstance(noise.step, int)
        sampler = partial(self._sample, temperature=self.temperature_at(noise.step))
        return replace(q, sampler=sampler)

    def _sample(
        self, q: AttentionPosterior, count: int, noise: Noise, temperature: float
    ) -> tuple[Latents, Tensor]:
        everywhere = q.at()
        parts = []
        for i in range(count):
            weights = _relaxed(q.log_weights, noise, i, temperature)
            chosen = weights.argmax(1, keepdim=True)
            values = {}
            for name, factor in q.at(chosen).items():
                drawn = factor.rsample(1, noise, f"{name} {i}")[0]  # (B, 1, ...)
                others = everywhere[name].mode.detach() - factor.mode.detach()
                others = wrap_angle(others) if name == "theta" else others
                values[name] = drawn[:, 0] + _gradient_only(_average(weights, others))
            parts.append(q.latents(values))
        return _stacked(parts)


class Truncated:
    r"""The posterior cut to its k most probable points and renormalised, in every respect.

    .. math:: \tilde q(t, r) \propto q(t, r) \; \mathrm{for} \; (t, r) \in S, \quad |S| = k

    What is cut is the posterior itself: the divergences are those of the rest, so that the ELBO
    is a bound for every k, and training sums over the k points exactly: no relaxation, and no
    noise from drawing one. With k as large as the lattice it is enumeration.

    In training the set S is drawn, k points without replacement from q tempered by `explore`, so
    that points below the best are tried. The bound holds for each S, whatever it is.

    Arguments:
        points: k; each costs a training step one run of the generator.
        explore: The scale of the Gumbel noise that the log-probabilities get before the k best
            are taken in training: 0 takes the best, 1 draws from q.
    """

    def __init__(self, points: int = 4, explore: float = 1.0) -> None:
        self.points = at_least("points", points, 1)
        if not 0 <= explore < math.inf:
            raise ValueError(f"explore: expected a number of at least 0, got {explore!r}")
        self.explore = explore

    def cuts(self, count: int) -> bool:
        return self.points < count

    def reported(self, q: AttentionPosterior) -> AttentionPosterior:
        return self._cut(q, q.log_weights)

    def trained(self, q: AttentionPosterior, noise: Noise) -> AttentionPosterior:
        score = q.log_weights + self.explore * gumbel(noise, "explore", q.log_weights)
        return replace(self._cut(q, score), sampler=AttentionPosterior.enumerate)

    def _cut(self, q: AttentionPosterior, score: Tensor) -> AttentionPosterior:
        if self.points >= score.shape[1]:
            return q
        return q.truncated(score.topk(self.points, dim=1).indices)


def _relaxed(log_weights: Tensor, noise: Noise, number: int, temperature: float) -> Tensor:
    """Gumbel-softmax weights, with shape (B, M)."""
    perturbed = log_weights + gumbel(noise, f"point {number}", log_weights)
    return (perturbed / temperature).softmax(1)


def _average(weights: Tensor, value: Tensor) -> Tensor:
    """The average (B, ...) of values (B, M, ...)."""
    # Not as a matrix product: autocast would round angles and positions to bfloat16.
    return (weights.reshape(*weights.shape, *(1,) * (value.ndim - 2)) * value).sum(1)


def _gradient_only(value: Tensor) -> Tensor:
    """Zero, with the gradient of `value`."""
    return value - value.detach()


def _stacked(parts: list[Latents]) -> tuple[Latents, Tensor]:
    """Samples (S, B, ...) of equal weight, from those of each (B, ...)."""
    latents = Latents.stack(parts)
    return latents, torch.full_like(latents.theta, 1 / len(parts))
