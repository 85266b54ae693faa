import math

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal as TorchNormal
from torch.nn.functional import softplus
from torch.testing import assert_close

from svae.geometry import pixel_grid
from svae.likelihoods import Bernoulli, Gaussian, PerPixelGaussian

SHAPE = (3, 5, 5)
DOUBLE = torch.float64


def random_params(likelihood):
    return torch.randn(2, 4, 25, likelihood.out_features, dtype=DOUBLE)


def test_bernoulli_is_that_of_torch_on_binary_pixels():
    likelihood = Bernoulli(SHAPE)
    params = random_params(likelihood)
    target = torch.randint(0, 2, (4, 25, 3)).double()
    expected = TorchBernoulli(logits=params).log_prob(target).sum(-1)
    assert_close(likelihood.log_prob(params, target), expected)
    assert_close(likelihood.mean(params), torch.sigmoid(params))


def test_bernoulli_is_the_cross_entropy_on_grey_pixels():
    likelihood = Bernoulli((1, 5, 5))
    params, target = random_params(likelihood), torch.rand(4, 25, 1, dtype=DOUBLE)
    p = torch.sigmoid(params)
    expected = target * p.log() + (1 - target) * (1 - p).log()
    assert_close(likelihood.log_prob(params, target), expected.squeeze(-1))


def test_bernoulli_stays_finite_at_extreme_logits():
    likelihood = Bernoulli((1, 5, 5))
    params = torch.tensor([[-500.0], [500.0]], requires_grad=True)
    value = likelihood.log_prob(params, torch.tensor([[1.0], [0.0]]))
    assert value.tolist() == [-500, -500]
    value.sum().backward()
    assert torch.isfinite(params.grad).all()


def test_the_width_of_a_pixel_is_that_of_torch():
    for likelihood in (Bernoulli(SHAPE), Gaussian(SHAPE, std=0.3), PerPixelGaussian(SHAPE)):
        params = random_params(likelihood)
        found = likelihood.double().stddev(params)
        if isinstance(likelihood, Bernoulli):
            expected = TorchBernoulli(logits=params).stddev
        else:
            # At the mean, the density is one over the width and sqrt(2 pi).
            mean = likelihood.mean(params)
            expected = torch.full_like(mean, 0.3)
            if isinstance(likelihood, PerPixelGaussian):
                expected = softplus(params[..., 3:]) + likelihood.min_std
            peak = likelihood.log_prob(params, mean)
            assert_close(peak, -(found.log() + 0.5 * math.log(2 * math.pi)).sum(-1))
        # The width of one for all is kept in single precision.
        assert_close(found, expected, rtol=1e-6, atol=0)
        assert (likelihood.stddev(100 * params) > 0).all()


@pytest.mark.parametrize("std", [0.1, 1.0, 3.0])
def test_gaussian_is_that_of_torch(std):
    likelihood = Gaussian(SHAPE, std=std).double()
    params, target = random_params(likelihood), torch.randn(4, 25, 3, dtype=DOUBLE)
    # The width is kept in single precision.
    expected = TorchNormal(params, likelihood.log_std.exp()).log_prob(target).sum(-1)
    assert_close(likelihood.log_prob(params, target), expected)
    assert likelihood.log_std.item() == pytest.approx(math.log(std), abs=1e-6)
    assert not likelihood.log_std.requires_grad


def test_a_learned_width_finds_the_noise():
    likelihood = Gaussian((1, 5, 5), std=1.0, learn_std=True)
    target = 0.3 * torch.randn(400, 25, 1)
    optimizer = torch.optim.Adam(likelihood.parameters(), 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (-likelihood.log_prob(torch.zeros(400, 25, 1), target).mean()).backward()
        optimizer.step()
    assert likelihood.log_std.exp().item() == pytest.approx(target.std().item(), rel=0.01)


def test_per_pixel_gaussian_is_that_of_torch():
    """Means first and widths after them, channel by channel: the published code mixed them."""
    likelihood = PerPixelGaussian(SHAPE, min_std=0.05)
    params, target = random_params(likelihood), torch.randn(4, 25, 3, dtype=DOUBLE)
    std = softplus(params[..., 3:]) + 0.05
    expected = TorchNormal(params[..., :3], std).log_prob(target).sum(-1)
    assert_close(likelihood.log_prob(params, target), expected)
    assert likelihood.mean(params).shape == (2, 4, 25, 3)


@pytest.mark.parametrize("likelihood", [Gaussian, PerPixelGaussian])
def test_a_non_negative_mean(likelihood):
    made = likelihood(SHAPE, nonnegative_mean=True).double()
    params = random_params(made)
    assert (made.mean(params) > 0).all()
    assert_close(made.mean(params), softplus(params[..., :3]))


def test_a_density_integrates_to_one():
    likelihood = Gaussian((1, 5, 5), std=0.5)
    grid = torch.linspace(-8, 8, 4001, dtype=DOUBLE).reshape(-1, 1, 1)
    density = likelihood.log_prob(torch.full_like(grid, 0.3), grid).exp()
    assert_close(density.sum() * 16 / 4000, torch.tensor(1.0, dtype=DOUBLE), atol=1e-6, rtol=0)


def test_the_mask_is_a_centred_circle():
    likelihood = Bernoulli((1, 9, 9), mask_radius_px=3)
    inside = pixel_grid(9, 9)[likelihood.scored_pixels] * 4  # in pixels
    assert len(inside) == 29  # lattice points of the disc with radius 3
    assert inside.norm(dim=-1).max() == 3


def test_without_a_mask_every_pixel_counts():
    assert Bernoulli((1, 4, 6)).scored_pixels.tolist() == list(range(24))


def test_a_mask_without_pixels_is_refused():
    with pytest.raises(ValueError, match="mask_radius_px"):
        Bernoulli((1, 8, 8), mask_radius_px=0.5)


def test_no_images_fit():
    Bernoulli((1, 4, 4)).check(torch.empty(0, 1, 4, 4))


def test_images_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="Bernoulli"):
        Bernoulli((1, 4, 4)).check(torch.full((1, 1, 4, 4), 1.5))
    with pytest.raises(ValueError, match="NaN"):
        Gaussian((1, 4, 4)).check(torch.full((1, 1, 4, 4), float("nan")))
