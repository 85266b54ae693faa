"""Refined latents: against maxima that are known, and never worse than where they began."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tests.helpers import LinearGenerator
from torch.testing import assert_close

import svae.model
from svae.ctf import CTF, CTF_PARAMS
from svae.encoders import GroupConv
from svae.generators import CoordinateMLP, PixelMLP
from svae.geometry import pixel_size, wrap_angle
from svae.inferred import infer_batch
from svae.latents import Latents
from svae.likelihoods import Bernoulli, PerPixelGaussian
from svae.likelihoods import Gaussian as GaussianLikelihood
from svae.noise import Noise
from svae.posteriors import Attention
from svae.posteriors.sampling import Truncated
from svae.priors import (
    Gaussian,
    GaussianAngle,
    GaussianLogScale,
    GaussianShift,
    UniformAngle,
    VonMisesAngle,
)

SHAPE = (1, 9, 9)
NO_POSE = {"infer_theta": False, "infer_shift": False}


def prior_of(theta, z_dim=2, shape=SHAPE):
    return {"z": Gaussian(z_dim), "theta": theta, "shift": GaussianShift(1.4, shape)}


MODELS = {
    "bernoulli": {},
    "gaussian": {"likelihood": partial(GaussianLikelihood, std=0.3)},
    "per-pixel noise": {"likelihood": PerPixelGaussian},
    "mask": {"likelihood": partial(Bernoulli, mask_radius_px=3.0)},
    "colour": {"image_shape": (3, 8, 10)},
    "uniform angle": {"prior": prior_of(UniformAngle())},
    "von mises": {"prior": prior_of(VonMisesAngle(40.0))},
    "size": {
        "prior": prior_of(UniformAngle()) | {"scale": GaussianLogScale(0.3)},
        "infer_scale": True,
    },
    "no content": {"z_dim": 0},
    "no angle": {"infer_theta": False},
    "no pose": NO_POSE,
    "vanilla": {"generator": partial(PixelMLP, hidden=16), **NO_POSE},
    "attention": {
        "prior": prior_of(GaussianAngle(45.0)),
        "encoder": partial(GroupConv, group_order=4, channels=4, kernel_size=5, padding=0),
        "posterior": partial(Attention, sampling=Truncated(2)),
    },
}


def some_model(make_model, **options):
    """In double precision, with a generator that has something to find."""
    model = make_model(**options).double()
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.mul_(2.0)
    return model


def images_for(model, count=6):
    return torch.rand(count, *model.image_shape, dtype=torch.float64)


def log_joint(model, images, latents, **more):
    value = model.log_likelihood(images, latents[None], **more).squeeze(0).detach()
    for name, prior in model.priors.items():
        place = latents.values()[name]
        value = value + prior.log_prob(wrap_angle(place) if name == "theta" else place)
    return value


@pytest.fixture(params=MODELS)
def model(request, make_model):
    return some_model(make_model, **MODELS[request.param])


def test_no_image_is_worse_off(model):
    images = images_for(model)
    mode = model.infer(images).mode()
    before, rises = log_joint(model, images, mode), []
    for model.refinement_steps in (1, 2, 6):
        latents = model.estimate(images)
        rises.append(log_joint(model, images, latents) - before)
        assert all(map(torch.isfinite, (latents.z.sum(), latents.theta.sum())))
    once, twice, often = rises
    assert (once > -1e-9).all()
    assert (twice > once - 1e-9).all()
    assert (often > twice - 1e-9).all()
    assert once.mean() > 0.01
    assert often.mean() > once.mean()
    # What is not inferred stays.
    for name, value in latents.values().items():
        assert name == "z" or value.any() == (name in model.priors)
    assert model.infer(images).mode().z.equal(mode.z)
    assert all(p.requires_grad for name, p in model.generator.named_parameters())


def test_in_the_end_nothing_climbs(make_model):
    # The slopes of leaky ReLUs jump, so that a top may be an edge.
    smooth = partial(CoordinateMLP, hidden=16, activation="tanh")
    model = some_model(make_model, generator=smooth, refinement_steps=80)
    images = images_for(model)
    latents = model.estimate(images).map(lambda value: value.requires_grad_())
    value = model.log_likelihood(images, latents[None]).sum()
    for name, prior in model.priors.items():
        value = value + prior.log_prob(getattr(latents, name)).sum()
    slopes = torch.autograd.grad(value, (latents.z, latents.theta, latents.shift))
    assert all((slope.abs() < 1e-4).all() for slope in slopes)


def test_without_steps_it_is_the_mode(model):
    images = images_for(model)
    mode = model.infer(images).mode()
    for latents in (model.estimate(images), model.encode(images)):
        assert all(map(torch.equal, (latents.z, latents.theta), (mode.z, mode.theta)))
        assert torch.equal(latents.shift, mode.shift)
    q = model.infer(images)
    found, _ = infer_batch(model, {"image": images, "index": torch.arange(6)})
    assert torch.equal(found.representation, q.representation())


def test_bounds_are_those_of_the_posterior(make_model):
    model = some_model(make_model)
    images, noise = images_for(model), Noise(0, 0, torch.arange(6))
    expected = model.elbo(images, noise, samples=2).value
    model.refinement_steps = 3
    assert torch.equal(model.elbo(images, noise, samples=2).value, expected)


@pytest.mark.parametrize("std", [1.0, 0.2])
def test_a_linear_model_is_done_in_one_step(make_model, std):
    """Of z normal and pixels normal about A z + b, the most probable z has a closed form."""
    noise = 0.5
    model = make_model(
        prior={"z": Gaussian(2, std)},
        likelihood=partial(GaussianLikelihood, std=noise),
        refinement_steps=1,
        **NO_POSE,
    ).double()
    loading, offset = torch.randn(81, 2).double(), torch.randn(81).double()
    model.generator = LinearGenerator(loading, offset)
    z = 0.1 * std * torch.randn(6, 2, dtype=torch.float64)
    flat = z @ loading.T + offset + noise * torch.randn(6, 81, dtype=torch.float64)
    precision = loading.T @ loading / noise**2 + torch.eye(2) / std**2
    expected = torch.linalg.solve(precision, loading.T @ (flat - offset).T / noise**2).T
    images = flat.view(6, *SHAPE)
    assert (model.infer(images).mode().z - expected).abs().max() > 0.01
    # The width of the noise is kept in single precision.
    assert_close(model.encode(images).z, expected, rtol=0, atol=1e-6)


class Blobs(torch.nn.Module):
    """A smooth object without symmetry, known at every point."""

    coordinate_based = True

    def forward(self, coords, z):
        centres = coords.new_tensor([[0.4, 0.1], [-0.25, 0.35], [-0.1, -0.45]])
        heights = coords.new_tensor([1.0, 0.6, 0.8])
        distance = (coords.unsqueeze(-2) - centres).square().sum(-1)
        return (heights * torch.exp(-distance / 0.04)).sum(-1, keepdim=True)


class Blank(torch.nn.Module):
    coordinate_based = True

    def forward(self, coords, z):
        return torch.zeros_like(coords[..., :1])


def posed_images(make_model, count, noise, **options):
    """A model that knows the object, noisy images of it, and their poses."""
    shape = (1, 25, 25)
    prior = {"z": Gaussian(0), "theta": UniformAngle(), "shift": GaussianShift(4.0, shape)}
    likelihood = partial(GaussianLikelihood, std=noise)
    model = make_model(shape, 0, prior=prior, likelihood=likelihood, **options).double()
    model.generator = Blobs()
    theta = 2 * torch.pi * torch.rand(count).double() - torch.pi
    shift = 0.1 * torch.randn(count, 2).double()
    truth = Latents(theta.new_zeros(count, 0), theta, shift)
    return model, truth, noise * torch.randn(count, *shape).double()


def guessed(latents):
    """A posterior with that mode."""
    return SimpleNamespace(mode=lambda: latents)


def wrong(truth, degrees, grid_units):
    """Poses that are off by so much."""
    turn = math.radians(degrees) * torch.randn_like(truth.theta)
    return Latents(
        truth.z, truth.theta + turn, truth.shift + grid_units * torch.randn_like(truth.shift)
    )


def test_poses_are_as_good_as_the_noise_lets_them_be(make_model):
    """The Cramer-Rao bound, from the derivatives of the object itself."""
    noise, pixel = 0.12, pixel_size(25, 25)
    model, truth, added = posed_images(make_model, 300, noise, refinement_steps=5)
    start = wrong(truth, 5.0, pixel)

    def drawn(pose):
        return model.decode(Latents(pose[:, :0], pose[:, 0], pose[:, 1:])).flatten(1)

    pose = torch.cat((truth.theta[:, None], truth.shift), 1)
    steps = 1e-5 * torch.eye(3).double()
    jacobian = torch.stack([(drawn(pose + h) - drawn(pose - h)) / 2e-5 for h in steps], -1)
    information = jacobian.mT @ jacobian / noise**2
    bound = torch.linalg.inv(information).diagonal(dim1=-2, dim2=-1).mean(0).sqrt()

    found = model.estimate(model.decode(truth) + added, guessed(start))
    for latents, least, most in ((start, 5.0, 99.0), (found, 0.88, 1.12)):
        turn = wrap_angle(latents.theta - truth.theta)
        error = torch.cat((turn[:, None], latents.shift - truth.shift), 1)
        ratio = error.square().mean(0).sqrt() / bound
        assert (ratio > least).all()
        assert (ratio < most).all()


def test_a_whole_turn_changes_nothing(make_model):
    """Under a normal prior on the line, on which angles of a lattice lie anywhere."""
    model, truth, added = posed_images(make_model, 20, 0.3, refinement_steps=2)
    model._priors["theta"] = GaussianAngle(20.0)
    start, images = wrong(truth, 5.0, 0.05), model.decode(truth) + added
    turned = Latents(start.z, start.theta + 2 * torch.pi, start.shift)
    expected = model.estimate(images, guessed(start)).theta + 2 * torch.pi
    assert_close(model.estimate(images, guessed(turned)).theta, expected)


def test_one_step_never_goes_far(make_model):
    model, truth, added = posed_images(make_model, 50, 0.3, refinement_steps=1)
    start = wrong(truth, 60.0, 0.3)
    found = model.estimate(model.decode(truth) + added, guessed(start))
    assert (found.theta - start.theta).abs().max() <= math.pi / 16 + 1e-9
    assert (found.shift - start.shift).abs().max() <= 0.1 + 1e-9
    assert (found.theta != start.theta).double().mean() > 0.5


def test_no_image_knows_of_the_others(make_model, monkeypatch):
    model = some_model(make_model, refinement_steps=3, image_shape=(1, 16, 16))
    images = images_for(model)
    whole = model.encode(images)
    parts = [model.encode(images, batch_size=4), model.encode(images.flip(0)).map(flipped)]
    monkeypatch.setattr(svae.model, "_PIXELS_AT_ONCE", 1)
    for latents in (*parts, model.encode(images)):
        for name in ("z", "theta", "shift"):
            assert_close(getattr(latents, name), getattr(whole, name), rtol=0, atol=1e-8)


def flipped(value):
    return value.flip(0)


def test_an_image_without_a_number_stays_where_it_is(make_model):
    model, truth, added = posed_images(make_model, 3, 0.3, refinement_steps=2)
    start = wrong(truth, 5.0, 0.05)
    images = model.decode(truth) + added
    expected = model.estimate(images, guessed(start))
    images[1, 0, 12, 12] = torch.nan
    found = model.estimate(images, guessed(start))
    assert torch.equal(found.theta[1], start.theta[1])
    assert torch.equal(found.shift[1], start.shift[1])
    assert_close(found.theta[[0, 2]], expected.theta[[0, 2]])
    # A blank object has no curvature, and no pose is better than another but by its prior.
    model.generator = Blank()
    found = model.estimate(images[:1], guessed(start[:1]))
    assert torch.equal(found.theta, start.theta[:1])
    assert found.shift.norm() < start.shift[:1].norm()


def test_what_a_microscope_made_of_images_is_seen_through(make_model):
    numbers = [15000.0, 14000.0, 20.0, 300.0, 2.7, 0.1, 0.0, 3.0, 0.0]
    assert len(numbers) == len(CTF_PARAMS)
    params = torch.tensor(numbers).repeat(40, 1)
    params[:, :2] += 200 * torch.arange(40)[:, None]
    ctf = CTF(params, torch.zeros(40).long())
    model, truth, added = posed_images(make_model, 40, 0.1, refinement_steps=4)
    start = wrong(truth, 4.0, 0.03)
    images = model.decode(truth, ctf=ctf) + added

    def error(latents):
        return wrap_angle(latents.theta - truth.theta).square().mean().sqrt()

    found = model.estimate(images, guessed(start), ctf=ctf)
    assert error(found) < error(start) / 3
    assert error(model.estimate(images, guessed(start))) > 1.3 * error(found)
    rise = log_joint(model, images, found, ctf=ctf) - log_joint(model, images, start, ctf=ctf)
    assert (rise > -1e-9).all()


def test_half_precision_does_not_reach_it(make_model):
    model, truth, added = posed_images(make_model, 4, 0.3, refinement_steps=2)
    model.float()
    images, start = (model.decode(truth.map(torch.Tensor.float)) + added).float(), truth
    start = wrong(truth, 4.0, 0.03).map(torch.Tensor.float)
    expected = model.estimate(images, guessed(start))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = model.estimate(images.clone(), guessed(start.map(torch.clone)))
    assert torch.equal(found.theta, expected.theta)
    assert found.shift.dtype == torch.float32


def test_what_is_reported_is_at_the_refined_latents(make_model):
    model = some_model(make_model, refinement_steps=2)
    images = images_for(model)
    q = model.infer(images)
    latents = model.estimate(images, q)
    found, std = infer_batch(model, {"image": images, "index": torch.arange(6)})
    assert_close(found.latents.z, latents.z)
    assert_close(found.log_likelihood, model.log_likelihood(images, latents[None])[0].detach())
    assert_close(found.representation, torch.cat((latents.z, q.uncertainty().z), 1))
    assert_close(found.centre, model.centre(latents))
    assert_close(std.theta, q.uncertainty().theta)
    assert (latents.z - q.mode().z).abs().max() > 1e-3
