"""The mask around the object, and what is made of the mean."""

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import softplus
from torch.testing import assert_close

from svae.geometry import pixel_size, rotate, to_object_frame, transform_image
from svae.latents import Latents
from svae.likelihoods import Gaussian, PerPixelGaussian
from svae.noise import Noise
from svae.pixels import draw_pixels

INDEX = torch.arange(3)
NOISE = Noise(0, 0, INDEX)
MASK = {"object_radius_px": 2.0, "object_edge_px": 3.0}
LIKELIHOODS = {
    "gaussian": partial(Gaussian, learn_std=True, **MASK),
    "nonnegative": partial(Gaussian, learn_std=True, nonnegative_mean=True, **MASK),
    "both masks": partial(Gaussian, learn_std=True, mask_radius_px=3.0, **MASK),
    "per-pixel noise": partial(PerPixelGaussian, nonnegative_mean=True, **MASK),
}


def some(model, samples=2):
    latents = Latents(
        torch.randn(samples, 3, 2), torch.randn(samples, 3), 0.4 * torch.randn(samples, 3, 2)
    ).map(lambda value: value.to(model.grid))
    return torch.randn(3, *model.image_shape).to(model.grid), latents


@pytest.mark.parametrize("likelihood", [Gaussian, PerPixelGaussian])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_mask_is_a_raised_cosine(likelihood, nonnegative):
    made = likelihood((1, 33, 21), nonnegative_mean=nonnegative, **MASK).double()
    distance = torch.tensor([0.0, 1.0, 2.0, 2.75, 3.5, 4.25, 5.0, 9.0], dtype=torch.float64)
    half = (1 + math.cos(math.pi / 4)) / 2
    expected = torch.tensor([1.0, 1.0, 1.0, half, 0.5, 1 - half, 0.0, 0.0], dtype=torch.float64)
    params = torch.randn(8, made.out_features, dtype=torch.float64)
    for angle in (0.0, 2.0):
        coords = rotate(
            torch.stack((distance, 0 * distance), -1), torch.tensor(angle).double()
        ) * pixel_size(33, 21)
        mean = softplus(params[:, :1]) if nonnegative else params[:, :1]
        assert_close(made.mean(params, coords), mean * expected.unsqueeze(1))
        # Without coordinates there is nothing to measure from.
        assert_close(made.mean(params), mean)


def test_the_mask_goes_with_the_object(make_model):
    model = make_model((1, 41, 41), likelihood=partial(Gaussian, object_radius_px=6.0))
    z, still = torch.randn(1, 2), torch.zeros(1)
    shift = torch.tensor([[8.0, -5.0]]) * pixel_size(41, 41)
    upright = model.decode(Latents(z, still, torch.zeros(1, 2)))
    rows, columns = torch.meshgrid(torch.arange(41), torch.arange(41), indexing="ij")
    outside = (rows - 20) ** 2 + (columns - 20) ** 2 >= 11**2
    assert not upright[0, 0, outside].any()
    assert upright[0, 0, 20, 20] != 0
    moved = model.decode(Latents(z, still + 0.7, shift))
    assert not moved[0, 0, (rows - 25) ** 2 + (columns - 28) ** 2 >= 11**2].any()
    expected = transform_image(upright, still + 0.7, shift)
    assert_close(moved, expected, atol=0.05 * upright.abs().max().item(), rtol=0)


def plain(model, images, latents, pixels):
    """Sample by sample and all in one piece."""
    likelihood, target = model.likelihood, images.flatten(2).transpose(1, 2)
    places = likelihood.scored_pixels.expand(3, -1) if pixels is None else pixels.places
    known = torch.stack([target[i, places[i]] for i in range(3)])
    sums = []
    for z, theta, shift in zip(latents.z, latents.theta, latents.shift, strict=True):
        coords = to_object_frame(model.grid[places], theta, shift)
        params = model.generator.pixels(coords, z)
        outside = coords.norm(dim=-1, keepdim=True) / pixel_size(7, 7) - 2.0
        window = torch.where(
            outside < 3.0, (1 + torch.cos(math.pi * outside.clamp(min=0) / 3.0)) / 2, 0.0
        )
        mean = params[..., :1]
        mean = softplus(mean) if likelihood.nonnegative_mean else mean
        if isinstance(likelihood, Gaussian):
            std = likelihood.log_std.exp()
        else:
            std = softplus(params[..., 1:]) + likelihood.min_std
        log_prob = torch.distributions.Normal(mean * window, std).log_prob(known).sum(-1)
        sums.append((log_prob if pixels is None else log_prob * pixels.weight).sum(-1))
    return torch.stack(sums)


@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=list(LIKELIHOODS))
@pytest.mark.parametrize("count", [None, 11])
def test_the_engine_as_written_out(make_model, likelihood, count):
    model = make_model((1, 7, 7), likelihood=likelihood).double()
    images, latents = some(model)
    pixels = None
    if count is not None:
        pixels = draw_pixels(images, NOISE, model.likelihood.scored_pixels, count, 0.5)
    latents = latents.map(lambda value: value.requires_grad_())
    inputs = [*model.generator.parameters(), latents.z, latents.theta, latents.shift]
    inputs += [p for p in model.likelihood.parameters() if p.requires_grad]
    weights = torch.rand(2, 3, dtype=torch.float64) + 0.1
    expected = plain(model, images, latents, pixels)
    wanted = torch.autograd.grad(expected, inputs, weights)
    for chunk in (5, 60, None):
        model.generator.chunk_pixels = chunk
        value = model.log_likelihood(images, latents, pixels, weights)
        assert_close(value, expected, atol=1e-10, rtol=1e-10)
        found = torch.autograd.grad(value, inputs, weights)
        assert_close(found, wanted, atol=1e-10, rtol=1e-10)


def test_what_is_scored_does_not_depend_on_where_the_object_is(make_model):
    """Of a mean that is masked away everywhere, what is left is the noise of all pixels."""
    model = make_model((1, 9, 9), likelihood=partial(Gaussian, std=0.5, **MASK))
    images, latents = some(model)
    away = Latents(latents.z, latents.theta, latents.shift * 0 + 100.0)
    expected = torch.distributions.Normal(0.0, 0.5).log_prob(images).sum((1, 2, 3))
    assert_close(model.log_likelihood(images, away), expected.expand(2, -1))


def test_the_middle_of_the_object_has_a_gradient(make_model):
    """A pixel exactly at the object's centre, from which a distance has no direction."""
    model = make_model((1, 9, 9), likelihood=partial(Gaussian, **MASK))
    images, latents = some(model)
    latents = Latents(latents.z, latents.theta, torch.zeros(2, 3, 2)).map(
        lambda value: value.requires_grad_()
    )
    model.log_likelihood(images, latents).sum().backward()
    assert latents.shift.grad.isfinite().all()
    assert latents.shift.grad.any()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("object_radius_px", 0.0),
        ("object_edge_px", -1.0),
        ("ctf_padding", 0),
        ("ctf_padding", 1.5),
    ],
)
def test_a_wrong_number_is_named(option, value):
    with pytest.raises(ValueError, match=f"{option}: expected a .*number .* got {value}"):
        Gaussian((1, 8, 8), **{option: value})
