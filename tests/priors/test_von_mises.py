import math

import pytest
import torch
from torch.testing import assert_close

from svae.priors import GaussianAngle, VonMisesAngle
from svae.von_mises import VonMises

DOUBLE = torch.float64
CIRCLE = torch.arange(720, dtype=DOUBLE) / 720 * 2 * math.pi - math.pi


def marginal_of(prior, points):
    """The density that a lattice has at every degree and half of the circle, with shape (720,)."""
    log_weights, around = prior.on_lattice(points)
    assert_close(log_weights.exp().sum(), torch.tensor(1.0, dtype=DOUBLE))
    return (log_weights + around.log_prob(CIRCLE[:, None] - points)).logsumexp(1).exp()


def test_without_a_width_every_angle_is_as_likely():
    prior = VonMisesAngle()
    expected = torch.full_like(CIRCLE, -math.log(2 * math.pi))
    assert_close(prior.log_prob(CIRCLE), expected)
    assert not prior.replaces_kl


@pytest.mark.parametrize("std_deg", [5.0, 45.0, 120.0])
def test_the_spread_is_that_of_a_normal_angle(std_deg):
    density = VonMisesAngle(std_deg).log_prob(CIRCLE).exp()
    resultant = (density * CIRCLE.cos()).mean() * 2 * math.pi
    assert resultant.item() == pytest.approx(math.exp(-(GaussianAngle(std_deg).std ** 2) / 2))


def test_network_outputs_of_zero_are_the_prior():
    prior = VonMisesAngle(30.0)
    q = prior.family(torch.zeros(2, 2, dtype=DOUBLE))
    assert_close(prior.kl(q), torch.zeros(2, dtype=DOUBLE), atol=1e-12, rtol=0)
    assert_close(q.log_prob(CIRCLE[:2]), prior.log_prob(CIRCLE[:2]))


def test_direction_and_certainty_are_those_of_a_vector():
    """All of the circle, without a jump where it goes around."""
    prior = VonMisesAngle()
    angles = torch.tensor([0.0, 1.0, 3.1, -3.1], dtype=DOUBLE)
    params = 4 * torch.stack((angles.cos(), angles.sin()), -1)
    params = params - torch.tensor([prior.start, 0.0], dtype=DOUBLE)
    q = prior.family(params)
    assert_close(q.mode, angles)
    assert_close(q.kappa, torch.full((4,), math.exp(4) - 1, dtype=DOUBLE))
    assert_close(prior.family(params, 0.5).mode, angles + 0.5)
    assert (params[2] - params[3]).norm() < 0.4


def test_a_uniform_posterior_has_a_gradient_towards_every_direction():
    prior = VonMisesAngle()
    params = torch.tensor([[1e-3 - prior.start, 0.0]], dtype=DOUBLE, requires_grad=True)
    q = prior.family(params)
    # The expectation of cos(theta - 1) by quadrature.
    at = CIRCLE.unsqueeze(1)
    mean = (q.log_prob(at).exp() * torch.cos(at - 1)).mean() * 2 * math.pi
    (slope,) = torch.autograd.grad(mean, params)
    assert_close(
        slope[0], 0.5 * torch.tensor([math.cos(1), math.sin(1)], dtype=DOUBLE), rtol=1e-2, atol=0
    )


@pytest.mark.parametrize("vector", [(0.0, 0.0), (1e-9, 0.0), (-200.0, 3.0), (1e4, 1e4)])
def test_whatever_a_network_says_is_a_posterior(vector):
    for prior in (VonMisesAngle(), VonMisesAngle(45.0)):
        params = torch.tensor([vector]) - torch.tensor([prior.start, 0.0])
        q = prior.family(params.requires_grad_())
        (prior.kl(q) + q.log_prob(q.mode.detach() + 0.1) + q.mode).sum().backward()
        assert torch.isfinite(prior.kl(q))
        assert torch.isfinite(params.grad).all()


@pytest.mark.parametrize("length", [30.0, 100.0])
def test_a_vector_that_has_run_away_is_called_back(length):
    prior = VonMisesAngle()
    params = torch.tensor([length - prior.start, 0.0], dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(prior.kl(prior.family(params)), params)
    assert_close(slope, torch.tensor([0.5, 0.0], dtype=DOUBLE), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("count", "ripple"), [(2, 0.09), (4, 0.065), (8, 0.025), (16, 0.017)])
def test_a_lattice_of_the_uniform_prior_is_flat_to_what_is_said(count, ripple):
    points = torch.arange(count, dtype=DOUBLE) / count * 2 * math.pi + 0.37
    excess = (marginal_of(VonMisesAngle(), points) * 2 * math.pi - 1).abs().max()
    assert 0.6 * ripple < excess < ripple


@pytest.mark.parametrize("std_deg", [10.0, 45.0, 90.0])
@pytest.mark.parametrize("count", [4, 16])
def test_a_lattice_has_the_spread_of_the_prior(std_deg, count):
    points = torch.arange(count, dtype=DOUBLE) / count * 2 * math.pi
    found = (marginal_of(VonMisesAngle(std_deg), points) * CIRCLE.cos()).mean() * 2 * math.pi
    assert found.item() == pytest.approx(math.exp(-(math.radians(std_deg) ** 2) / 2), rel=1e-6)


def test_deviations_are_von_mises_around_their_points():
    _, around = VonMisesAngle().on_lattice(torch.zeros(2, dtype=DOUBLE))
    q = around.family(torch.zeros(2, 2, dtype=DOUBLE))
    assert_close(around.kl(q), torch.zeros(2, dtype=DOUBLE), atol=1e-12, rtol=0)
    _, around = VonMisesAngle().on_lattice(torch.zeros(8, dtype=DOUBLE))
    q = around.family(torch.zeros(8, 2, dtype=DOUBLE), torch.arange(8.0, dtype=DOUBLE))
    assert isinstance(q, VonMises)
    assert_close(q.mode, torch.arange(8.0, dtype=DOUBLE))
    assert_close(q.stddev, torch.full((8,), math.pi / 8, dtype=DOUBLE))


def test_a_width_must_be_positive():
    with pytest.raises(ValueError, match="std_deg"):
        VonMisesAngle(0.0)
