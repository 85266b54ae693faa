import math
from functools import partial

import pytest
import torch
from tests.helpers import LinearGenerator
from torch.testing import assert_close

from svae.ctf import CTF
from svae.encoders import CNN
from svae.generators import CoordinateMLP, PixelMLP
from svae.geometry import (
    centre_of_mass,
    pixel_size,
    rotate,
    rotate_image,
    transform_image,
    wrap_angle,
)
from svae.latents import Latents
from svae.likelihoods import Bernoulli, PerPixelGaussian
from svae.likelihoods import Gaussian as GaussianLikelihood
from svae.metrics.bounds import importance_weighted_bound
from svae.noise import Noise
from svae.pixels import draw_pixels
from svae.priors import Gaussian, GaussianAngle, GaussianLogScale, GaussianShift, UniformAngle

SHAPE = (1, 9, 9)
INDEX = torch.arange(6)
NOISE = Noise(0, 0, INDEX)

VARIANTS = {
    "plain": {},
    "no content": {"z_dim": 0},
    "fixed pose": {"infer_theta": False, "infer_shift": False},
    "no angle": {"infer_theta": False},
    "no shift": {"infer_shift": False},
    "vanilla": {
        "infer_theta": False,
        "infer_shift": False,
        "generator": partial(PixelMLP, hidden=16),
    },
    "cnn": {"encoder": partial(CNN, channels=4, convolutions=2, kernel_size=3, hidden=16)},
    "per-pixel noise": {"likelihood": PerPixelGaussian},
    "mask": {"likelihood": partial(Bernoulli, mask_radius_px=3.0)},
    "colour": {"image_shape": (3, 8, 10)},
    "sizes": {"infer_scale": True},
}


@pytest.fixture(params=VARIANTS)
def model(request, make_model):
    return make_model(**VARIANTS[request.param])


def images_for(model, count=6):
    return torch.rand(count, *model.image_shape)


def test_every_parameter_gets_a_finite_gradient(model):
    elbo = model.elbo(images_for(model), NOISE, samples=2)
    elbo.objective().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name


def test_the_bound_is_the_likelihood_less_the_divergences(model):
    elbo = model.elbo(images_for(model), NOISE, samples=3)
    assert elbo.value.shape == (6,)
    assert set(elbo.kl) == set(model.posterior.terms)
    assert_close(elbo.value, elbo.log_likelihood - sum(elbo.kl.values()))
    assert_close(elbo.objective(), elbo.value)
    assert_close(elbo.objective(4.0), elbo.log_likelihood - 4 * sum(elbo.kl.values()))


def test_what_encode_returns_decode_accepts(model):
    images = images_for(model)
    decoded = model.decode(model.encode(images, batch_size=4), batch_size=5)
    assert decoded.shape == images.shape
    assert torch.isfinite(decoded).all()


def test_a_bound_never_exceeds_the_importance_weighted_one(model):
    """In expectation, and both estimate the same evidence."""
    images = images_for(model)
    with torch.no_grad():
        elbo = model.elbo(images, NOISE, samples=2000).value
        weights = model.importance_log_weights(images, Noise(0, 1, INDEX), 2000)
    # The mean of the log-weights is the same bound.
    error = weights.std(0).max().item() / math.sqrt(2000)
    assert_close(weights.mean(0), elbo, atol=6 * error, rtol=0)
    assert (importance_weighted_bound(weights) > elbo - 6 * error).all()


def test_the_importance_weighted_bound_reaches_a_known_evidence(make_model):
    """A linear model with normal noise: its evidence is that of a multivariate normal."""
    size = 3
    likelihood = partial(GaussianLikelihood, std=0.5)
    model = make_model(
        image_shape=(1, size, size), infer_theta=False, infer_shift=False, likelihood=likelihood
    )
    loading, offset = torch.randn(9, 2), torch.randn(9)
    model.generator = LinearGenerator(loading, offset)
    images = torch.randn(6, 1, size, size)
    covariance = loading @ loading.T + 0.25 * torch.eye(9)
    evidence = torch.distributions.MultivariateNormal(offset, covariance)
    expected = evidence.log_prob(images.flatten(1))
    with torch.no_grad():
        weights = model.importance_log_weights(images, NOISE, 60_000)
        few = importance_weighted_bound(weights[:5])
    assert_close(importance_weighted_bound(weights), expected, atol=0.4, rtol=0)
    assert weights.mean() < few.mean() < expected.mean()


def test_a_subset_of_pixels_estimates_the_same_bound(make_model):
    for likelihood in (Bernoulli, partial(Bernoulli, mask_radius_px=3.0)):
        model = make_model(likelihood=likelihood)
        images = images_for(model, 1).expand(4000, -1, -1, -1)
        latents, _ = model.infer(images[:1]).rsample(1, Noise(0, 0, INDEX[:1]))
        latents = latents.map(lambda value: value.expand(1, 4000, *value.shape[2:]))
        noise = Noise(0, 0, torch.arange(4000))
        with torch.no_grad():
            exact = model.log_likelihood(images[:1], latents[:, :1])
            for pixels, focus in ((1, 0.0), (4, 0.5), (7, 0.9), (7, 0.0)):
                scored = model.likelihood.scored_pixels
                subset = draw_pixels(images, noise, scored, pixels, focus)
                assert subset.places.shape == subset.weight.shape == (4000, pixels)
                estimates = model.log_likelihood(images, latents, subset)
                error = estimates.std().item() / math.sqrt(4000)
                assert_close(estimates.mean(), exact.squeeze(), atol=4 * error, rtol=0)
            # Every scored pixel is drawn equally often, and no other.
            counts = subset.places.flatten().bincount(minlength=81)[model.likelihood.scored_pixels]
            assert counts.sum() == 4000 * 7
            expected = 4000 * 7 / len(counts)
            assert (counts - expected).abs().max() < 5 * math.sqrt(expected)


def test_as_many_pixels_as_there_are_is_the_exact_bound(make_model):
    model, images = make_model(), torch.rand(6, 1, 9, 9)
    exact = model.elbo(images, NOISE).value
    assert torch.equal(model.elbo(images, NOISE, pixels=81).value, exact)


def test_the_likelihood_is_that_of_the_decoded_image(make_model):
    model, images = make_model(), torch.rand(6, 1, 9, 9)
    pose = torch.randn(6), 0.3 * torch.randn(6, 2), 0.3 * torch.randn(6)
    latents = Latents(torch.randn(6, 2), *pose)
    p = model.decode(latents)
    expected = (images * p.log() + (1 - images) * (1 - p).log()).sum((1, 2, 3))
    value = model.log_likelihood(images, latents[None])
    assert_close(value.squeeze(0), expected)


def test_a_decoded_image_turns_with_its_angle(make_model):
    """What decode draws at a pose is what it draws upright, transformed as an image."""
    model = make_model(image_shape=(1, 41, 41))
    # A generator that is a smooth blob off the centre, without sharp edges.
    model.generator = Blob()
    upright = Latents(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 2))
    theta, shift = torch.tensor([0.7]), torch.tensor([[0.2, -0.1]])
    for log_scale in (None, torch.tensor([0.3]), torch.tensor([-0.2])):
        latents = Latents(upright.z, theta, shift, log_scale)
        expected = transform_image(model.decode(upright), theta, shift, log_scale)
        # Of a smaller object, the image holds what lies outside of that of the model's own size.
        inner = slice(6, -6)
        posed, expected = (x[..., inner, inner] for x in (model.decode(latents), expected))
        assert_close(posed, expected, atol=0.015, rtol=0)
    other = model.decode(Latents(upright.z, theta, shift))
    assert (other[..., inner, inner] - posed).abs().max() > 0.1


class Blob(torch.nn.Module):
    coordinate_based = True

    def forward(self, coords, z):
        centre = torch.tensor([0.3, 0.1])
        return 2 - 15 * ((coords - centre) ** 2).sum(-1, keepdim=True)


def test_a_centre_is_a_point_of_the_image(model):
    images = images_for(model)
    centre = model.centre(model.encode(images))
    assert centre.shape == (6, 2)
    assert torch.isfinite(centre).all()
    assert not centre.requires_grad


def test_the_centre_lies_where_the_pose_takes_the_middle_of_the_object(make_model):
    """Objects whose origin is each elsewhere: z is where the object lies in its frame."""
    model = make_model(image_shape=(1, 41, 41))
    model.generator = Disc()
    z = torch.tensor([[0.3, 0.1], [0.3, 0.1], [-0.2, 0.4], [0.0, 0.0]])
    theta = torch.tensor([0.0, torch.pi / 2, 2.1, 0.4])
    shift = torch.tensor([[0.0, 0.0], [0.05, -0.2], [-0.1, 0.3], [0.2, 0.1]])
    centre = model.centre(Latents(z, theta, shift))
    fiftieth = pixel_size(41, 41) / 50
    assert_close(centre, shift + rotate(z, theta), atol=fiftieth, rtol=0)
    larger = model.centre(Latents(z, theta, shift, torch.full((4,), math.log(1.5))))
    assert_close(larger, shift + 1.5 * rotate(z, theta), atol=1.5 * fiftieth, rtol=0)
    by_hand = torch.tensor([[0.3, 0.1], [0.05 - 0.1, 0.3 - 0.2]])
    assert_close(centre[:2], by_hand, atol=fiftieth, rtol=0)


class Disc(torch.nn.Module):
    coordinate_based = True

    def forward(self, coords, z):
        return 4 - 100 * (coords - z.unsqueeze(1)).square().sum(-1, keepdim=True)


def test_the_centre_moves_with_the_shift_and_turns_with_the_angle(make_model):
    """Of any object, to rounding."""
    model = make_model().double()
    latents = Latents(torch.randn(6, 2), torch.randn(6), torch.randn(6, 2))
    latents = latents.map(torch.Tensor.double)
    centre = model.centre(latents)
    assert ((centre - latents.shift).norm(dim=-1) > 0.01).all()
    move, turn = torch.randn(6, 2).double(), torch.randn(6).double()
    moved = Latents(latents.z, latents.theta, latents.shift + move)
    assert_close(model.centre(moved), centre + move)
    assert_close(model.centre(latents.turned(turn)), rotate(centre, turn))


@pytest.mark.parametrize("image_shape", [(1, 41, 41), (1, 33, 41), (3, 41, 36)])
def test_the_centre_is_that_of_the_decoded_image(make_model, image_shape):
    """Of objects well inside of it."""
    model = make_model(image_shape=image_shape)
    model.generator = TwoBlobs(image_shape[0])
    z = 0.4 * torch.rand(50, 2) - 0.2
    theta, shift = 2 * torch.pi * torch.rand(50), 0.4 * torch.rand(50, 2) - 0.2
    latents = Latents(z, theta, shift)
    pixel = pixel_size(*image_shape[1:])
    expected = centre_of_mass(model.decode(latents))
    assert_close(model.centre(latents), expected, atol=pixel / 5, rtol=0)
    # The place of the origin is another point.
    assert ((expected - shift).norm(dim=-1) > pixel).float().mean() > 0.8


class TwoBlobs(torch.nn.Module):
    """A large and a small one, which z moves."""

    coordinate_based = True

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, coords, z):
        large = torch.exp(-(coords - z.unsqueeze(1)).square().sum(-1, keepdim=True) / 0.02)
        beside = z.unsqueeze(1) + torch.tensor([0.2, 0.1])
        small = torch.exp(-(coords - beside).square().sum(-1, keepdim=True) / 0.01)
        return (8 * large + 4 * small - 4).expand(-1, -1, self.channels)


def test_turning_the_encoder_input_is_undone(make_model):
    """With an encoder that sees a known turn, the generator is asked for the original pose."""
    model, images = make_model(augment_rotation=True), torch.rand(6, 1, 9, 9)
    turn = NOISE.uniform("turn").float() * 2 * torch.pi
    seen = {}

    def record(image, latents, pixels=None, weights=None):
        seen["latents"] = latents
        return torch.zeros(latents.theta.shape)

    model.log_likelihood = record
    model.training_elbo(images, NOISE, 0)
    expected, _ = model.infer(rotate_image(images, turn)).rsample(1, NOISE)
    difference = wrap_angle(seen["latents"].theta - (expected.theta - turn))
    assert_close(difference, torch.zeros(1, 6), atol=1e-5, rtol=0)
    assert_close(seen["latents"].turned(turn).shift, expected.shift)


@pytest.mark.parametrize("through_ctf", [False, True])
def test_training_on_mirror_images(make_model, through_ctf):
    """Each image or its mirror image, at random: to infer it, and to explain it by its CTF."""
    images, ctf = torch.rand(64, 1, 9, 9), None
    if through_ctf:
        numbers = torch.tensor([18000.0, 12000.0, 30.0, 300.0, 2.7, 0.1, 0.0, 2.0, 0.0])
        ctf = CTF(numbers.expand(64, -1), torch.zeros(64))
    model = make_model(likelihood=GaussianLikelihood)
    for step in (0, 1):
        noise = Noise(0, step, torch.arange(64))
        model.augment_mirror = False
        plain = model.training_elbo(images, noise, 0, ctf=ctf).value
        other = ctf if ctf is None else ctf.mirrored(torch.ones(64))
        other = model.training_elbo(images.flip(-1), noise, 0, ctf=other).value
        model.augment_mirror = True
        found = model.training_elbo(images, noise, 0, ctf=ctf).value
        mirrored = noise.uniform("mirror") < 0.5
        assert_close(found, torch.where(mirrored, other, plain))
        assert not torch.allclose(found, plain)
        assert torch.equal(model.elbo(images, noise, ctf=ctf).value, plain)


def any_angle():
    return {"z": Gaussian(2), "theta": UniformAngle(), "shift": GaussianShift(1.4, (1, 9, 9))}


def test_candidates_make_inference_follow_quarter_turns(make_model):
    """Under a prior without a preferred angle: whatever the encoder makes of the images."""
    model = make_model(prior=any_angle(), pose_candidates=4).double()
    images = torch.rand(6, 1, 9, 9)
    images = images.double()
    quarter = torch.full((6,), torch.pi / 2, dtype=torch.float64)
    expected = model.infer(images).mode().turned(quarter)
    found = model.infer(rotate_image(images, quarter)).mode()
    assert_close(found.z, expected.z, atol=1e-5, rtol=0)
    assert_close(found.shift, expected.shift, atol=1e-5, rtol=0)
    difference = wrap_angle(found.theta - expected.theta)
    assert_close(difference, torch.zeros_like(difference), atol=1e-5, rtol=0)
    # One candidate does not follow.
    single = model.infer(rotate_image(images, quarter), candidates=1).mode()
    assert (single.z - model.infer(images, candidates=1).mode().z).abs().max() > 1e-3


def test_candidates_never_lower_the_bound_they_are_chosen_by(make_model):
    model, images = make_model(prior=any_angle()), torch.rand(6, 1, 9, 9)

    def bound(candidates):
        q = model.infer(images, candidates)
        kl = torch.stack(list(q.kl(model.priors).values())).sum(0)
        return model.log_likelihood(images, q.mode()[None]).squeeze(0) - kl

    one, four = bound(1), bound(4)
    assert (four >= one - 1e-3).all()
    assert (four > one + 1e-3).any()
    # Each equals the chosen one of all candidates, image by image.
    turns = [torch.full((6,), k * torch.pi / 2) for k in range(4)]
    best = torch.stack([model._bound_at_mode(images, turn) for turn in turns]).amax(0)
    assert_close(four, best, atol=1e-3, rtol=0)


def test_candidates_of_large_images_are_told_apart_by_some_of_their_pixels(
    make_model, monkeypatch
):
    shape = (1, 32, 30)
    prior = any_angle() | {"shift": GaussianShift(1.4, shape)}
    model = make_model(shape, prior=prior, pose_candidates=4).double()
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.mul_(4.0)
        # Of a decoder with something to see, its own images.
        latents = Latents(torch.randn(12, 2), 3 * torch.randn(12), torch.zeros(12, 2))
        images = model.decode(latents.map(torch.Tensor.double))
    seen = []
    score = model.log_likelihood

    def counted(image, latents, pixels=None, weights=None):
        seen.append(pixels.places.shape[-1])
        return score(image, latents, pixels, weights)

    monkeypatch.setattr(model, "log_likelihood", counted)
    found = model.infer(images).mode()
    assert seen == [160] * 4
    # What is kept is a function of the image alone, and mostly what all pixels say.
    alone = model.infer(images[5:6]).mode()
    assert_close(alone.theta, found.theta[5:6])
    monkeypatch.undo()
    turns = torch.arange(4).double() * torch.pi / 2
    exact = torch.stack([model._bound_at_mode(images, turn.expand(12)) for turn in turns])
    best = model._infer_turned(images, turns[exact.argmax(0)]).mode()
    assert torch.isclose(best.theta, found.theta).sum() >= 9  # 3 by chance


def test_without_an_angle_there_is_one_candidate(make_model):
    images = torch.rand(6, 1, 9, 9)
    model = make_model(infer_theta=False, pose_candidates=4)
    expected = model.infer(images, candidates=1).mode()
    assert torch.equal(model.infer(images).mode().z, expected.z)


def test_training_takes_the_encoders_own_guess(make_model):
    images = torch.rand(6, 1, 9, 9)
    model = make_model(prior=any_angle(), pose_candidates=4)
    expected = model.elbo(images, NOISE, q=model.infer(images, candidates=1)).value
    assert torch.equal(model.training_elbo(images, NOISE, 0).value, expected)
    assert not torch.allclose(model.elbo(images, NOISE).value, expected)


def test_z_is_held_at_zero_for_the_first_epochs(make_model):
    model, images = make_model(z_delay_epochs=2), torch.rand(6, 1, 9, 9)
    for epoch, held in ((0, True), (1, True), (2, False)):
        model.zero_grad()
        model.training_elbo(images, NOISE, epoch).log_likelihood.sum().backward()
        assert bool(model.generator.from_z.weight.grad.any()) is not held


def test_training_uses_the_models_aids_and_evaluation_does_not(make_model):
    images = torch.rand(6, 1, 9, 9)
    model = make_model(pixels_per_image=20, augment_rotation=True)
    exact = model.elbo(images, NOISE).value
    assert not torch.allclose(model.training_elbo(images, NOISE, 0).value, exact)
    model.pixels_per_image, model.augment_rotation = None, False
    assert torch.equal(model.training_elbo(images, NOISE, 0).value, exact)


def test_training_holds_decoded_objects_in_the_middle(make_model):
    """By the distance of their centres of mass from it, in standard deviations."""
    images = torch.rand(17, 1, 9, 9)
    noise = Noise(0, 0, torch.arange(17))
    model = make_model(centre_std_px=0.5)
    trained = model.training_elbo(images, noise, 0)
    q = model.infer(images)
    latents = q.rsample(1, noise)[0][0][torch.tensor([0, 8, 16])]  # one in eight
    centre = centre_of_mass(model.decode(latents.without_pose())) / pixel_size(9, 9)
    expected = (0.5 * (centre / 0.5).square().sum(-1)).mean()
    assert expected > 0.1
    assert_close(trained.off_centre, expected.expand(17))
    assert_close(trained.objective(), trained.value - trained.off_centre)
    assert_close(trained.value, model.elbo(images, noise, q=q).value)
    # No bound has it, and no content follows it.
    assert model.elbo(images, noise).off_centre is None
    trained.off_centre.mean().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.encoder.parameters())
    before, optimizer = expected, torch.optim.Adam(model.generator.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        off_centre = model.training_elbo(images, noise, 0).off_centre.mean()
        off_centre.backward()
        optimizer.step()
    assert off_centre < before / 100


@pytest.mark.parametrize("image_shape", [(1, 50, 50), (3, 41, 64)])
def test_a_few_rows_and_columns_tell_where_the_middle_of_an_object_is(make_model, image_shape):
    model = make_model(image_shape=image_shape, centre_std_px=1.0)
    model.generator = TwoBlobs(image_shape[0])
    pixel = pixel_size(*image_shape[1:])
    z = 0.8 * torch.rand(50, 2) - 0.4
    few = torch.stack([(2 * model._off_centre(one[None])[0]).sqrt() for one in z])
    exact = model.centre(Latents(z, torch.zeros(50), torch.zeros(50, 2))).norm(dim=-1) / pixel
    assert exact.max() > 5
    assert_close(few, exact, atol=0.5, rtol=0)
    assert len(model._sparse) < math.prod(image_shape[1:]) / 5


def test_pixels_outside_of_the_mask_do_not_tell_where_the_middle_is(make_model):
    likelihood = partial(GaussianLikelihood, mask_radius_px=3)
    model = make_model(likelihood=likelihood, centre_std_px=1.0)
    assert torch.equal(model._sparse, model.likelihood.scored_pixels)


def test_equation_3_is_optimised_and_the_divergence_reported(make_model):
    shape = (1, 9, 9)
    prior = {"z": Gaussian(2), "theta": UniformAngle(), "shift": GaussianShift(1.4, shape)}
    elbo = make_model(prior=prior).elbo(torch.rand(6, *shape), NOISE)
    difference = elbo.value - elbo.objective()
    assert_close(difference, elbo.optimised_kl["theta"] - elbo.kl["theta"], atol=1e-4, rtol=1e-4)
    assert (difference.abs() > 1e-3).all()


def test_the_bound_does_not_depend_on_the_batch(make_model):
    model, images = make_model(), torch.rand(6, 1, 9, 9)
    whole = model.elbo(images, NOISE, samples=2).value
    part = model.elbo(images[2:4], Noise(0, 0, INDEX[2:4]), samples=2).value
    assert_close(part, whole[2:4])


def test_a_size_that_is_not_inferred_changes_nothing(make_model):
    """The same weights, noise and numbers to the last bit, with or without a prior on it."""
    images = torch.rand(6, 1, 9, 9)
    prior = {"z": Gaussian(2), "theta": GaussianAngle(45.0), "shift": GaussianShift(1.4, SHAPE)}
    found = []
    for options in ({}, {"prior": prior}, {"infer_scale": True}):
        torch.manual_seed(0)
        model = make_model(**options)
        q = model.infer(images)
        found.append((model.state_dict(), model.elbo(images, NOISE, q=q), q.mode()))
    (weights, elbo, mode), (same_weights, same, _), (more_weights, other, sized) = found
    assert weights.keys() == same_weights.keys() == more_weights.keys()
    assert all(torch.equal(value, same_weights[name]) for name, value in weights.items())
    assert torch.equal(elbo.value, same.value)
    assert set(elbo.kl) == {"z", "theta", "shift"}
    assert not mode.log_scale.any()
    # Two numbers more, and a term.
    assert len(more_weights["posterior.head.bias"]) == len(weights["posterior.head.bias"]) + 2
    assert set(other.kl) == {"z", "theta", "shift", "scale"}
    assert sized.log_scale.all()


def test_a_size_is_found_by_ascending_the_bound(make_model):
    """Of one object in two sizes, by a posterior alone: the generator is known."""
    model = make_model(
        (1, 21, 21), z_dim=0, infer_theta=False, infer_shift=False, infer_scale=True,
        prior={"z": Gaussian(0), "scale": GaussianLogScale(0.5)},
        likelihood=partial(GaussianLikelihood, std=0.1),
    )  # fmt: skip
    model.generator = Ring()
    log_scale = torch.tensor([-0.25, 0.25]).repeat(3)
    known = Latents(torch.zeros(6, 0), torch.zeros(6), torch.zeros(6, 2), log_scale)
    images = model.decode(known)
    optimizer = torch.optim.Adam(model.posterior.parameters(), 0.03)
    for step in range(80):
        optimizer.zero_grad()
        model.training_elbo(images, Noise(0, step, INDEX), 0).objective().mean().neg().backward()
        optimizer.step()
    assert_close(model.encode(images).log_scale, log_scale, atol=0.03, rtol=0)


class Ring(torch.nn.Module):
    coordinate_based = True

    def forward(self, coords, z):
        return torch.exp(-20 * (coords.norm(dim=-1, keepdim=True) - 0.5) ** 2)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"z_dim": -1}, "dims|z_dim"),
        ({"beta": 0.0}, "beta"),
        ({"generator": partial(PixelMLP, hidden=4)}, "infer_theta"),
        ({"pixels_per_image": 0}, "pixels_per_image"),
        ({"infer_theta": False, "augment_rotation": True}, "augment_rotation"),
        ({"pose_candidates": 0}, "pose_candidates"),
        ({"refinement_steps": -1}, "refinement_steps"),
        ({"centre_std_px": 0.0}, "centre_std_px: expected a number above 0, got 0.0"),
        ({"centre_std_px": 1.0, "infer_shift": False}, "centre_std_px: expected null"),
        ({"prior": {"z": Gaussian(2)}}, "prior.*theta, shift"),
        ({"prior": any_angle(), "infer_scale": True}, "prior: expected one for scale"),
        (
            {
                "generator": partial(PixelMLP, hidden=4),
                "infer_theta": False,
                "infer_shift": False,
                "infer_scale": True,
            },
            "infer_scale: expected false, because the generator PixelMLP has no coordinates",
        ),
        (
            {
                "generator": partial(PixelMLP, hidden=4),
                "infer_theta": False,
                "infer_shift": False,
                "pixels_per_image": 5,
            },
            "pixels_per_image",
        ),
    ],
)
def test_illegal_combinations_fail_at_construction(make_model, options, name):
    with pytest.raises(ValueError, match=name):
        make_model(**options)


class NoParams(Bernoulli):
    params_per_channel = None


class NoMask(Bernoulli):
    def __init__(self, image_shape):
        pass


class NoNumber(Gaussian):
    num_params = property(lambda self: None, lambda self, value: None)


class NoFeatures(CNN):
    out_features = property(lambda self: 2.5, lambda self, value: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": NoParams}, "model.likelihood: NoParams has no params_per_channel; expect"),
        ({"likelihood": NoMask}, "model.likelihood: NoMask has no scored_pixels; expected a con"),
        ({"prior": any_angle() | {"z": NoNumber(2)}}, "prior.z: NoNumber has no num_params; expe"),
        (
            {"encoder": partial(NoFeatures, convolutions=1)},
            "model.encoder: NoFeatures has 2.5 as its out_features; expected a whole number",
        ),
    ],
)
def test_what_a_part_lacks_is_named(make_model, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_model(**options)


def test_images_of_another_shape_are_refused(make_model):
    with pytest.raises(ValueError, match=r"\(B, 1, 9, 9\)"):
        make_model().encode(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        ({"image": torch.rand(2, 1, 9, 9)}, {}, r'got dict, of which take \["image"\]$'),
        (
            ["a.png"],
            {},
            r"image: expected a tensor or an array of shape \(B, 1, 9, 9\), got list$",
        ),
        (torch.rand(9, 9), {}, r"image: expected shape \(B, 1, 9, 9\), got \(9, 9\)$"),
        (torch.rand(2, 9, 9), {"batch_size": 0}, "batch_size: expected .* at least 1, got 0"),
    ],
)
def test_what_encode_does_not_take_is_named(make_model, image, options, message):
    with pytest.raises(ValueError, match=message):
        make_model().encode(image, **options)


def of_shape(*batch, z_dim=2):
    return Latents(torch.zeros(*batch, z_dim), torch.zeros(batch), torch.zeros(*batch, 2))


@pytest.mark.parametrize(
    ("latents", "options", "message"),
    [
        (of_shape(3, z_dim=5), {}, r"with z \(B, 2\) .*, got z \(3, 5\) and theta \(3,\)$"),
        (of_shape(), {}, r"latents: .*, got z \(2,\) and theta \(\)$"),
        (of_shape(4, 3), {}, r"latents: .*, got z \(4, 3, 2\) and theta \(4, 3\)$"),
        (torch.zeros(3, 2), {}, "latents: expected Latents with .*, got Tensor$"),
        (of_shape(3), {"batch_size": 0}, "batch_size: expected .* at least 1, got 0"),
    ],
)
def test_what_decode_does_not_take_is_named(make_model, latents, options, message):
    with pytest.raises(ValueError, match=message):
        make_model().decode(latents, **options)


def test_priors_for_content_of_length_zero(make_model):
    prior = {
        "z": Gaussian(0),
        "theta": GaussianAngle(45.0),
        "shift": GaussianShift(1.0, (1, 9, 9)),
    }
    model = make_model(z_dim=0, prior=prior)
    assert model.elbo(torch.rand(6, 1, 9, 9), NOISE).kl["z"].tolist() == [0] * 6


def test_generators_with_coordinates_of_another_seam(make_model):
    """Small chunks change nothing about the bound."""
    images = torch.rand(6, 1, 9, 9)
    bounds = []
    for chunk in (10, 10**6):
        torch.manual_seed(0)
        model = make_model(generator=partial(CoordinateMLP, hidden=16, chunk_pixels=chunk))
        bounds.append(model.elbo(images, NOISE, samples=2).value)
    assert_close(bounds[0], bounds[1])


def test_pixels_outside_of_the_mask_have_no_mass(make_model):
    model = make_model(likelihood=partial(Bernoulli, mask_radius_px=2.5))
    scored = torch.zeros(len(model.grid), dtype=torch.bool)
    scored[model.likelihood.scored_pixels] = True
    latents = Latents(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 2))
    picture = torch.rand(1, len(model.grid))

    def centre(outside):
        pixels = torch.where(scored, picture, outside)
        model.decode = lambda latents: pixels.unflatten(1, model.image_shape)
        return model.centre(latents)

    assert_close(centre(torch.tensor(0.0)), centre(torch.rand(1, len(model.grid)) * 5))
