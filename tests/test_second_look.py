"""The second look, at every image with the pose removed that the first has found."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from torch.testing import assert_close

from svae.distributions import Normal, WrappedNormal
from svae.geometry import rotate, rotate_image, transform_image, wrap_angle
from svae.latents import Latents
from svae.noise import Noise
from svae.posteriors import MeanFieldPosterior
from svae.posteriors.mean_field import guidance
from svae.priors import Gaussian, GaussianAngle, GaussianShift, UniformAngle, VonMisesAngle
from svae.run import first_difference, read_config
from svae.von_mises import VonMises

SHAPE = (1, 9, 9)
NOISE = Noise(0, 0, torch.arange(6))
ANGLES = {
    "gaussian": GaussianAngle(45.0),
    "uniform": UniformAngle(start_deg=17.0),
    "von Mises": VonMisesAngle(),
}


def priors_with(angle):
    return {"z": Gaussian(2), "theta": angle, "shift": GaussianShift(1.4, SHAPE)}


def params_of(prior, theta, shift):
    """What the first look would have to say of a pose: the rest of it is zero."""
    params = torch.zeros(len(theta), 4 + prior["theta"].num_params + 4, dtype=theta.dtype)
    angle = params[:, 4:6]
    if isinstance(prior["theta"], VonMisesAngle):
        angle[:, 0], angle[:, 1] = 2 * theta.cos() - prior["theta"].start, 2 * theta.sin()
    else:
        angle[:, 0] = theta / prior["theta"].unit
    params[:, 6:8] = shift / prior["shift"].unit
    return params


@pytest.mark.parametrize("angle", ANGLES)
def test_corrections_turn_and_move_with_the_object(make_model, monkeypatch, angle):
    """Whatever is wrong with the first pose is wrong in the object's frame, and found there."""
    prior = priors_with(ANGLES[angle])
    model = make_model(prior=prior, second_look=True).double()
    upright = torch.zeros(6, *SHAPE, dtype=torch.float64)
    upright[..., 2:7, 2:7] = torch.rand(6, 1, 5, 5, dtype=torch.float64)
    pixel = 2 / 8
    found, spread = [], []
    for quarters, x, y in ((0, 0, 0), (1, 0, 0), (1, 2, 0), (3, -1, 2)):
        theta = torch.full((6,), quarters * math.pi / 2, dtype=torch.float64)
        shift = pixel * torch.tensor([[x, y]], dtype=torch.float64).expand(6, 2)
        image = transform_image(upright, theta, shift)
        monkeypatch.setattr(
            model, "_params", lambda _, at=(theta, shift): params_of(prior, *at).double()
        )
        q = model.infer(image)
        mode = q.mode()
        spread.append(q.uncertainty().shift)
        found.append((mode.z, wrap_angle(mode.theta - theta), rotate(mode.shift - shift, -theta)))
    assert found[0][0].abs().amin() > 1e-4
    assert found[0][1].abs().amin() > 1e-4
    assert found[0][2].abs().amin() > 1e-4
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert_close(other, one, atol=1e-6, rtol=0)
    assert all(torch.allclose(other, spread[0]) for other in spread)


def test_it_sees_the_image_without_the_pose_of_the_first(make_model, monkeypatch):
    model = make_model(second_look=True)
    image = torch.rand(6, *SHAPE)
    seen = []
    model.second_look.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    quarter = torch.full((6,), math.pi / 2)
    params = params_of(model.priors, quarter, torch.zeros(6, 2))
    monkeypatch.setattr(model, "_params", lambda _: params)
    model.infer(image)
    assert_close(seen[0], rotate_image(image, -quarter))
    assert_close(seen[0], torch.rot90(image, -1, (2, 3)), atol=1e-5, rtol=0)


def test_turned_images_are_looked_at_twice_as_they_are_turned(make_model):
    model = make_model(second_look=True)
    image, turn = torch.rand(6, *SHAPE), torch.linspace(0.1, 3, 6)
    found = model._infer_turned(image, turn).mode()
    expected = model._posterior(rotate_image(image, turn)).turned(-turn).mode()
    assert_close(found.shift, expected.shift)
    assert_close(wrap_angle(found.theta - expected.theta), torch.zeros(6), atol=1e-6, rtol=0)
    assert (
        found.theta - model._posterior(rotate_image(image, turn)).mode().theta
    ).abs().min() > 0.09


@pytest.mark.parametrize("narrow", [False, True])
def test_guidance_is_the_distance_in_standard_deviations(narrow):
    # Those of the final posterior, or a twentieth of the unit.
    std, unit = (0.01, 0.5) if narrow else (0.2, 0.5)
    least = max(std, 0.05 * unit)

    def at(place):
        loc = torch.full((3, 2), place, requires_grad=True)
        factors = {"shift": Normal(loc, torch.full((3, 2), math.log(std)), 1)}
        return loc, MeanFieldPosterior(factors)

    (first_loc, first), (final_loc, final) = at(0.3), at(0.7)
    apart = guidance(first, final, {"shift": unit})
    distance = 0.4 * math.sqrt(2) / least
    assert_close(apart, torch.full((3,), math.sqrt(1 + distance**2) - 1))
    apart.sum().backward()
    assert (first_loc.grad < 0).all()
    assert_close(final_loc.grad, -first_loc.grad)
    assert_close(guidance(final, final, {"shift": unit}), torch.zeros(3))


def test_guidance_brings_first_look_and_correction_together(make_model):
    """Were the final pose drawn along, the gap would stay, and both would run."""
    model = make_model(second_look=True)
    image = torch.rand(6, *SHAPE)
    pose = slice(4, None)  # z has no guidance
    layers = (model.posterior.head, model.second_look.head)

    def gap():
        return model.training_elbo(image, NOISE, 0).guidance.sum()

    gap().backward()
    first, correction = (layer.bias.grad[pose] for layer in layers)
    loc = [0, 2, 3]  # theta, x, y; the widths are what it is measured in
    assert first[loc].abs().min() > 1e-3
    assert_close(first[[1, 4, 5]], torch.zeros(3))
    assert_close(correction[[1, 4, 5]], torch.zeros(3))
    assert_close(correction[0], -first[0])
    before = gap().item()
    for layer in layers:
        with torch.no_grad():
            layer.bias -= 1e-3 * layer.bias.grad
    assert gap().item() < before


@pytest.mark.parametrize("family", ["wrapped normal", "von Mises"])
def test_guidance_goes_around_the_circle(family):
    def at(degrees):
        loc = torch.tensor([math.radians(degrees)], dtype=torch.float64)
        if family == "wrapped normal":
            return MeanFieldPosterior({"theta": WrappedNormal(loc, loc * 0 - 2)})
        return MeanFieldPosterior({"theta": VonMises(loc, loc * 0 + math.exp(4))})

    distance = math.radians(20) if family == "wrapped normal" else 2 * math.sin(math.radians(10))
    expected = math.sqrt(1 + (distance / math.exp(-2)) ** 2) - 1
    found = guidance(at(170), at(-170), {"theta": 1.0}).item()
    assert found == pytest.approx(expected, rel=1e-9)
    assert found == pytest.approx(guidance(at(0), at(20), {"theta": 1.0}).item(), rel=1e-9)


@pytest.mark.parametrize("augment", [False, True])
def test_training_follows_the_guidance_and_no_bound_has_it(make_model, augment):
    model = make_model(second_look=True, augment_rotation=augment)
    image = torch.rand(6, *SHAPE)
    trained = model.training_elbo(image, NOISE, 0)
    assert trained.guidance.shape == (6,)
    assert (trained.guidance > 0).all()
    assert_close(trained.value, trained.log_likelihood - sum(trained.kl.values()))
    assert_close(trained.objective(), trained.value - trained.guidance)
    tested = model.elbo(image, NOISE)
    assert tested.guidance is None
    if not augment:
        assert_close(tested.value, trained.value)


def test_divergence_is_the_expectation_of_the_log_ratio(make_model):
    """The posterior is an ordinary one: what its samples say and what it answers agree."""
    model = make_model(prior=priors_with(GaussianAngle(45.0)), second_look=True)
    q = model.infer(torch.rand(6, *SHAPE))
    latents, weights = q.rsample(20_000, NOISE)
    ratio = q.log_prob(latents) - q.log_prior(latents, model.priors)
    total = torch.stack(list(q.kl(model.priors).values())).sum(0)
    assert_close((weights * ratio).sum(0), total, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "options", [{}, {"z_dim": 0}, {"infer_theta": False}, {"infer_scale": True}]
)
def test_every_parameter_gets_a_gradient(make_model, options):
    """Several processes wait for each other's gradients of all parameters."""
    model = make_model(second_look=True, **options)
    model.training_elbo(torch.rand(6, *SHAPE), NOISE, 0).objective().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_without_a_pose_there_is_none(make_model):
    options = {"infer_theta": False, "infer_shift": False}
    assert make_model(second_look=True, **options).second_look is None
    assert make_model().second_look is None


def test_a_correction_of_the_position_grows_with_the_object():
    prior = GaussianShift(1.4, SHAPE)
    quarter = torch.full((2,), math.pi / 2)
    pose = Latents(torch.zeros(2, 0), quarter, torch.zeros(2, 2), torch.tensor([0.0, math.log(2)]))
    correction = torch.tensor([[0.1, 0.3, 0.2, 0.4]]).expand(2, 4)
    expected = torch.tensor([[-0.3, 0.1, 0.3, 0.3], [-0.6, 0.2, 0.3, 0.3]])
    assert_close(prior.corrected(torch.zeros(2, 4), correction, pose), expected)


def test_images_need_not_be_square(make_model):
    prior = priors_with(UniformAngle()) | {"shift": GaussianShift(1.4, (3, 5, 8))}
    model = make_model((3, 5, 8), prior=prior, second_look=True)
    assert model.infer(torch.rand(6, 3, 5, 8)).mode().z.shape == (6, 2)


def test_null_is_two_looks_of_what_can_be_corrected(make_model):
    """Of an attention: tests/posteriors/test_attention.py."""
    assert make_model(second_look=None).second_look is not None


def test_a_run_of_before_there_was_one_has_none():
    old = {"model": {"z_dim": 2}}
    for now, same in ((False, True), (True, False), (None, False)):
        found = first_difference(old, {"model": {"z_dim": 2, "second_look": now}}, ["model"])
        assert (found is None) is same
    assert first_difference({}, {"model": {"second_look": True}}, ["model"]) is not None


def test_null_was_one_look_of_an_attention(tmp_path):
    """Before one could be corrected; now it is two where points are few."""
    for posterior, more, expected in (
        ("Attention", {}, False),
        ("Attention", {"second_encoder": None}, None),
        ("MeanField", {}, None),
    ):
        model = {"second_look": None, "posterior": {"_target_": f"svae.posteriors.{posterior}"}}
        OmegaConf.save(OmegaConf.create({"model": model | more}), tmp_path / "config.yaml")
        assert read_config(tmp_path).model.second_look is expected
