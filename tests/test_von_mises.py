"""The von Mises distribution against quadrature, scipy and finite differences."""

import math

import pytest
import torch
from scipy.stats import kstest, vonmises
from torch.testing import assert_close

from svae.noise import Noise
from svae.von_mises import (
    VonMises,
    concentration_of,
    excess_resultant,
    log_scaled_i0,
    quantile,
)

DOUBLE = torch.float64
KAPPAS = [0.0, 1e-6, 0.01, 0.7, 3.0, 20.0, 49.9, 50.1, 1e3, 1e6]


def von_mises(kappa, loc=0.0):
    kappa = torch.as_tensor(kappa, dtype=DOUBLE)
    return VonMises(torch.as_tensor(loc, dtype=DOUBLE).expand_as(kappa), kappa)


def circle(kappa, count=100_001):
    """Angles wherever the density is, so near each other that a sum is an integral."""
    width = min(math.pi, 12 / math.sqrt(kappa)) if kappa else math.pi
    return torch.linspace(-width, width, count, dtype=DOUBLE)


def integral(value, at):
    return torch.trapezoid(value, at, dim=0)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_the_density_is_scipy_s_and_integrates_to_one(kappa):
    at = circle(kappa)
    q = von_mises([kappa], 0.4)
    log_prob = q.log_prob(at.unsqueeze(1) + 0.4).squeeze(1)
    assert_close(integral(log_prob.exp(), at), torch.tensor(1.0, dtype=DOUBLE), atol=1e-9, rtol=0)
    if kappa:
        expected = torch.from_numpy(vonmises(kappa, loc=0.4).logpdf(at[::999].numpy() + 0.4))
        assert_close(log_prob[::999], expected, atol=1e-8, rtol=1e-8)
    assert_close(
        q.log_prob(at[:9, None] + 0.4 + 4 * math.pi), log_prob[:9, None], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kappa", KAPPAS)
def test_resultant_and_standard_deviation_are_those_of_quadrature(kappa):
    at = circle(kappa)
    q = von_mises([kappa])
    density = q.log_prob(at.unsqueeze(1)).squeeze(1).exp()
    excess = integral(density * 2 * torch.sin(at / 2) ** 2, at)
    assert_close(excess_resultant(q.kappa)[0], excess, atol=0, rtol=1e-7)
    if kappa > 1e-3:
        assert_close(q.stddev[0], torch.sqrt(-2 * torch.log1p(-excess)), atol=0, rtol=1e-7)


def test_bessel_functions_and_series_meet_and_have_the_right_derivatives():
    for function in (log_scaled_i0, excess_resultant):
        below, above = (function(torch.tensor(k, dtype=DOUBLE)) for k in (50 - 1e-9, 50 + 1e-9))
        assert_close(below, above, atol=1e-10, rtol=0)
        for kappa in (1e-3, 1.0, 49.0, 51.0, 1e6):
            k = torch.tensor(kappa, dtype=DOUBLE, requires_grad=True)
            (slope,) = torch.autograd.grad(function(k), k)
            h = 1e-4 * kappa
            with torch.no_grad():
                expected = (function(k + h) - function(k - h)) / (2 * h)
            assert_close(slope, expected, atol=0, rtol=1e-5)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_quantiles_have_the_mass_that_was_asked_for(kappa):
    u = torch.tensor([1e-9, 1e-3, 0.2, 0.5, 0.77, 1 - 1e-6], dtype=DOUBLE)
    theta = quantile(u, torch.tensor(kappa, dtype=DOUBLE))
    assert theta.abs().max() <= math.pi
    q = von_mises([kappa])
    for mass, end in zip(u, theta, strict=True):
        at = torch.linspace(0, 1, 100_001, dtype=DOUBLE) * end
        found = 0.5 + integral(q.log_prob(at.unsqueeze(1)).squeeze(1).exp(), at)
        assert_close(found, mass, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kappa", [k for k in KAPPAS if k > 1e-4])
def test_samples_follow_the_concentration_as_finite_differences_say(kappa):
    u = torch.linspace(1e-5, 1 - 1e-5, 501, dtype=DOUBLE)
    k = torch.tensor(kappa, dtype=DOUBLE, requires_grad=True)
    theta = quantile(u, k)
    slope = torch.stack([torch.autograd.grad(t, k, retain_graph=True)[0] for t in theta[::25]])
    h = 1e-4 * kappa
    with torch.no_grad():
        expected = (quantile(u, k + h) - quantile(u, k - h))[::25] / (2 * h)
    assert_close(slope, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("kappa", [0.3, 5.0, 300.0])
def test_the_gradient_of_an_expectation_is_that_of_quadrature(kappa):
    """Of something that is not symmetric, by the mean, with respect to direction and width."""

    def something(theta):
        return torch.sin(theta + 0.3) + 0.5 * torch.cos(2 * theta)

    loc = torch.full((1,), 0.8, dtype=DOUBLE, requires_grad=True)
    concentration = torch.full((1,), kappa, dtype=DOUBLE, requires_grad=True)
    # Equally spaced masses in the place of random ones: no noise is left.
    u = ((torch.arange(20_000, dtype=DOUBLE) + 0.5) / 20_000).unsqueeze(1)
    q = VonMises(loc, concentration)
    mean = something(loc + quantile(u, q.kappa)).mean()
    found = torch.autograd.grad(mean, (loc, concentration))
    at = circle(kappa).unsqueeze(1) + 0.8
    density = VonMises(loc, concentration).log_prob(at).exp()
    exact = integral(something(at) * density, at.detach().squeeze(1).unsqueeze(1)).sum()
    expected = torch.autograd.grad(exact, (loc, concentration))
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("kappa", [0.0, 0.5, 8.0, 1e4])
def test_samples_are_von_mises_whatever_the_noise_is_for(kappa):
    samples = von_mises(torch.full((2,), kappa)).rsample(
        2000, Noise(3, 0, torch.arange(2)), "theta"
    )
    assert samples.shape == (2000, 2)
    law = vonmises(kappa).cdf if kappa else lambda x: x / (2 * math.pi) + 0.5
    for column in samples.t():
        assert kstest(column.numpy(), law).pvalue > 1e-3
    assert not torch.equal(samples[:, 0], samples[:, 1])


@pytest.mark.parametrize("kappa", [1e-9, 0.4, 6.0, 60.0, 1e6])
@pytest.mark.parametrize("theirs", [0.0, 1e-5, 2.0, 1e5])
def test_the_divergence_is_that_of_quadrature(kappa, theirs):
    at = circle(kappa).unsqueeze(1) + 0.7
    q, p = von_mises([kappa], 0.7), von_mises([theirs], -0.2)
    log_q = q.log_prob(at)
    expected = integral(log_q.exp() * (log_q - p.log_prob(at)), at)
    assert_close(q.kl(p), expected, atol=1e-7, rtol=1e-6)


def test_a_divergence_from_itself_is_zero_with_gradient_zero():
    for kappa in KAPPAS[1:]:
        concentration = torch.tensor([kappa], dtype=DOUBLE, requires_grad=True)
        loc = torch.tensor([1.0], dtype=DOUBLE, requires_grad=True)
        kl = VonMises(loc, concentration).kl(VonMises(loc.detach(), concentration.detach()))
        assert_close(kl, torch.zeros(1, dtype=DOUBLE), atol=1e-9, rtol=0)
        for slope in torch.autograd.grad(kl, (loc, concentration)):
            assert_close(slope, torch.zeros(1, dtype=DOUBLE), atol=1e-7, rtol=0)


@pytest.mark.parametrize("std", [1e-4, 0.1, 0.785, 2.0, 4.0])
def test_the_concentration_of_a_standard_deviation_has_it(std):
    assert von_mises([concentration_of(std)]).stddev.item() == pytest.approx(std, rel=1e-6)


def test_single_precision_is_finite_at_both_ends():
    kappa = torch.tensor([0.0, 1e-9, 1.0, 1e6, 1e12], requires_grad=True)
    q = VonMises(torch.zeros(5, requires_grad=True), kappa)
    theta = q.rsample(7, Noise(0, 0, torch.arange(5)), "theta")
    assert theta.dtype == torch.float32
    total = theta.sum() + q.kl(VonMises(torch.zeros(5), torch.zeros(5))).sum()
    total = total + q.log_prob(theta).sum()
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(kappa.grad).all()


def test_a_turn_moves_the_mode_and_nothing_else():
    q = von_mises([4.0], 3.0)
    turned = q.turned(torch.tensor([0.5], dtype=DOUBLE))
    assert turned.mode.item() == pytest.approx(3.5 - 2 * math.pi)
    at = torch.tensor([1.0], dtype=DOUBLE)
    assert_close(turned.log_prob(at + 0.5), q.log_prob(at))
    assert_close(turned.stddev, q.stddev)
