"""A model tried on two images before it is trained: do its parts give what is asked of them?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from svae.ctf import CTF
from svae.datasets.base import Batch
from svae.errors import one_line
from svae.model import SpatialVAE
from svae.noise import Noise
from svae.priors import Prior

__all__ = ["try_once"]

#: Not as many as there are images, so that no axis is taken for another.
_SAMPLES = 3

#: What a posterior asks of a distribution (`svae.distributions.Distribution`).
_OF_A_DISTRIBUTION = ("mode", "stddev", "rsample", "log_prob", "distance")


def try_once(model: SpatialVAE, batch: Batch) -> None:
    """Have a model infer and score a few images, in evaluation mode, and leave it as it was.

    A part of one's own whose numbers have another shape would end the training in the middle of
    an epoch, or train something else without a word.

    Arguments:
        model: The model, on a processor.
        batch: A few images with all that is known of them.

    Raises:
        ValueError: A part gives something else than is asked of it; the message names it.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _evaluating(model):
        image, noise = batch["image"], Noise(0, "trial", batch["index"])
        for name, prior in model.priors.items():
            _try_prior(name, prior, noise, model.z_dim)
        _try_likelihood(model, image)
        _try_encoder(model.encoder, image)
        _try_bounds(model, image, noise, CTF.of(batch))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module is in the mode that it was in."""
    trained = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in trained.items():
            module.training = training


def _try_prior(name: str, prior: Prior, noise: Noise, z_dim: int) -> None:
    where = f"prior.{name}: {type(prior).__name__}"
    count = len(noise.index)
    value = {"z": (z_dim,), "shift": (2,)}.get(name, ())
    params = torch.zeros(count, prior.num_params)
    q: Any = _asked(f"{where}.family", lambda: prior.family(params))
    if missing := [method for method in _OF_A_DISTRIBUTION if not hasattr(q, method)]:
        raise ValueError(
            f"{where}.family gave {type(q).__name__} without {', '.join(missing)}; expected a "
            "Distribution of svae.distributions"
        )
    _shaped(f"{where}.family(...).mode", lambda: q.mode, count, *value)
    _shaped(f"{where}.family(...).stddev", lambda: q.stddev, count, *value)
    samples = _shaped(
        f"{where}.family(...).rsample",
        lambda: q.rsample(_SAMPLES, noise, name),
        *(_SAMPLES, count, *value),
    )
    _shaped(f"{where}.log_prob", lambda: prior.log_prob(samples), _SAMPLES, count)
    _shaped(f"{where}.kl", lambda: prior.kl(q), count)


def _try_likelihood(model: SpatialVAE, image: Tensor) -> None:
    likelihood = model.likelihood
    where = f"model.likelihood: {type(likelihood).__name__}"
    scored = _asked(f"{where}.scored_pixels", lambda: likelihood.scored_pixels)
    target = image.flatten(2).mT[:, scored]
    params = torch.zeros(*target.shape[:2], likelihood.out_features)
    _shaped(f"{where}.mean", lambda: likelihood.mean(params), *target.shape)
    _shaped(f"{where}.stddev", lambda: likelihood.stddev(params), *target.shape)
    _shaped(f"{where}.log_prob", lambda: likelihood.log_prob(params, target), *target.shape[:2])


def _try_encoder(encoder: Any, image: Tensor) -> None:
    where = f"model.encoder: {type(encoder).__name__} with out_features {encoder.out_features}"
    lattice = getattr(encoder, "lattice", None)
    if lattice is None:
        _shaped(where, lambda: encoder(image), len(image), encoder.out_features)
        return
    # Where features lie on the lattice is the posterior's to know.
    features = _asked(where, lambda: encoder(image))
    found = tuple(features.shape)
    if (found[0], found[-1]) != (len(image), encoder.out_features):
        raise ValueError(
            f"{where} gave {found}; expected ({len(image)}, ..., {encoder.out_features})"
        )


def _try_bounds(model: SpatialVAE, image: Tensor, noise: Noise, ctf: CTF | None) -> None:
    where, count = f"model.posterior: {type(model.posterior).__name__}", len(image)
    q = _asked(where, lambda: model.infer(image, 1, ctf=ctf))
    pixels = model.pixels_per_image
    elbo = _asked(where, lambda: model.elbo(image, noise, q=q, pixels=pixels, ctf=ctf))
    _shaped("model: log_likelihood", lambda: elbo.log_likelihood, count)
    for name in elbo.kl:
        _shaped(f"{where}.kl of {name}", partial(elbo.kl.get, name), count)
    _shaped(
        f"{where}.log_prob, in importance_log_weights,",
        lambda: model.importance_log_weights(image, noise, 1, q, ctf=ctf),
        *(1, count),  # of one sample, because it decodes whole images
    )


def _asked(what: str, ask: Callable[[], Any]) -> Any:
    """What a part gives; whatever it raises instead, as a ValueError that names it."""
    try:
        return ask()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"{what} raised {type(error).__name__}: {one_line(error)}") from error


def _shaped(what: str, ask: Callable[[], Any], *expected: int) -> Tensor:
    """The tensor that a part gives, if it has the shape that is expected."""
    given = _asked(what, ask)
    if not isinstance(given, Tensor) or given.shape != expected:
        found = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"{what} gave {found}; expected {expected}")
    return given
