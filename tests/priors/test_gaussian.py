import math

import pytest
import torch
from torch.distributions import Normal as TorchNormal
from torch.distributions import kl_divergence
from torch.testing import assert_close

from svae.geometry import wrap_angle
from svae.noise import Noise
from svae.priors import (
    Gaussian,
    GaussianAngle,
    GaussianLogScale,
    GaussianShift,
    TargetVAEAngle,
    UniformAngle,
    VonMisesAngle,
)
from svae.priors.gaussian import AngleFromPoint

DOUBLE = torch.float64
CIRCLE = torch.arange(720, dtype=DOUBLE) / 720 * 2 * math.pi - math.pi


def equal_parts(count):
    """Angles (count,) from zero on, within [-pi, pi)."""
    return wrap_angle(torch.arange(count, dtype=DOUBLE) * 2 * math.pi / count)


def marginal_of(prior, points):
    """The density that a lattice has at every degree and half of the circle, with shape (720,)."""
    log_weights, around = prior.on_lattice(points)
    return (log_weights + around.log_prob(CIRCLE[:, None] - points)).logsumexp(1).exp()


def wrapped_normal(std):
    """The density N(0, std^2) around the circle, with shape (720,)."""
    turns = 2 * math.pi * torch.arange(-9, 10, dtype=DOUBLE)
    return TorchNormal(0.0, std).log_prob(CIRCLE[:, None] + turns).logsumexp(1).exp()


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
    "prior",
    [Gaussian(4), GaussianAngle(22.5), GaussianShift(1.4, (1, 28, 28)), GaussianLogScale(0.2)],
)
def test_network_outputs_of_zero_are_the_prior(prior):
    q = prior.family(torch.zeros(2, prior.num_params, dtype=DOUBLE))
    assert_close(prior.kl(q), torch.zeros(2, dtype=DOUBLE))
    value = q.loc + 0.3
    assert_close(prior.log_prob(value), q.log_prob(value))


@pytest.mark.parametrize(
    "prior",
    [GaussianAngle(180.0), UniformAngle(180.0), VonMisesAngle(180.0), VonMisesAngle(None)],
)
def test_an_angle_is_not_sampled_over_the_whole_circle_at_first(prior):
    """There is no angle to learn from there; the published code begins with a radian too."""
    q = prior.family(torch.zeros(1, 2, dtype=DOUBLE))
    resultant = torch.exp(-(q.stddev.square()) / 2).item()
    assert 0.4 < resultant < 0.7


def test_widths_are_in_degrees_and_pixels():
    assert GaussianAngle(45.0).std == pytest.approx(math.pi / 4)
    # The code that was published divides 1.4 px by 13.5 px at 28 pixels.
    assert GaussianShift(1.4, (1, 28, 28)).std == pytest.approx(1.4 / 13.5)


@pytest.mark.parametrize(
    ("std_px", "fraction", "side", "expected"),
    [(1.4, 0.05, 28, 1.4), (14.0, 0.05, 28, 1.4), (5.0, 0.05, 50, 2.5), (14.0, None, 28, 14.0)],
)
def test_positions_start_narrow_under_a_wide_prior(std_px, fraction, side, expected):
    """Spread over the image, the position of an untrained network hides what there is to learn."""
    prior = GaussianShift(std_px, (1, side - 3, side), fraction)
    q = prior.family(torch.zeros(1, 4, dtype=DOUBLE))
    assert_close(q.scale, torch.full((1, 2), expected * 2 / (side - 1), dtype=DOUBLE))
    mean = prior.family(torch.ones(1, 4, dtype=DOUBLE)).loc
    assert_close(mean, torch.full((1, 2), expected * 2 / (side - 1), dtype=DOUBLE))


def test_the_size_is_log_normal():
    """One number for each image, whose density is torch's."""
    prior = GaussianLogScale(0.2)
    q = prior.family(torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=DOUBLE))
    expected = TorchNormal(q.loc, q.scale)
    assert_close(q.loc, torch.tensor([0.1, 0.4], dtype=DOUBLE))
    assert_close(prior.kl(q), kl_divergence(expected, TorchNormal(0.0, 0.2)))
    x = torch.randn(7, 2, dtype=DOUBLE)
    assert_close(prior.log_prob(x), TorchNormal(0.0, 0.2).log_prob(x))
    assert_close(q.log_prob(x), expected.log_prob(x))


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
        (lambda: GaussianLogScale(0.0), "std"),
        (lambda: GaussianShift(float("nan"), (1, 28, 28)), "std_px"),
        (lambda: GaussianShift(1.4, (28, 28)), "image_shape"),
        (lambda: GaussianShift(1.4, (1, 28, 28), start_fraction=0.0), "start_fraction"),
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


@pytest.mark.parametrize("turn", [0.1, 0.3927, -2.0])
def test_a_turned_lattice_has_the_same_marginal(turn):
    """The prior does not turn with the points that it is put onto."""
    points = wrap_angle(equal_parts(8) + turn)
    expected = wrapped_normal(math.pi / 4)
    near = CIRCLE.abs() < 1.5
    found = marginal_of(GaussianAngle(45.0), points)
    assert_close(found[near], expected[near], rtol=0.05, atol=0)


@pytest.mark.parametrize(
    "prior", [GaussianAngle(45.0), TargetVAEAngle(45.0), UniformAngle(), GaussianAngle(15.0)]
)
def test_lattices_come_in_batches(prior):
    """Every image may have its own lattice."""
    turns = torch.randn(2, 3, 1, dtype=DOUBLE)
    points = wrap_angle(equal_parts(6) + turns)
    log_weights, around = prior.on_lattice(points)
    assert log_weights.shape == (2, 3, 6)
    assert_close(log_weights.logsumexp(-1), torch.zeros(2, 3, dtype=DOUBLE))
    for i, j in ((0, 0), (1, 2)):
        alone, same = prior.on_lattice(points[i, j])
        assert_close(log_weights[i, j], alone)
        assert same.std == around.std


def test_lattices_of_shifts_come_in_batches():
    prior = GaussianShift(2.0, (1, 11, 11))
    points = torch.randn(2, 3, 5, 2, dtype=DOUBLE)
    log_weights, around = prior.on_lattice(points)
    assert around is None
    assert log_weights.shape == (2, 3, 5)
    density = TorchNormal(0.0, 0.4).log_prob(points[1, 2]).sum(-1)
    assert_close(log_weights[1, 2], density.log_softmax(0))


@pytest.mark.parametrize(("std_deg", "count"), [(60.0, 8), (45.0, 8), (45.0, 16), (30.0, 16)])
def test_a_lattice_matches_the_variance(std_deg, count):
    """From a width of the spacing on, up to where the circle ends."""
    density = marginal_of(GaussianAngle(std_deg), equal_parts(count))
    resultant = (density * CIRCLE.cos()).mean() * 2 * math.pi
    assert (-2 * resultant.log()).sqrt().item() == pytest.approx(math.radians(std_deg), rel=0.02)


@pytest.mark.parametrize(("std_deg", "count"), [(10.0, 4), (20.0, 8)])
def test_a_lattice_matches_the_variance_of_a_narrow_prior(std_deg, count):
    density = marginal_of(GaussianAngle(std_deg), equal_parts(count))
    resultant = (density * CIRCLE.cos()).mean() * 2 * math.pi
    assert (-2 * resultant.log()).sqrt().item() == pytest.approx(math.radians(std_deg), rel=0.05)


def test_a_lattice_has_a_wide_prior_as_its_marginal():
    found = marginal_of(GaussianAngle(90.0), equal_parts(8))
    assert_close(found, wrapped_normal(math.pi / 2), rtol=0.02, atol=0)


@pytest.mark.parametrize(("count", "tolerance"), [(4, 0.06), (8, 0.02), (16, 0.01)])
def test_the_published_lattice(count, tolerance):
    """The density at the offsets, normalised, and N(offset, (pi/R)^2) around each."""
    s = math.pi / 4
    offsets = [2 * math.pi * i / count for i in range(count)]
    offsets = [angle - 2 * math.pi * (angle > math.pi + 1e-9) for angle in offsets]
    weights = [math.exp(-(angle**2) / (2 * s**2)) for angle in offsets]
    log_weights, around = TargetVAEAngle(45.0).on_lattice(torch.tensor(offsets, dtype=DOUBLE))
    expected = torch.tensor(weights, dtype=DOUBLE) / sum(weights)
    assert_close(log_weights.exp(), expected)
    q = around.family(torch.randn(3, count, 2, dtype=DOUBLE))
    published = TorchNormal(torch.tensor(0.0, dtype=DOUBLE), math.pi / count)
    assert_close(around.kl(q), kl_divergence(TorchNormal(q.loc, q.scale), published))
    # Wider than the prior that was asked for, where the other is not.
    density = marginal_of(TargetVAEAngle(45.0), equal_parts(count))
    resultant = (density * CIRCLE.cos()).mean() * 2 * math.pi
    width = math.sqrt(s**2 + (math.pi / count) ** 2)
    assert (-2 * resultant.log()).sqrt().item() == pytest.approx(width, rel=tolerance)


def test_without_a_lattice_the_published_prior_is_normal():
    ours, published = GaussianAngle(45.0), TargetVAEAngle(45.0)
    params, value = torch.randn(4, 2, dtype=DOUBLE), torch.randn(4, dtype=DOUBLE)
    assert_close(published.log_prob(value), ours.log_prob(value))
    assert_close(published.kl(published.family(params)), ours.kl(ours.family(params)))


@pytest.mark.parametrize("std", [0.1, 0.8, 2.0])
def test_a_deviation_has_its_density_on_the_circle_and_its_divergence_on_the_line(std):
    prior = AngleFromPoint(std)
    assert_close(prior.log_prob(CIRCLE).exp(), wrapped_normal(std))
    assert_close(prior.log_prob(CIRCLE + 2 * math.pi), prior.log_prob(CIRCLE))
    params = torch.randn(5, 2, dtype=DOUBLE)
    q = prior.family(params, 0.3)
    assert_close(q.mode, 0.3 + std * params[:, 0])
    assert_close(q.stddev, std * params[:, 1].exp())
    assert_close(q.log_prob(q.mode + 2 * math.pi), q.log_prob(q.mode))
    q = prior.family(params)
    expected = kl_divergence(TorchNormal(q.loc, q.scale), TorchNormal(0.0, std))
    assert_close(prior.kl(q), expected)
    assert not prior.replaces_kl


def test_the_line_never_has_less_divergence_than_the_circle():
    """So that what is reported remains a bound."""
    prior = AngleFromPoint(0.8)
    for loc, std in ((0.3, 0.5), (0.0, 0.8), (-1.0, 2.0), (2.5, 0.3)):
        params = torch.tensor([loc / 0.8, math.log(std / 0.8)], dtype=DOUBLE)
        q = prior.family(params)
        log_q = q.log_prob(CIRCLE)
        circle = (log_q.exp() * (log_q - prior.log_prob(CIRCLE))).mean() * 2 * math.pi
        assert circle <= prior.kl(q) + 1e-9


@pytest.mark.parametrize(
    "prior",
    [
        Gaussian(4, std=0.5),
        GaussianAngle(22.5),
        GaussianShift(1.4, (1, 28, 28)),
        GaussianLogScale(0.2),
        UniformAngle(),
    ],
)
def test_a_posterior_cannot_become_endlessly_wide(prior):
    output = torch.full((1, prior.num_params), 60.0, requires_grad=True)
    q = prior.family(output)
    assert_close(q.scale, torch.full_like(q.scale, 10 * prior.std))
    prior.optimised_kl(q).sum().backward()
    assert output.grad.isfinite().all()
    # Equation 3 of the uniform prior leaves the mean alone.
    assert (output.grad[:, prior.num_params // 2 :] > 0).all()
    usual = prior.family(torch.full((1, prior.num_params), 2.0))
    assert_close(usual.scale, torch.full_like(usual.scale, math.exp(2.0) * prior.unit))
