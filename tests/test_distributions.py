import math

import pytest
import torch
from torch.testing import assert_close

from svae.distributions import Normal, WrappedNormal
from svae.noise import Noise

DOUBLE = torch.float64


def test_normal_density_is_that_of_torch():
    loc, log_scale = torch.randn(4, 3, dtype=DOUBLE), torch.randn(4, 3, dtype=DOUBLE)
    value = torch.randn(5, 4, 3, dtype=DOUBLE)
    expected = torch.distributions.Normal(loc, log_scale.exp()).log_prob(value)
    assert_close(Normal(loc, log_scale).log_prob(value), expected)
    assert_close(Normal(loc, log_scale, event_dims=1).log_prob(value), expected.sum(-1))


def test_samples_have_the_moments_and_pass_gradients():
    loc = torch.tensor([1.0, -2.0], dtype=DOUBLE, requires_grad=True)
    log_scale = torch.tensor([0.5, -1.0], dtype=DOUBLE, requires_grad=True)
    samples = Normal(loc, log_scale).rsample(40_000, Noise(0, 0, torch.arange(2)), "x")
    assert samples.shape == (40_000, 2)
    assert_close(samples.mean(0), loc, atol=0.04, rtol=0)
    assert_close(samples.std(0), log_scale.exp(), rtol=0.02, atol=0)
    samples.sum().backward()
    assert_close(loc.grad, torch.full((2,), 40_000.0, dtype=DOUBLE))
    assert torch.isfinite(log_scale.grad).all()


@pytest.mark.parametrize("std", [0.01, 0.2, 0.5, 1.0, 2.0, 3.9, 10.0])
def test_wrapped_density_integrates_to_one_and_repeats(std):
    angles = (torch.arange(20_000, dtype=DOUBLE) / 20_000 * 2 - 1) * math.pi
    q = WrappedNormal(torch.tensor(2.5, dtype=DOUBLE), torch.tensor(math.log(std), dtype=DOUBLE))
    density = q.log_prob(angles).exp()
    assert_close(density.mean() * 2 * math.pi, torch.tensor(1.0, dtype=DOUBLE))
    assert_close(q.log_prob(angles), q.log_prob(angles + 6 * math.pi), atol=1e-8, rtol=1e-8)


def test_wrapped_density_is_the_sum_over_turns():
    q = WrappedNormal(torch.tensor(0.3, dtype=DOUBLE), torch.tensor(math.log(1.3), dtype=DOUBLE))
    value = torch.tensor(-2.0, dtype=DOUBLE)
    turns = 2 * math.pi * torch.arange(-20, 21, dtype=DOUBLE)
    expected = torch.distributions.Normal(q.loc, q.scale).log_prob(value + turns).logsumexp(0)
    assert_close(q.log_prob(value), expected)


@pytest.mark.parametrize("std", [0.05, 0.3, 0.49, 0.51, 1.0, 1.7, 3.0, 6.0])
def test_wrapped_entropy_is_that_of_quadrature(std):
    q = WrappedNormal(torch.tensor([0.7], dtype=DOUBLE), torch.tensor([std], dtype=DOUBLE).log())
    angles = (torch.arange(40_000, dtype=DOUBLE) / 40_000 * 2 - 1) * math.pi
    log_density = q.log_prob(angles)
    expected = -(log_density.exp() * log_density).mean() * 2 * math.pi
    assert_close(q.entropy()[0], expected, atol=2e-7, rtol=0)
    assert q.entropy() <= math.log(2 * math.pi) + 1e-9


def test_the_wrapped_entropy_of_nan_is_nan():
    q = WrappedNormal(torch.zeros(3), torch.tensor([float("nan"), 0.0, float("inf")]))
    assert q.entropy().isnan().tolist() == [True, False, False]


def test_wrapped_entropy_has_finite_gradients_everywhere():
    log_scale = torch.linspace(-12, 6, 50, requires_grad=True)
    WrappedNormal(torch.zeros(50), log_scale).entropy().sum().backward()
    assert torch.isfinite(log_scale.grad).all()
    assert (log_scale.grad > -1e-4).all()
