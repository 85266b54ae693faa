"""Bounds of trained models beside the evidence, summed over a grid of all latents.

Importance weights have the evidence as their mean, if the densities of prior and posterior are
right and whatever was looked at: several poses, an object a second and a third time.
"""

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import softplus

from svae.encoders import MLP, GroupConv
from svae.generators import CoordinateMLP
from svae.geometry import pixel_size, to_object_frame
from svae.latents import Latents
from svae.likelihoods import Bernoulli
from svae.metrics.bounds import importance_weighted_bound
from svae.model import SpatialVAE
from svae.noise import Noise
from svae.posteriors import Attention, MeanField
from svae.posteriors.sampling import Truncated
from svae.priors import (
    Gaussian,
    GaussianAngle,
    GaussianLogScale,
    GaussianShift,
    UniformAngle,
    VonMisesAngle,
)

SIDE = 8
SHAPE = (1, SIDE, SIDE)
PIXEL = pixel_size(SIDE, SIDE)
COUNT, STEPS, BATCH = 32, 300, 64
mlp = partial(MLP, hidden=64)
lattice = partial(GroupConv, group_order=4, channels=16, kernel_size=6, padding=2, stride=2)
attention = partial(Attention, sampling=Truncated(points=6, explore=2.0), shift_offsets=True)


def make_model(theta, encoder, posterior, infer_scale=False, **options) -> SpatialVAE:
    priors = {
        "z": Gaussian(1),
        "theta": theta,
        "shift": GaussianShift(1.0, SHAPE, 0.1),
        "scale": GaussianLogScale(0.2),
    }
    return SpatialVAE(
        *(SHAPE, 1, priors, encoder, posterior),
        partial(CoordinateMLP, hidden=32),
        Bernoulli,
        infer_scale=infer_scale,
        second_encoder=mlp,
        **options,
    )


def make_images(model, count):
    """Black and white images of a bar and a dot, in poses as the prior has them."""
    prior = model.priors["theta"]
    theta = (torch.rand(count) * 2 - 1) * math.pi
    if type(prior) is GaussianAngle:
        theta = torch.randn(count) * prior.std
    size = torch.randn(count) * 0.2 * ("scale" in model.priors)
    coords = to_object_frame(model.grid, theta, torch.randn(count, 2) * PIXEL, size)
    width = 0.25 + 0.1 * torch.randn(count, 1).tanh()
    x, y = coords.unbind(-1)
    bar = torch.exp(-(((x - 0.15) / 0.3) ** 2 + (y / width) ** 2) / 2)
    dot = torch.exp(-((x + 0.5) ** 2 + (y - 0.3) ** 2) / (2 * 0.15**2))
    light = (bar + 0.5 * dot).clamp(max=1)
    return torch.bernoulli(0.02 + 0.96 * light).view(count, *SHAPE)


def trained(model):
    images = make_images(model, 1024)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(STEPS):
        index = torch.randint(len(images), (BATCH,))
        elbo = model.training_elbo(images[index], Noise(0, step, index), 0)
        optimizer.zero_grad()
        (-elbo.objective().mean()).backward()
        optimizer.step()
    return model.eval(), images[:COUNT]


def middles(count, reach):
    """The middles (count, 1) of equal parts of -reach to reach, and the log of a part's size."""
    values = ((torch.arange(count) + 0.5) / count * 2 - 1) * reach
    return values[:, None], math.log(2 * reach / count)


def log_evidence(model, images):
    """log p(image), with shape (B,), and the logarithm of what the prior sums up to."""
    x, log_step = middles(15, 3.3 * PIXEL)
    base = Latents(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 2))
    axes = {
        "z": middles(17, 3.4),
        "theta": middles(40, math.pi),
        "shift": (torch.cartesian_prod(x[:, 0], x[:, 0]), 2 * log_step),
    }
    if "scale" in model.priors:
        axes["scale"] = middles(5, 0.6)
    q = model.infer(images[:1], 1)

    def log_prior(**values):
        return q.log_prior(Latents.of(base.values() | values), model.priors)

    # The prior has one factor for each variable.
    along = {}
    for name, (values, log_volume) in axes.items():
        values = values if name in ("z", "shift") else values[:, 0]
        alone = torch.cat([log_prior(**{name: value[None]}) for value in values])
        along[name] = (values, alone - log_prior() + log_volume)
    total = torch.full((len(images),), -math.inf)
    weights = [log_weight for _, log_weight in along.values()]
    chosen = torch.cartesian_prod(*(torch.arange(len(one)) for one in weights))
    log_weight = log_prior() + sum(one[i] for one, i in zip(weights, chosen.mT, strict=True))
    matters = log_weight > -16
    for part, log_part in zip(
        chosen[matters].split(20_000), log_weight[matters].split(20_000), strict=True
    ):
        latents = Latents.of(
            {name: along[name][0][i] for name, i in zip(along, part.mT, strict=True)}
        )
        logits = model.generator(to_object_frame(model.grid, *latents.pose), latents.z)[..., 0]
        log_likelihood = images.flatten(1) @ logits.mT - softplus(logits).sum(-1)
        total = torch.logaddexp(total, (log_likelihood + log_part).logsumexp(1))
    return total, log_weight.logsumexp(0)


@pytest.mark.parametrize(
    ("theta", "encoder", "posterior", "options"),
    [
        (GaussianAngle(25.0), mlp, MeanField, {"infer_scale": True, "second_look": True}),
        (UniformAngle(180.0, 17.0), mlp, MeanField, {"second_look": True}),
        (VonMisesAngle(), mlp, MeanField, {"infer_scale": True}),
        (GaussianAngle(45.0), lattice, attention, {"infer_scale": True}),
        (GaussianAngle(45.0), lattice, attention, {"second_look": True}),
        (
            *(UniformAngle(180.0), lattice, partial(attention, correct_weights=False)),
            {"second_look": True, "third_look": True},
        ),
        (VonMisesAngle(), lattice, partial(attention, offsets=False), {"second_look": True}),
    ],
)
def test_importance_weights_have_the_evidence_as_their_mean(theta, encoder, posterior, options):
    torch.manual_seed(0)
    model, images = trained(make_model(theta, encoder, posterior, **options))
    noise = Noise(0, "evidence", torch.arange(COUNT))
    with torch.no_grad():
        evidence, everything = log_evidence(model, images)
        assert everything.item() == pytest.approx(0, abs=0.02)
        for candidates in (1, 4):
            q = model.infer(images, candidates)
            elbo = model.elbo(images, noise, q=q, samples=1000)
            log_weights = model.importance_log_weights(images, noise, 1000, q)
            assert elbo.is_bound
            assert -3 < (elbo.value - evidence).mean() < 0.03
            # Exact divergences beside those of samples, of which the lattice point is summed out.
            more = (log_weights.mean(0) - elbo.value).mean()
            assert -0.02 < more < (1.0 if encoder is lattice else 0.02)
            apart = importance_weighted_bound(log_weights) - evidence
            assert abs(apart.mean()) < 0.05
