import math

import pytest
import torch
from torch.testing import assert_close

from svae.noise import Noise
from svae.priors import GaussianAngle, UniformAngle

DOUBLE = torch.float64


def posterior(prior, loc, std):
    q = prior.family(torch.zeros(1, 2, dtype=DOUBLE))
    q.loc, q.log_scale = torch.tensor([loc], dtype=DOUBLE), torch.tensor([std], dtype=DOUBLE).log()
    return q


def test_the_optimised_term_is_equation_3():
    prior, std = UniformAngle(180.0), 0.4
    expected = -math.log(std) + math.log(math.pi) + std**2 / (2 * math.pi**2) - 0.5
    for loc in (0.0, 1.0, -2.5):
        assert prior.optimised_kl(posterior(prior, loc, std)).item() == pytest.approx(expected)


def test_equation_3_is_larger_than_the_divergence_by_a_known_constant():
    prior = UniformAngle(180.0)
    q = posterior(prior, 0.5, 0.01)
    difference = prior.optimised_kl(q) - prior.kl(q)
    assert difference.item() == pytest.approx(0.5 * math.log(math.pi / 2), abs=1e-4)


@pytest.mark.parametrize("std", [0.1, 0.8, 2.0])
def test_the_reported_divergence_is_the_expectation_of_the_log_ratio(std):
    prior = UniformAngle()
    q = posterior(prior, 2.0, std)
    x = q.rsample(100_000, Noise(0, 0, torch.arange(1)), "x")
    ratio = q.log_prob(x) - prior.log_prob(x)
    assert_close(prior.kl(q), ratio.mean(0), atol=5 * ratio.std().item() / 316 + 1e-6, rtol=0)


def test_a_posterior_all_around_the_circle_has_no_divergence():
    prior = UniformAngle()
    assert prior.kl(posterior(prior, 1.0, 20.0)).item() == pytest.approx(0, abs=1e-6)


def test_the_density_is_that_of_the_circle():
    value = torch.randn(7, dtype=DOUBLE)
    expected = torch.full_like(value, -math.log(2 * math.pi))
    assert_close(UniformAngle().log_prob(value), expected)


def test_a_posterior_starts_as_wide_as_asked_and_may_go_around_the_circle():
    prior = UniformAngle(start_deg=17.0)
    start = math.radians(17.0)
    q = prior.family(torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 99.0]], dtype=DOUBLE))
    assert_close(q.loc[:2], torch.tensor([0.0, start], dtype=DOUBLE))
    assert_close(q.log_scale[:2].exp(), torch.tensor([start, start * math.e], dtype=DOUBLE))
    assert q.log_scale[2].exp().item() == pytest.approx(10 * math.pi)
    assert prior.kl(q)[2].item() == pytest.approx(0, abs=1e-6)
    # As in the published code where nothing is said.
    untrained = UniformAngle().family(torch.zeros(1, 2, dtype=DOUBLE))
    assert untrained.log_scale.exp().item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="start_deg"):
        UniformAngle(start_deg=0.0)


def test_a_posterior_on_the_line_is_refused():
    q = GaussianAngle(45.0).family(torch.zeros(1, 2))
    with pytest.raises(TypeError, match="WrappedNormal"):
        UniformAngle().kl(q)


def test_lattice_is_uniform_around_the_circle():
    points = (torch.arange(8, dtype=DOUBLE) / 8 * 2 - 1) * math.pi
    log_weights, around = UniformAngle().on_lattice(points)
    angles = torch.linspace(-math.pi, math.pi, 50, dtype=DOUBLE)
    marginal = (log_weights + around.log_prob(angles[:, None] - points)).exp().sum(1)
    assert_close(marginal, torch.full_like(marginal, 1 / (2 * math.pi)), rtol=0.015, atol=0)


@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_a_lattice_is_flat_to_what_is_said(count):
    """However many angles there are, and however they are turned."""
    for turn in (0.0, 0.37):
        points = torch.arange(count, dtype=DOUBLE) / count * 2 * math.pi + turn
        log_weights, around = UniformAngle().on_lattice(points)
        assert_close(log_weights.exp(), torch.full((count,), 1 / count, dtype=DOUBLE))
        angles = torch.linspace(-math.pi, math.pi, 301, dtype=DOUBLE)
        marginal = (log_weights + around.log_prob(angles[:, None] - points)).exp().sum(1)
        ripple = (marginal * 2 * math.pi - 1).abs().max().item()
        # The first term of the Poisson sum.
        assert ripple == pytest.approx(2 * math.exp(-(math.pi**2) / 2), rel=0.01)
        assert ripple < 0.015


def test_a_deviation_on_a_lattice_is_trained_with_its_divergence():
    _, around = UniformAngle().on_lattice(torch.zeros(4, dtype=DOUBLE))
    assert UniformAngle().replaces_kl
    assert not around.replaces_kl
