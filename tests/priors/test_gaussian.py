import math

import pytest
import torch
from torch.distributions import Normal as TorchNormal
from torch.distributions import kl_divergence
from torch.testing import assert_close

from svae.noise import Noise
from svae.priors import Gaussian, GaussianAngle, GaussianShift

DOUBLE = torch.float64


def test_kl_is_that_of_torch():
    prior = Gaussian(3, std=0.7)
    q = prior.family(torch.randn(8, 6, dtype=DOUBLE))
    expected = kl_divergence(TorchNormal(q.loc, q.scale), TorchNormal(0.0, 0.7)).sum(-1)
    assert_close(prior.kl(q), expected)
    assert_close(prior.optimised_kl(q), expected)


def test_kl_is_the_expectation_of_the_log_ratio():
    prior = GaussianAngle(45.0)
    q = prior.family(torch.tensor([[0.6, -0.8]], dtype=DOUBLE))
    x = q.rsample(200_000, Noise(0, 0, torch.arange(1)), "x")
    ratio = q.log_prob(x) - prior.log_prob(x)
    assert_close(prior.kl(q), ratio.mean(0), atol=4 * ratio.std().item() / 447, rtol=0)


@pytest.mark.parametrize(
    "prior", [Gaussian(4), GaussianAngle(22.5), GaussianShift(1.4, (1, 28, 28))]
)
def test_network_outputs_of_zero_are_the_prior(prior):
    q = prior.family(torch.zeros(2, prior.num_params, dtype=DOUBLE))
    assert_close(prior.kl(q), torch.zeros(2, dtype=DOUBLE))
    value = q.loc + 0.3
    assert_close(prior.log_prob(value), q.log_prob(value))


def test_widths_are_in_degrees_and_pixels():
    assert GaussianAngle(45.0).std == pytest.approx(math.pi / 4)
    # The code that was published divides 1.4 px by 13.5 px at 28 pixels.
    assert GaussianShift(1.4, (1, 28, 28)).std == pytest.approx(1.4 / 13.5)


def test_content_of_length_zero_has_no_divergence():
    prior = Gaussian(0)
    q = prior.family(torch.zeros(5, 0))
    assert prior.kl(q).tolist() == [0] * 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(-1), "dims"),
        (lambda: Gaussian(2, std=0), "std"),
        (lambda: GaussianAngle(-45.0), "std_deg"),
        (lambda: GaussianShift(float("nan"), (1, 28, 28)), "std_px"),
        (lambda: GaussianShift(1.4, (28, 28)), "image_shape"),
    ],
)
def test_values_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("count", "tolerance"), [(8, 0.05), (16, 0.022)])
def test_lattice_of_angles_has_the_prior_as_its_marginal(count, tolerance):
    prior = GaussianAngle(45.0)
    points = (torch.arange(count, dtype=DOUBLE) / count * 2 - 1) * math.pi
    log_weights, around = prior.on_lattice(points)
    assert_close(log_weights.logsumexp(0), torch.tensor(0.0, dtype=DOUBLE))
    angles = torch.linspace(-1.5, 1.5, 61, dtype=DOUBLE)
    marginal = (log_weights + around.log_prob(angles[:, None] - points)).logsumexp(1)
    assert_close(marginal.exp(), prior.log_prob(angles).exp(), rtol=tolerance, atol=0)


def test_a_lattice_may_count_its_angles_from_zero():
    """The published offsets run from 0 to 2 pi."""
    points = torch.arange(8, dtype=DOUBLE) / 8 * 2 * math.pi
    log_weights, _ = GaussianAngle(45.0).on_lattice(points)
    assert_close(log_weights[1:4], log_weights[5:].flip(0))
    assert log_weights.argmax() == 0


def test_around_a_point_the_posterior_at_the_point_has_no_divergence():
    points = torch.tensor([-1.0, 0.0, 1.0], dtype=DOUBLE)
    _, around = GaussianAngle(90.0).on_lattice(points)
    q = around.family(torch.zeros(2, 3, 2, dtype=DOUBLE))
    assert_close(around.kl(q), torch.zeros(2, 3, dtype=DOUBLE))
    assert_close(around.family(torch.zeros(2, 3, 2, dtype=DOUBLE), points).mode[0], points)


def test_lattice_of_shifts_weighs_by_density():
    prior = GaussianShift(2.0, (1, 11, 11))
    points = torch.tensor([[0.0, 0.0], [0.4, 0.0], [0.0, -0.4]], dtype=DOUBLE)
    log_weights, around = prior.on_lattice(points)
    assert around is None
    assert_close(log_weights.exp().sum(), torch.tensor(1.0, dtype=DOUBLE))
    # One standard deviation away, along either axis.
    expected = torch.tensor([0.5, 0.5], dtype=DOUBLE)
    assert_close(log_weights[0] - log_weights[1:], expected)
