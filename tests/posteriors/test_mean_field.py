import pytest
import torch
from torch.testing import assert_close

from svae.geometry import wrap_angle
from svae.noise import Noise
from svae.posteriors import MeanField
from svae.priors import (
    Gaussian,
    GaussianAngle,
    GaussianLogScale,
    GaussianShift,
    UniformAngle,
    VonMisesAngle,
)

PRIORS = {
    "z": Gaussian(3),
    "theta": GaussianAngle(45.0),
    "shift": GaussianShift(2.0, (1, 9, 9)),
    "scale": GaussianLogScale(0.3),
}
NOISE = Noise(0, 0, torch.arange(6))


def posterior_of(priors):
    head = MeanField(5, priors)
    return head(head.params(torch.randn(6, 5)))


def test_shapes_and_weights():
    latents, weights = posterior_of(PRIORS).rsample(4, NOISE)
    assert latents.z.shape == (4, 6, 3)
    assert latents.theta.shape == (4, 6)
    assert latents.shift.shape == (4, 6, 2)
    assert latents.log_scale.shape == (4, 6)
    assert_close(weights.sum(0), torch.ones(6))


def test_divergence_is_the_expectation_of_the_log_ratio():
    angles = [PRIORS["theta"], UniformAngle(), VonMisesAngle(), VonMisesAngle(45.0)]
    for priors in (PRIORS | {"theta": angle} for angle in angles):
        q = posterior_of(priors)
        latents, weights = q.rsample(20_000, NOISE)
        values = latents.values()
        log_prior = sum(prior.log_prob(values[k]) for k, prior in priors.items())
        assert_close(q.log_prior(latents, priors), log_prior)
        ratio = q.log_prob(latents) - log_prior
        expected = (weights * ratio).sum(0)
        total = torch.stack(list(q.kl(priors).values())).sum(0)
        assert_close(total, expected, atol=5 * ratio.std().item() / 20_000**0.5, rtol=0)


def test_a_variable_that_is_not_inferred_is_zero():
    """Equation 5: no term, no noise."""
    priors = {"z": PRIORS["z"], "shift": PRIORS["shift"]}
    q = posterior_of(priors)
    latents, _ = q.rsample(2, NOISE)
    assert not latents.theta.any()
    assert not latents.log_scale.any()
    assert latents.shift.all()
    assert not q.uncertainty().theta.any()
    assert not q.uncertainty().log_scale.any()
    assert set(q.kl(priors)) == {"z", "shift"}


def test_mode_and_uncertainty_are_those_of_the_factors():
    q = posterior_of(PRIORS)
    latents, _ = q.rsample(50_000, NOISE)
    assert_close(latents.theta.mean(0), q.mode().theta, atol=0.03, rtol=0)
    assert_close(latents.shift.std(0), q.uncertainty().shift, rtol=0.03, atol=0)
    assert_close(latents.log_scale.mean(0), q.mode().log_scale, atol=0.01, rtol=0)
    assert_close(latents.log_scale.std(0), q.uncertainty().log_scale, rtol=0.03, atol=0)


def test_a_turned_posterior_is_that_of_the_turned_image():
    q, angle = posterior_of(PRIORS), torch.linspace(-3, 3, 6)
    turned = q.turned(angle)
    latents, _ = q.rsample(50_000, NOISE)
    moved = latents.turned(angle)
    samples, _ = turned.rsample(50_000, NOISE)
    assert_close(samples.shift, moved.shift)
    assert torch.equal(samples.log_scale, latents.log_scale)
    assert torch.equal(turned.uncertainty().log_scale, q.uncertainty().log_scale)
    assert_close(wrap_angle(samples.theta - moved.theta), torch.zeros(50_000, 6))
    assert_close(turned.mode().shift, q.mode().turned(angle).shift)
    assert_close(turned.uncertainty().shift, samples.shift.std(0), rtol=0.03, atol=0)
    assert_close(turned.uncertainty().theta, q.uncertainty().theta)
    # Densities move along; a full turn of the angle is the density's on the line.
    same = turned.log_prob(samples)
    assert_close(same, q.log_prob(latents), atol=1e-3, rtol=1e-4)


def test_turning_changes_the_angles_divergence_alone():
    q, angle = posterior_of(PRIORS), torch.full((6,), 0.7)
    before, after = q.kl(PRIORS), q.turned(angle).kl(PRIORS)
    assert torch.equal(after["z"], before["z"])
    assert torch.equal(after["shift"], before["shift"])
    assert torch.equal(after["scale"], before["scale"])
    mean = q.mode().theta
    grown = ((mean + 0.7) ** 2 - mean**2) / (2 * PRIORS["theta"].std ** 2)
    assert_close(after["theta"] - before["theta"], grown, atol=1e-5, rtol=1e-5)
    # The expectation of the log-ratio, sample by sample in the image's own axes.
    turned = q.turned(angle)
    latents, _ = turned.rsample(40_000, NOISE)
    log_prior = turned.log_prior(latents, PRIORS)
    ratio = turned.log_prob(latents) - log_prior
    total = torch.stack(list(after.values())).sum(0)
    assert_close(total, ratio.mean(0), atol=5 * ratio.std().item() / 200, rtol=0)


def test_the_head_ignores_autocast():
    head, features = MeanField(5, PRIORS), torch.randn(6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head.params(features)
    assert torch.equal(rounded, head.params(features))


def test_content_is_required():
    with pytest.raises(ValueError, match="priors"):
        MeanField(5, {"theta": GaussianAngle(45.0)})
