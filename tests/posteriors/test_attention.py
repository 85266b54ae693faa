"""Against the same posterior written out point by point."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from tests.posteriors.by_hand import DOUBLE, SIZE_STD, SPACING, Case
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    kl_divergence,
)
from torch.testing import assert_close

from svae.agreement import most_agreed, poses_between
from svae.encoders import CNN, GroupConv
from svae.geometry import remove_pose, rotate, rotate_image, transform_image, wrap_angle
from svae.latents import Latents
from svae.lattice import Lattice
from svae.metrics.bounds import importance_weighted_bound
from svae.model import SpatialVAE
from svae.noise import Noise
from svae.posteriors import Attention, MeanField
from svae.posteriors.sampling import Soft, StraightThrough, Truncated
from svae.priors import (
    Gaussian,
    GaussianAngle,
    GaussianLogScale,
    GaussianShift,
    Prior,
    UniformAngle,
    VonMisesAngle,
)

CASES = {
    "uniform": Case("uniform", 4),
    "uniform, 5 rotations": Case("uniform", 5, shape=(3, 1)),
    "gaussian": Case("gaussian", 8),
    "narrow gaussian": Case("gaussian", 3, std_deg=25.0),
    "published": Case("published", 6),
    "no offsets, uniform": Case("uniform", 3, offsets=False),
    "no offsets, gaussian": Case("gaussian", 3, offsets=False),
    "one rotation, uniform": Case("uniform", 1),
    "one rotation, gaussian": Case("gaussian", 1),
    "no angle": Case(None, 1),
    "no shift": Case("gaussian", 4, shape=(1, 1)),
    "no content": Case("uniform", 4, z_dim=0),
    "sizes": Case("gaussian", 5, shape=(1, 2), sized=True),
}
FRAME = torch.tensor([0.4, -2.0, 3.0], dtype=DOUBLE)
CENTRE = torch.tensor([[0.1, 0.0], [-0.05, 0.2], [0.4, -0.3]], dtype=DOUBLE)
NOISE = Noise(0, 0, torch.arange(3))


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def variants(case):
    """The posterior and the same by hand: whole and cut, as inferred, turned and moved."""
    params = case.params()
    # A normal angle on the line has no other frame.
    frames = [(None, None)]
    if not case.on_the_line and case.angle is not None:
        frames.append((FRAME, None))
    if case.shape != (1, 1):
        frames.append((None, CENTRE))
    if len(frames) > 2:
        frames.append((FRAME, CENTRE))
    for best in (None, 3 if len(case.positions) * case.rotations > 3 else 1):
        sampling = Soft() if best is None else Truncated(best, explore=0)
        for frame, centre in frames:
            q = case.head(sampling)(params)
            q = q if centre is None else q.shifted(centre)
            q = q if frame is None else q.turned(frame)
            yield q, case.by_hand(params, frame, centre, best)


def rotations_of(q, columns):
    return (q.rows().gather(1, columns) % len(q.lattice.angles)).t()


# ---- divergences and densities


def test_weights_are_those_of_the_definition(case):
    for q, expected in variants(case):
        assert_close(q.weights, expected.log_q.exp(), atol=1e-9, rtol=1e-6)
        assert_close(q.weights.sum((1, 2)), torch.ones(3, dtype=DOUBLE))


def test_divergences_are_sums_over_the_lattice(case):
    priors = case.priors()
    for q, expected in variants(case):
        found = q.kl(priors)
        assert set(found) == set(q.head.terms)
        for name, value in expected.kl().items():
            assert_close(found[name], value, atol=1e-6, rtol=1e-6)


def test_a_fresh_network_stands_for_the_prior():
    for case in CASES.values():
        if case.angle == "uniform" and not case.deviates:
            continue  # whose posterior starts with a width of a radian
        q = case.head()(case.params(spread=0.0))
        for value in q.kl(case.priors()).values():
            assert_close(value, torch.zeros(3, dtype=DOUBLE), atol=1e-6, rtol=0)


def test_densities_are_sums_over_the_rotations(case):
    for q, expected in variants(case):
        latents, _ = q.rsample(40, NOISE)
        priors = case.priors()
        found, prior = q.log_prob(latents), q.log_prior(latents, priors)
        assert found.shape == prior.shape == (40, 3)
        assert_close(found, expected.log_prob(latents), atol=1e-5, rtol=1e-6)
        assert_close(prior, expected.log_prob(latents, of_prior=True), atol=1e-5, rtol=1e-6)
        # One set of latents for each image is as good as several.
        assert_close(q.log_prob(latents[0]), found[0])
        assert_close(q.log_prior(latents[0], priors), prior[0])


def test_the_expected_log_ratio_is_the_divergence_and_less_without_the_rotation(case):
    count = 300
    for q, by_hand in variants(case):
        latents, weights = q.rsample(count, NOISE)
        assert_close(weights.sum(0), torch.ones(3, dtype=DOUBLE))
        rotations = rotations_of(q, q.sample_points(count, NOISE))
        kept = by_hand.log_ratio(latents, rotations)
        total = torch.stack(list(q.kl(case.priors()).values())).sum(0)
        error = 5 * kept.std(0) / math.sqrt(count) + 1e-6
        assert ((kept.mean(0) - total).abs() < error).all()
        # What is lost with the rotation is a divergence, too: never negative.
        summed = q.log_prob(latents) - q.log_prior(latents, case.priors())
        lost = kept - summed
        error = 5 * lost.std(0) / math.sqrt(count) + 1e-5
        assert (lost.mean(0) > -error).all()
        if (case.on_the_line and case.rotations == 1) or case.angle is None:
            assert_close(kept, summed, atol=1e-5, rtol=0)
        elif case.rotations > 3 and by_hand.log_q.isfinite().all():
            assert (lost.mean(0) > 0.01).all()


@pytest.mark.parametrize("name", ["uniform", "gaussian", "published", "one rotation, uniform"])
def test_densities_integrate_to_one(name):
    """Over the circle by the trapezoidal rule, over the lattice as a sum."""
    given = CASES[name]
    case = Case(given.angle, given.rotations, z_dim=0, std_deg=given.std_deg)
    angles = torch.arange(60, dtype=DOUBLE) / 60 * 2 * math.pi
    for q, by_hand in variants(case):
        places = torch.complex(*by_hand.places.unbind(-1)) * torch.exp(1j * by_hand.frame[:, None])
        shift = torch.view_as_real(places.t()).repeat_interleave(60, 0)  # (P 60, 3, 2)
        theta = angles.repeat(len(case.positions))[:, None].expand(-1, 3)
        latents = Latents(theta.new_zeros(*theta.shape, 0), theta, shift)
        for log_density in (q.log_prob(latents), q.log_prior(latents, case.priors())):
            total = log_density.exp().sum(0) * 2 * math.pi / 60
            assert_close(total, torch.ones(3, dtype=DOUBLE), atol=1e-6, rtol=0)


def test_the_density_of_the_content_integrates_to_one():
    case = Case("uniform", 2, shape=(1, 2), z_dim=1)
    angles = torch.arange(20, dtype=DOUBLE) / 20 * 2 * math.pi
    z = torch.linspace(-10, 10, 41, dtype=DOUBLE)
    points = torch.cartesian_prod(torch.arange(2.0).double(), angles, z)
    q = case.head()(case.params(batch=1, spread=0.3))
    latents = Latents(points[:, 2:], points[:, 1], case.positions[points[:, 0].long()])
    latents = latents.map(lambda value: value.unsqueeze(1))
    total = q.log_prob(latents).exp().sum() * (2 * math.pi / 20) * 0.5
    assert total.item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].shape != (1, 1)])
def test_there_is_nothing_off_the_lattice(name):
    case = CASES[name]
    for q, expected in variants(case):
        latents, _ = q.rsample(6, NOISE)
        off = torch.tensor([0.0, 0.3 * SPACING], dtype=DOUBLE)
        moved = replace(latents, shift=latents.shift + off)
        for log_density in (q.log_prob(moved), q.log_prior(moved, case.priors())):
            assert (log_density == -torch.inf).all()
        # What single precision makes of a position still lies on it.
        rounded = latents.map(lambda value: value.float().double())
        assert_close(q.log_prob(rounded), expected.log_prob(rounded), atol=1e-4, rtol=1e-4)


def test_there_is_nothing_at_points_that_were_cut():
    case = CASES["gaussian"]
    params = case.params()
    whole, cut = case.head()(params), case.head(Truncated(2, explore=0))(params)
    latents, _ = whole.rsample(60, NOISE)
    found = cut.log_prob(latents)
    expected = case.by_hand(params, best=2).log_prob(latents)
    assert_close(found, expected, atol=1e-5, rtol=1e-6)
    assert (found == -torch.inf).any()
    assert found.isfinite().any()


# ---- samples and summaries


def test_points_are_drawn_as_often_as_is_probable(case):
    for q, expected in variants(case):
        columns = q.sample_points(20_000, NOISE)
        probability = expected.log_q.exp().flatten(1)
        for b in range(3):
            rows = q.rows()[b][columns[b]]
            counts = rows.bincount(minlength=len(probability[b])) / 20_000
            error = (probability[b] * (1 - probability[b]) / 20_000).sqrt()
            assert ((counts - probability[b]).abs() <= 5 * error + 1e-12).all()


def test_mode_and_representation_are_those_of_the_best_point(case):
    for q, expected in variants(case):
        mode, representation = q.mode(), q.representation()
        for b in range(3):
            position, rotation = divmod(int(expected.log_q[b].argmax()), case.rotations)
            z = expected.z.loc[b, position, rotation]
            assert_close(mode.z[b], z)
            std = expected.z.scale[b, position, rotation]
            assert_close(representation[b], torch.cat((z, std)))
            place = complex(*expected.places[b, position]) * torch.exp(1j * expected.frame[b])
            assert_close(mode.shift[b], torch.tensor([place.real, place.imag], dtype=DOUBLE))
            size = expected.size.loc[b, position, rotation] if case.sized else place.real * 0
            assert mode.log_scale[b] == pytest.approx(float(size))
            if case.angle is None:
                assert mode.theta[b] == 0
            else:
                theta = expected.theta.loc[b, position, rotation] + expected.frame[b]
                difference = wrap_angle(mode.theta[b] - theta)
                assert_close(difference, torch.zeros_like(theta), atol=1e-6, rtol=0)


def test_uncertainty_is_the_spread_of_samples(case):
    for q, _ in variants(case):
        latents, _ = q.rsample(40_000, NOISE)
        found = q.uncertainty()
        if case.z_dim:
            assert_close(found.z, latents.z.std(0), rtol=0.05, atol=0)
        assert_close(found.shift, latents.shift.std(0), rtol=0.05, atol=1e-12)
        assert_close(found.log_scale, latents.log_scale.std(0), rtol=0.05, atol=1e-12)
        resultant = torch.exp(1j * latents.theta).mean(0).abs()
        circular = (-2 * resultant.log()).sqrt()
        # The mean resultant is known to about 0.005.
        error = 0.02 / (resultant * circular).clamp(1e-3) if case.angle else torch.zeros(3)
        assert ((found.theta - circular).abs() <= error + 1e-6).all()


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].angle is not None])
def test_a_turned_posterior_is_that_of_the_turned_image(name):
    case = CASES[name]
    for sampling in (Soft(), Truncated(2, explore=0)):
        q = case.head(sampling)(case.params())
        turned = q.turned(FRAME / 2).turned(FRAME / 2)
        latents, _ = q.rsample(30, NOISE)
        samples, _ = turned.rsample(30, NOISE)
        moved = latents.turned(FRAME)
        for found, expected in ((samples, moved), (turned.mode(), q.mode().turned(FRAME))):
            assert_close(found.z, expected.z)
            difference = wrap_angle(found.theta - expected.theta)
            assert_close(difference, torch.zeros_like(difference))
            assert_close(found.shift, expected.shift)
            assert_close(found.log_scale, expected.log_scale)
        if not case.on_the_line or case.rotations == 1:
            assert_close(turned.log_prob(samples), q.log_prob(latents))
        assert_close(turned.representation(), q.representation())
        assert_close(turned.weights, q.weights)
        assert_close(turned.uncertainty().theta, q.uncertainty().theta)
        back = turned.turned(-FRAME).mode()
        assert_close(back.shift, q.mode().shift)
        difference = wrap_angle(back.theta - q.mode().theta)
        assert_close(difference, torch.zeros_like(difference))


def test_a_moved_posterior_is_that_of_the_moved_image():
    """Turns and moves in any order and number."""
    case = CASES["uniform"]
    q = case.head()(case.params())
    latents, _ = q.rsample(30, NOISE)
    moved = q.turned(FRAME).shifted(CENTRE).turned(-2 * FRAME).shifted(CENTRE.flip(0))
    found, _ = moved.rsample(30, NOISE)

    def shifted(given, by):
        return Latents(given.z, given.theta, given.shift + by)

    expected = shifted(latents.turned(FRAME), CENTRE).turned(-2 * FRAME)
    expected = shifted(expected, CENTRE.flip(0))
    assert_close(found.theta, expected.theta)
    assert_close(found.shift, expected.shift)
    assert_close(moved.log_prob(found), q.log_prob(latents))
    back = moved.shifted(-CENTRE.flip(0)).turned(2 * FRAME).shifted(-CENTRE).turned(-FRAME)
    assert_close(back.mode().shift, q.mode().shift)
    for name, value in q.kl(case.priors()).items():
        assert_close(back.kl(case.priors())[name], value)


def test_content_moves_at_every_point(case):
    by = torch.randn(3, case.z_dim, dtype=DOUBLE)
    for sampling in (Soft(), Truncated(2, explore=0)):
        q = case.head(sampling)(case.params()).turned(FRAME)
        larger = torch.randn(3, dtype=DOUBLE)
        moved = q.added(by / 3, 0 * larger).added(2 * by / 3, larger)
        (latents, _), (found, _) = q.rsample(30, NOISE), moved.rsample(30, NOISE)
        assert_close(found.z, latents.z + by)
        assert_close(found.theta, latents.theta)
        assert_close(found.shift, latents.shift)
        assert_close(found.log_scale, latents.log_scale + larger * case.sized)
        assert_close(moved.log_prob(found), q.log_prob(latents))
        assert_close(moved.mode().z, q.mode().z + by)
        assert_close(moved.uncertainty().z, q.uncertainty().z)
        mean, std = moved.representation().chunk(2, 1)
        assert_close(mean, moved.mode().z)
        assert_close(std, q.representation()[:, case.z_dim :])
        kl, before = moved.kl(case.priors()), q.kl(case.priors())
        weights, z = q.log_weights.exp(), q.at()["z"].mode
        more = (weights * (z * by.unsqueeze(1) + by.unsqueeze(1) ** 2 / 2).sum(-1)).sum(1)
        assert_close(kl.pop("z"), before.pop("z") + more)
        if case.sized:
            size, by_size = q.at()["scale"].mode, larger.unsqueeze(1)
            more = (weights * (size * by_size + by_size**2 / 2)).sum(1) / SIZE_STD**2
            assert_close(kl.pop("scale"), before.pop("scale") + more)
        assert_close(kl, before)


def test_under_a_uniform_prior_turning_costs_nothing():
    for name in ("uniform", "uniform, 5 rotations", "no offsets, uniform"):
        case = CASES[name]
        q = case.head()(case.params())
        before, after = q.kl(case.priors()), q.turned(FRAME).kl(case.priors())
        for term, value in before.items():
            assert_close(after[term], value)


def test_under_a_normal_prior_a_turn_by_one_rotation_moves_the_prior_on():
    """The lattice is its own turned copy: the same points, numbered otherwise."""
    case = CASES["gaussian"]
    params = case.params()
    step = torch.full((3,), 2 * math.pi / case.rotations, dtype=DOUBLE)
    turned = case.head()(params).turned(step)
    by_hand = case.by_hand(params)
    log_p = by_hand.log_p.roll(-1, 2)
    expected = by_hand.average(by_hand.log_q - log_p)
    assert_close(turned.kl(case.priors())["lattice"], expected, atol=1e-6, rtol=1e-6)
    assert (turned.kl(case.priors())["lattice"] - by_hand.kl()["lattice"]).abs().max() > 0.1


@pytest.mark.parametrize("name", ["one rotation, gaussian", "no offsets, gaussian"])
def test_without_offsets_a_turned_angle_is_compared_with_its_own_prior(name):
    """As for the mean-field posterior: the prior of an angle does not turn with the image."""
    case = CASES[name]
    priors = case.priors()
    # The same angle everywhere, so that the posterior is a product.
    params = torch.zeros(3, len(case.positions), case.rotations, 7, dtype=DOUBLE)
    params[..., -2:] = torch.tensor([0.2, -1.0])
    mean_field = MeanField(4, priors)
    factors = torch.zeros(3, 4 + 2 + 4, dtype=DOUBLE)
    factors[:, 4:6] = torch.tensor([0.2, -1.0])
    expected = mean_field(factors).turned(FRAME).kl(priors)["theta"]
    q = case.head()(params).turned(FRAME)
    assert_close(q.kl(priors)["theta"], expected)


# ---- in a model

SHAPE = (1, 9, 9)
SAMPLINGS = {
    "soft": Soft(),
    "straight-through": StraightThrough(),
    "truncated": Truncated(3),
    "enumeration": Truncated(10**6),
}
MODELS = {
    "target-vae": {},
    "normal angle": {"angle": GaussianAngle(45.0)},
    "von Mises": {"angle": VonMisesAngle()},
    "von Mises about zero": {"angle": VonMisesAngle(45.0)},
    "no offsets": {"offsets": False},
    "von Mises without offsets": {"angle": VonMisesAngle(45.0), "offsets": False},
    "positions only": {"pool_rotations": True},
    "plain convolution": {"group_order": 1},
    "no angle": {"group_order": 1, "infer_theta": False},
    "rotations only": {"kernel_size": 9, "padding": 0, "infer_shift": False},
    "no content": {"z_dim": 0},
    "sizes": {"infer_scale": True},
    "between positions": {"shift_offsets": True},
    "between positions, no offsets": {"shift_offsets": True, "offsets": False},
    # Null: where points are few.
    "two looks": {"second_look": None, "shift_offsets": True},
    "two looks, on positions": {"second_look": None},
    "two looks, sizes": {"second_look": None, "shift_offsets": True, "infer_scale": True},
    "two looks, no offsets": {"second_look": None, "offsets": False, "angle": VonMisesAngle(45.0)},
    "two looks, no content": {"second_look": None, "z_dim": 0},
    "two looks, the second weighs": {"second_look": None, "correct_weights": False},
    "three looks": {"second_look": None, "correct_weights": False, "third_look": None},
}


def model_of(make_model, sampling=None, angle=None, z_dim=2, **options) -> SpatialVAE:
    encoder = {"group_order": 4, "channels": 4, "kernel_size": 5, "padding": 1, "stride": 2}
    encoder |= {name: options.pop(name) for name in [*encoder] if name in options}
    pooled = {"pool_rotations": options.pop("pool_rotations", False)}
    posterior = partial(
        Attention,
        sampling=sampling or Truncated(3),
        offsets=options.pop("offsets", True),
        shift_offsets=options.pop("shift_offsets", False),
        correct_weights=options.pop("correct_weights", True),
    )
    prior = {
        "z": Gaussian(z_dim),
        "theta": angle or UniformAngle(),
        "shift": GaussianShift(1.4, SHAPE),
        "scale": GaussianLogScale(0.2),
    }
    return make_model(
        image_shape=SHAPE,
        z_dim=z_dim,
        prior=prior,
        encoder=partial(GroupConv, **encoder, **pooled),
        posterior=posterior,
        **options,
    )


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_finite_gradient(make_model, name, sampling):
    model = model_of(make_model, SAMPLINGS[sampling], **MODELS[name])
    noise = Noise(0, 3, torch.arange(4))
    elbo = model.training_elbo(torch.rand(4, *SHAPE), noise, 0)
    assert elbo.is_bound == (sampling != "soft")
    assert set(elbo.kl) == set(model.posterior.terms)
    elbo.objective().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", MODELS)
def test_a_bound_never_exceeds_the_importance_weighted_one(make_model, name):
    """Nor does the mean of the log-weights fall below it: the rotation is summed out."""
    options = dict(MODELS[name])
    for sampling in (Soft(), Truncated(2)):
        model = model_of(make_model, sampling, **options)
        images, index = torch.rand(4, *SHAPE), torch.arange(4)
        with torch.no_grad():
            elbo = model.elbo(images, Noise(0, 0, index), samples=400).value
            weights = model.importance_log_weights(images, Noise(0, 0, index), 400)
        error = 4 * weights.std(0) / 20
        assert (weights.mean(0) > elbo - error - 1e-3).all()
        assert (importance_weighted_bound(weights) > elbo - 1e-3).all()


@pytest.mark.parametrize("name", MODELS)
def test_what_encode_returns_decode_accepts(make_model, name):
    model, images = model_of(make_model, **MODELS[name]), torch.rand(5, *SHAPE)
    latents = model.encode(images, batch_size=2)
    assert latents.isfinite()
    assert model.decode(latents).shape == images.shape
    found = latents.shift[:, None] - model.encoder.lattice.shifts
    on_positions = found.abs().amax(2).amin(1) < 1e-6
    assert (on_positions != model.posterior.between).all()


def test_splitting_the_images_changes_nothing(make_model):
    model, images = model_of(make_model), torch.rand(7, *SHAPE)
    assert model.encoder.images_at_once(images.device) > 7
    whole = model.infer(images)
    model.encoder.images_at_once = lambda device: 3
    parts = model.infer(images)
    assert_close(parts.log_weights, whole.log_weights)
    assert_close(parts.params, whole.params)
    assert torch.equal(parts.rows(), whole.rows())


def quarter_turned(make_model, **options):
    """The posteriors of images and of the same turned by 90 degrees."""
    model = model_of(make_model, **options).double()
    images = torch.rand(5, *SHAPE, dtype=DOUBLE)
    quarter = torch.full((5,), math.pi / 2, dtype=DOUBLE)
    turned = rotate_image(images, quarter)
    return model, model.infer(images), model.infer(turned), quarter


def test_inference_follows_quarter_turns(make_model):
    """Encoder and posterior agree on what a rotation is."""
    for options in (
        {},
        {"group_order": 8, "kernel_size": 4, "stride": 1},
        {"shift_offsets": True},
        {"second_look": True},
        {"second_look": True, "shift_offsets": True},
        {"second_look": True, "group_order": 8, "kernel_size": 4, "stride": 1},
        {"second_look": True, "shift_offsets": True, "angle": VonMisesAngle()},
        {"second_look": True, "shift_offsets": True, "third_look": True},
    ):
        model, q, turned, quarter = quarter_turned(make_model, **options)
        expected, found = q.mode().turned(quarter), turned.mode()
        assert_close(found.z, expected.z, atol=1e-5, rtol=0)
        assert_close(found.shift, expected.shift, atol=1e-5, rtol=0)
        difference = wrap_angle(found.theta - expected.theta)
        assert_close(difference, torch.zeros_like(difference), atol=1e-5, rtol=0)
        for name, value in q.kl(model.priors).items():
            assert_close(turned.kl(model.priors)[name], value, atol=1e-5, rtol=1e-5)


def test_rotation_augmentation_by_quarter_turns_changes_nothing(make_model):
    model = model_of(make_model, Truncated(10**6), augment_rotation=True).double()
    images, index = torch.rand(4, *SHAPE, dtype=DOUBLE), torch.arange(4)

    class Quarters(Noise):
        def uniform(self, purpose, *shape):
            numbers = super().uniform(purpose, *shape)
            return (numbers * 4).floor() / 4 if purpose == "turn" else numbers

    upright = model.elbo(images, Noise(0, 0, index))
    noise = Quarters(0, 0, index)
    assert noise.uniform("turn").unique().numel() > 1
    turned = model.training_elbo(images, noise, 0)
    for name, value in upright.kl.items():
        assert_close(turned.kl[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"second_look": True, "shift_offsets": True}])
def test_candidates_give_the_posterior_about_the_mean_of_those_that_agree(make_model, options):
    """Written out: encode in each pose, undo the pose, take the mean of what agrees."""
    model = model_of(make_model, Truncated(3), infer_scale=True, **options).double()
    images, head, count = torch.rand(4, *SHAPE, dtype=DOUBLE), model.posterior, 6
    turns, shifts = (
        move.unsqueeze(1).expand(count, 4, *move.shape[1:])
        for move in poses_between(head.lattice, count)
    )
    with torch.no_grad():
        seen = [
            transform_image(images, turn, shift) for turn, shift in zip(turns, shifts, strict=True)
        ]
        # With one look all of the lattice is asked; the points that are looked at twice are few.
        seen = [
            model._posterior(x, frame=frame) if options else head.whole(model._params(x), frame)
            for x, frame in zip(seen, zip(-turns, -shifts, strict=True), strict=True)
        ]
        modes = Latents.stack([q.mode() for q in seen])
        agreed = most_agreed(modes, [q.spread_of_angles() for q in seen], head.lattice)
        q = model.infer(images, candidates=count)
    middle, mode = modes[agreed.number, torch.arange(4)], q.mode()
    difference = wrap_angle(mode.theta - middle.theta - agreed.turn)
    assert_close(difference, torch.zeros_like(difference))
    assert_close(mode.shift, rotate(middle.shift, agreed.turn) + agreed.move)
    assert_close(mode.z, middle.z + agreed.z)
    assert_close(mode.log_scale, middle.log_scale + agreed.log_scale)
    for value in (agreed.turn, agreed.move, agreed.z, agreed.log_scale):
        assert value.abs().max() > 1e-6


@pytest.mark.parametrize(
    "name",
    ["target-vae", "normal angle", "sizes", "rotations only", "between positions", "two looks"],
)
def test_the_posterior_of_candidates_is_one(make_model, name):
    """Whatever pose was taken and removed, divergences are those of its own samples."""
    model = model_of(make_model, Truncated(3), **MODELS[name]).double()
    images, noise = torch.rand(4, *SHAPE, dtype=DOUBLE), Noise(0, 0, torch.arange(4))
    with torch.no_grad():
        q = model.infer(images, candidates=4)
        latents, _ = q.rsample(500, noise)
        ratio = q.log_prob(latents) - q.log_prior(latents, model.priors)
        total = torch.stack(list(q.kl(model.priors).values())).sum(0)
    assert ratio.isfinite().all()
    error = 5 * ratio.std(0) / math.sqrt(500)
    assert (ratio.mean(0) < total + error).all()
    # Other poses were seen than that of the image as it is.
    assert (q.mode().theta - model.infer(images, candidates=1).mode().theta).abs().max() > 1e-6


# ---- positions between those of the lattice


def between_positions(rotations=1, best=None, spread=0.7, **options):
    """A head whose only deviations are those of the position, and one of its posteriors."""
    lattice = Lattice.centred(rotations, (2, 3), SPACING)
    shift = GaussianShift(1.5, (1, 9, 9))
    priors = {"z": Gaussian(0), "shift": shift, **options}
    sampling = Soft() if best is None else Truncated(best, explore=0)
    head = Attention(4, priors, lattice, sampling, shift_offsets=True).double()
    head.angles, head.shifts, head.offsets = lattice.angles, lattice.shifts, lattice.angles
    params = spread * torch.randn(3, 6, rotations, sum(head.sizes), dtype=DOUBLE)
    return head, priors, params, head(params)


@pytest.mark.parametrize("best", [None, 2])
def test_a_position_between_points_is_a_mixture_of_normals(best):
    """Posterior, prior and divergences in torch's own terms; both integrate to one."""
    head, priors, params, q = between_positions(best=best)
    std, half = 1.5 * SPACING, SPACING / 2
    logits, x, y, width = params[:, :, 0].unbind(-1)
    places = head.shifts + half * torch.stack((x, y), -1)
    log_p = (-(head.shifts**2).sum(-1) / (2 * (std**2 - half**2))).log_softmax(0)
    log_q = logits + log_p
    if best is not None:
        log_q[log_q < log_q.sort(1, descending=True).values[:, 1:2]] = -torch.inf
    log_q = log_q.log_softmax(1)
    factors = Independent(Normal(places, half * width.exp()[..., None].expand_as(places)), 1)
    around = Independent(Normal(head.shifts, torch.full_like(head.shifts, half)), 1)
    posterior = MixtureSameFamily(Categorical(logits=log_q), factors)
    prior = MixtureSameFamily(Categorical(logits=log_p), around)
    shift = 0.3 * torch.randn(5, 3, 2, dtype=DOUBLE)
    latents = Latents(shift.new_zeros(5, 3, 0), shift.new_zeros(5, 3), shift)
    assert_close(q.log_prob(latents), posterior.log_prob(shift))
    assert_close(q.log_prior(latents, priors), prior.log_prob(shift))
    kl, weights = q.kl(priors), log_q.exp()
    own = kl_divergence(factors, around.expand(places.shape[:2]))
    assert_close(kl["shift"], (weights * own).sum(1))
    kept = weights > 0
    excess = torch.where(kept, weights * (log_q - log_p), 0.0).sum(1)
    assert_close(kl["lattice"], excess)
    best_place = places[torch.arange(3), log_q.argmax(1)]
    assert_close(q.mode().shift, best_place)
    mean = (weights[..., None] * places).sum(1)
    variance = (weights[..., None] * (factors.variance + places**2)).sum(1) - mean**2
    assert_close(q.uncertainty().shift, variance.sqrt())


@pytest.mark.parametrize("count", [40, 41])
@pytest.mark.parametrize(("spacing", "ripple"), [(0.1, 0.035), (0.2, 0.045), (0.375, 0.105)])
def test_the_marginal_of_positions_is_the_prior_that_was_asked_for(count, spacing, ripple):
    points = Lattice.centred(1, (count, count), spacing).shifts
    prior = GaussianShift(1.5, (1, 9, 9))  # 0.375 in grid units
    between = prior.between(spacing)
    assert between.std == pytest.approx(spacing / 2)
    place = torch.cartesian_prod(*2 * [torch.linspace(-0.45, 0.45, 31, dtype=DOUBLE)])
    around = between.log_prob(place.unsqueeze(1) - points)
    found = (between.log_weights(points) + around).logsumexp(1)
    excess = found - prior.log_prob(place)
    assert excess.abs().max() < ripple
    assert excess.mean().abs() < 0.01


def test_a_prior_narrower_than_the_lattice_leaves_something_for_the_points():
    between = GaussianShift(1.5, (1, 9, 9)).between(5.0)
    assert between.std == pytest.approx(0.375 / math.sqrt(2))
    assert between.points_std == pytest.approx(0.375 / math.sqrt(2))


def test_a_deviation_turns_with_its_rotation():
    theta = {"theta": UniformAngle()}
    head, _, params, q = between_positions(rotations=4, **theta)
    x, y = (params[..., i].flatten(1) * SPACING / 2 for i in (3, 4))
    rows = q.rows()
    expected = rotate(torch.stack((x, y), -1), head.angles[rows % 4]) + head.shifts[rows // 4]
    assert_close(q.at()["shift"].mode, expected)


@pytest.mark.parametrize("best", [None, 3])
def test_a_posterior_between_positions_turns_and_moves_with_the_image(best):
    _, priors, _, q = between_positions(rotations=4, best=best, theta=UniformAngle())
    latents, _ = q.rsample(4, NOISE)
    moved = q.shifted(CENTRE).turned(FRAME)
    seen = replace(latents, shift=latents.shift + CENTRE).turned(FRAME)
    assert_close(moved.log_prob(seen), q.log_prob(latents))
    assert_close(moved.mode().shift, rotate(q.mode().shift + CENTRE, FRAME))
    assert_close(moved.rsample(4, NOISE)[0].shift, seen.shift)
    assert_close(moved.kl(priors)["shift"], q.kl(priors)["shift"])
    # The prior, seen from the frame, is still a density.
    step = 0.04
    places = step * torch.cartesian_prod(*2 * [torch.arange(-60, 61, dtype=DOUBLE)])
    turns = 2 * math.pi / 16 * torch.arange(16, dtype=DOUBLE)
    shift = places[:, None, None].expand(-1, 16, 3, -1)
    theta = turns[None, :, None].expand(len(places), -1, 3)
    grid = Latents(shift.new_zeros(len(places), 16, 3, 0), theta, shift)
    total = moved.log_prior(grid, priors).exp().sum((0, 1)) * step**2 * 2 * math.pi / 16
    assert_close(total, torch.ones(3, dtype=DOUBLE), atol=1e-3, rtol=0)
    # The expected log-ratio of the marginals is at most the divergence.
    many, _ = moved.rsample(4000, NOISE)
    ratio = moved.log_prob(many) - moved.log_prior(many, priors)
    total = torch.stack(list(moved.kl(priors).values())).sum(0)
    assert (ratio.mean(0) < total + 5 * ratio.std(0) / math.sqrt(4000)).all()
    assert ratio.isfinite().all()


def test_a_shift_that_is_not_normal_has_nothing_between_positions():
    class Other(GaussianShift):
        between = Prior.between

    lattice = Lattice.centred(1, (2, 2), SPACING)
    priors = {"z": Gaussian(0), "shift": Other(1.5, (1, 9, 9))}
    with pytest.raises(ValueError, match=r"prior\.shift: Other leaves nothing between"):
        Attention(4, priors, lattice, Soft(), shift_offsets=True)


# ---- a second look


@pytest.mark.parametrize("correct", [False, True])
def test_a_second_look_corrects_every_point_under_its_own_pose(make_model, correct):
    """Written out for one point after another: weight, content and angle."""
    options = {"angle": GaussianAngle(45.0), "correct_weights": correct}
    model = model_of(make_model, Truncated(3), second_look=True, **options).double()
    images = torch.rand(2, *SHAPE, dtype=DOUBLE)
    seen = []
    model.second_look.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        first, q = model.posterior(model._params(images)), model.infer(images)
        (windows,) = seen
        correction = model.second_look.head(model.second_look.encoder(windows)).view(2, 3, -1)
        factors, corrected = first.at(), q.at()
    for i in range(3):
        pose = factors["theta"].mode[:, i], factors["shift"].mode[:, i]
        upright = remove_pose(images, *pose)[..., 2:7, 2:7]  # 5 of 9 pixels: the kernel's
        assert_close(windows.view(2, 3, 1, 5, 5)[:, i], upright)
    rotations = model.posterior.log_rotations(model.priors, first.lattice.angles)
    before = first.log_weights if correct else rotations[first.points % 4]
    assert_close(q.log_weights, (before + correction[..., 0]).log_softmax(1))
    assert_close(corrected["z"].mode, factors["z"].mode + correction[..., 1:3])
    unit = model.posterior.around(model.priors)["theta"].unit
    moved = factors["theta"].mode + unit * correction[..., 5]
    assert_close(corrected["theta"].mode, moved)
    assert torch.equal(corrected["shift"].mode, factors["shift"].mode)


@pytest.mark.parametrize("offsets", [True, False])
def test_a_second_look_moves_the_object_as_it_lies(make_model, offsets):
    """What is to the right of an object is above it once it is turned by a quarter."""
    model = model_of(
        make_model, second_look=True, shift_offsets=True, offsets=offsets, infer_scale=True
    ).double()
    images, head = torch.rand(4, *SHAPE, dtype=DOUBLE), model.posterior
    with torch.no_grad():
        first = head(model._params(images))
        factors = first.at()
        wanted = torch.tensor([0.3, -0.2, 0.1], dtype=DOUBLE)
        model.second_look.head.weight.zero_()
        model.second_look.head.bias.zero_()
        model.second_look.head.bias[-3:] = wanted  # of the position, right and up, and its width
        q = model.infer(images).at()
    moved = q["shift"].mode - factors["shift"].mode
    theta, size = factors["theta"].mode, factors["scale"].mode.exp().unsqueeze(-1)
    unit = head.around(model.priors)["shift"].unit
    assert_close(moved, unit * rotate(wanted[:2].expand_as(moved), theta) * size)
    assert_close(q["shift"].stddev, factors["shift"].stddev * math.exp(0.1))
    assert moved.abs().min() > 1e-3


def test_how_an_object_lies_to_the_lattice_is_nothing_to_the_weights(make_model):
    """A first look that says anything of the same points: the second hears nothing of it."""
    model = model_of(make_model, Truncated(3), second_look=True, correct_weights=False)
    images = torch.rand(4, *SHAPE)
    params = model._params(images).detach()
    weights = []
    for factor in (1.0, 0.25):  # as sure, and not: in the same order
        scaled = torch.cat([factor * params[..., :1], params[..., 1:]], -1)
        q = model.posterior.looked_again(scaled, partial(model.second_look, images))
        weights.append(q.log_weights)
    assert_close(*weights)


@pytest.mark.parametrize("correct", [False, True])
def test_a_third_look_tells_which_way_up(make_model, correct):
    """Written out: the odds of the two halves of the circle are its own, those within are not."""
    options = {"correct_weights": correct, "shift_offsets": True, "second_look": True}
    options["angle"] = GaussianAngle(120.0)
    two = model_of(make_model, Truncated(30), **options).double()
    three = model_of(make_model, Truncated(30), third_look=True, **options).double()
    with torch.no_grad():
        # Corrections that are larger than those of a network without training.
        two.second_look.head.weight *= 10
    three.load_state_dict(two.state_dict())
    images = torch.rand(8, *SHAPE, dtype=DOUBLE)
    looks = []
    three.second_look.register_forward_hook(lambda _, __, out: looks.append(out[..., 0]))
    with torch.no_grad():
        second, third = two.infer(images), three.infer(images)
        poses = second.latents({name: factor.mode for name, factor in second.at().items()})
        rotations = two.posterior.log_rotations(two.priors, second.lattice.angles)
        expected = rotations[second.points % 4] + two.second_look(images, poses)[..., 0]
    assert len(looks) == 2
    assert torch.equal(third.params, second.params)
    assert torch.equal(third.points, second.points)
    assert_close(third.log_weights.logsumexp(1), torch.zeros(8, dtype=DOUBLE))
    turned_over = 0
    for i in range(8):
        seen, was, now = (w[i] for w in (expected, second.log_weights, third.log_weights))
        apart = wrap_angle(poses.theta[i] - poses.theta[i, seen.argmax()])
        near = apart.abs() < math.pi / 2
        assert 0 < near.sum() < 30
        for half in (near, ~near):
            assert_close((now - was)[half], (now - was)[half][:1].expand(int(half.sum())))
        assert_close(now[near].max() - now[~near].max(), seen[near].max() - seen[~near].max())
        turned_over += not near[was.argmax()]
    assert turned_over


def test_a_third_look_is_none_of_training_and_may_find_one_side_only(make_model):
    options = {"second_look": True, "shift_offsets": True, "third_look": True}
    model = model_of(make_model, Truncated(1, explore=0), **options)
    images, noise = torch.rand(4, *SHAPE), Noise(0, 3, torch.arange(4))
    looks = []
    model.second_look.register_forward_hook(lambda *_: looks.append(0))
    trained = model.training_elbo(images, noise, 0)
    assert len(looks) == 1
    assert_close(model.elbo(images, noise).kl["lattice"], trained.kl["lattice"])
    assert len(looks) == 3


def test_training_guides_the_weights_of_the_first_look(make_model):
    model = model_of(make_model, Truncated(3, explore=0), second_look=True)
    images, noise = torch.rand(4, *SHAPE), Noise(0, 3, torch.arange(4))
    trained = model.training_elbo(images, noise, 0)
    first, final = model.posterior(model._params(images)), model.infer(images)
    p, q = (posterior.log_weights for posterior in (final, first))
    assert_close(trained.guidance, (p.exp() * (p - q)).sum(1))
    assert (trained.guidance > 0).all()
    assert_close(trained.objective(), trained.value - trained.guidance)
    assert model.elbo(images, noise).guidance is None
    # The first look follows; the second says what it says.
    trained.guidance.sum().backward()
    assert model.posterior.head.weight.grad[0].any()
    assert not model.posterior.head.weight.grad[1:].any()
    assert model.second_look.head.weight.grad is None


@pytest.mark.parametrize("looks", [1, 2, 3])
@pytest.mark.parametrize("angle", [GaussianAngle(20.0), VonMisesAngle(30.0)])
def test_the_prior_is_of_the_image_however_it_was_turned_to_be_encoded(make_model, angle, looks):
    """A network that has nothing to say stays at the prior, which it was not at in turned ones."""
    options = {"angle": angle, "shift_offsets": True, "second_look": looks > 1}
    options |= {"third_look": looks > 2, "correct_weights": False, "group_order": 8}
    model = model_of(make_model, Truncated(10**6 if looks == 1 else 60), **options).double()
    second = [model.second_look.head] if model.second_look else []
    with torch.no_grad():
        for head in (model.posterior.head, *second):
            for parameter in head.parameters():
                parameter.zero_()
    images = torch.rand(6, *SHAPE, dtype=DOUBLE)
    eighth = torch.linspace(0, math.pi / 4, 6, dtype=DOUBLE)
    with torch.no_grad():
        turned = model._infer_turned(images, eighth)
        moved = model.posterior.whole(model._params(images), (eighth, torch.rand(6, 2).double()))
        nothing = torch.zeros(6, dtype=DOUBLE)
        assert_close(moved.kl(model.priors)["lattice"], nothing, atol=1e-6, rtol=0)
        # Some rotation of those kept is near the prior's mean, and is what is found.
        assert turned.mode().theta.abs().max() < math.pi / 8 + 1e-6
        upright = model.infer(images, candidates=5).mode()
        assert upright.theta.abs().max() < math.pi / 8 + 1e-6


def test_null_is_a_third_look_of_several_poses(make_model):
    two = {"second_look": True, "third_look": None}
    assert model_of(make_model, Truncated(3), **two).third_look
    assert not model_of(make_model, Truncated(3), second_look=False, third_look=None).third_look
    assert not make_model(second_look=True, third_look=None).third_look
    assert not model_of(make_model, Truncated(3), second_look=True).third_look
    upright = {"group_order": 1, "infer_theta": False}
    assert not model_of(make_model, Truncated(3), **two, **upright).third_look
    for make in (partial(model_of, make_model, second_look=False), partial(make_model, (1, 9, 9))):
        with pytest.raises(ValueError, match=r"third_look: expected false .*posterior=attention"):
            make(third_look=True)


def test_whole_lattices_have_no_second_look(make_model):
    for sampling in (Soft(), StraightThrough(), Truncated(10**6)):
        with pytest.raises(ValueError, match=r"second_look: expected false .*sampling=truncated"):
            model_of(make_model, sampling, second_look=True)
        assert model_of(make_model, sampling, second_look=None).second_look is None
    assert model_of(make_model, Truncated(3), second_look=None).second_look is not None


def test_the_second_encoder_may_be_another(make_model):
    cnn = partial(CNN, channels=2, convolutions=1, kernel_size=3, hidden=7)
    model = model_of(make_model, second_look=True, second_encoder=cnn)
    assert isinstance(model.second_look.encoder, CNN)
    assert model.second_look.encoder(torch.rand(2, 1, 5, 5)).shape == (2, 7)
    with pytest.raises(ValueError, match=r"second_encoder: .*second_encoder=cnn .* got 'mlp'"):
        model_of(make_model, second_look=True, second_encoder="mlp")
    lattice = partial(GroupConv, group_order=4, channels=4, kernel_size=3, padding=0)
    with pytest.raises(ValueError, match=r"second_encoder: .* GroupConv has them at 36 lattice"):
        model_of(make_model, second_look=True, second_encoder=lattice)


# ---- errors


class Spot(GaussianAngle):
    """A prior that puts the angle onto the points themselves."""

    def on_lattice(self, points):
        return super().on_lattice(points)[0], None


class Spread(GaussianShift):
    """A prior that leaves the shift between the points."""

    def on_lattice(self, points):
        return super().on_lattice(points)[0], self


LATTICE = Lattice.centred(4, (2, 2), SPACING)
PRIORS = {"z": Gaussian(2), "theta": UniformAngle(), "shift": GaussianShift(1.5, SHAPE)}


@pytest.mark.parametrize(
    ("changes", "lattice", "message"),
    [
        ({}, None, "attention needs an encoder with a lattice.*group_conv"),
        ({"theta": None}, LATTICE, "group_order: expected 1.*got 4"),
        ({"shift": None}, LATTICE, "infer_shift: expected true with the 4"),
        ({}, Lattice.centred(4, (1, 1), SPACING), "infer_shift: expected false with the 1 "),
        ({"theta": Spot(45.0)}, LATTICE, "prior.theta: Spot .*offsets=false"),
        ({"shift": Spread(1.5, SHAPE)}, LATTICE, "prior.shift: Spread "),
    ],
)
def test_what_does_not_fit_is_named(changes, lattice, message):
    priors = {name: prior for name, prior in (PRIORS | changes).items() if prior is not None}
    with pytest.raises(ValueError, match=message) as error:
        Attention(4, priors, lattice, Soft())
    assert "\n" not in str(error.value)


def test_the_head_ignores_autocast():
    case = CASES["gaussian"]
    head, features = case.head(), torch.randn(3, 6, 8, 4, dtype=DOUBLE)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head(head.params(features)).mode()
    assert torch.equal(rounded.theta, head(head.params(features)).mode().theta)
