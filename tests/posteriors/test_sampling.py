"""Ways of sampling the lattice, against the formulas written out and against known evidence."""

import math
from functools import partial

import pytest
import torch
from scipy.stats import norm
from tests.posteriors.by_hand import DOUBLE, Case
from torch.testing import assert_close

from svae.encoders import GroupConv
from svae.geometry import wrap_angle
from svae.latents import Latents
from svae.likelihoods import Gaussian as GaussianLikelihood
from svae.metrics.bounds import importance_weighted_bound
from svae.noise import Noise
from svae.posteriors import Attention
from svae.posteriors.attention import gumbel
from svae.posteriors.sampling import Soft, StraightThrough, Truncated
from svae.priors import Gaussian, GaussianAngle, GaussianShift, UniformAngle

CASE = Case("uniform", 4)
NORMAL = Case("gaussian", 8, shape=(3, 2))
NOISE = Noise(0, 0, torch.arange(3))
POINTS = len(CASE.positions) * CASE.rotations


def cost(latents):
    """Some function (S, B) of latents that is smooth on the circle."""
    x, y = latents.shift.unbind(-1)
    turn = torch.stack((latents.theta.cos(), latents.theta.sin()), -1)
    return (latents.z.sin().sum(-1) + 2) * (turn[..., 0] + 3 * x) + turn[..., 1] * y


def objective(q, case, noise):
    """What training descends: a loss less the divergences."""
    latents, weights = q.rsample(1, noise)
    return (weights * cost(latents)).sum(0) + sum(q.kl(case.priors()).values())


def latents_at(case, by_hand, z_noise, theta_noise):
    """Latents at every point from a mean and a scaled noise: (B, P, R, ...)."""
    z = by_hand.z.loc + by_hand.z.scale * z_noise
    theta = by_hand.theta.loc + by_hand.theta.scale * theta_noise
    shift = case.positions[:, None].expand(*theta.shape, 2)
    return Latents(z, theta, shift)


# ---- truncation


@pytest.mark.parametrize("case", [CASE, NORMAL])
def test_with_all_points_truncation_is_enumeration(case):
    """The exact expectation over the lattice, in training; the whole posterior, in evaluation."""
    params = case.params()
    for points in (len(case.positions) * case.rotations, 10**6):
        head = case.head(Truncated(points))
        q = head.trained(params, NOISE)
        latents, weights = q.rsample(1, NOISE)
        count = len(case.positions) * case.rotations
        assert latents.theta.shape == weights.shape == (count, 3)
        by_hand = case.by_hand(params)
        z = NOISE.normal("z", 1, count, 2).reshape(3, -1, case.rotations, 2)
        theta = NOISE.normal("theta", 1, count).reshape(3, -1, case.rotations)
        values = cost(latents_at(case, by_hand, z, theta))
        assert_close((weights * cost(latents)).sum(0), by_hand.average(values))
        assert q.gives_bound
        assert_close(head(params).weights, by_hand.log_q.exp())


def test_several_samples_at_each_point_have_the_same_expectation():
    head = CASE.head(Truncated(4, explore=0))
    params = CASE.params()
    many, weights = head.trained(params, NOISE).rsample(3000, NOISE)
    assert_close(weights.sum(0), torch.ones(3, dtype=DOUBLE))
    drawn, equal = head(params).rsample(60_000, NOISE)
    found, expected = (weights * cost(many)).sum(0), (equal * cost(drawn)).sum(0)
    error = cost(drawn).std(0) / math.sqrt(3000)
    assert ((found - expected).abs() < 5 * error).all()


@pytest.mark.parametrize("points", [1, 3, POINTS])
def test_without_exploring_training_keeps_the_best_as_evaluation_does(points):
    head = CASE.head(Truncated(points, explore=0))
    params = CASE.params()
    trained, reported = head.trained(params, NOISE), head(params)
    best = CASE.by_hand(params, best=points)
    for q in (trained, reported):
        assert_close(q.weights, best.log_q.exp())
        for name, value in best.kl().items():
            assert_close(q.kl(CASE.priors())[name], value, atol=1e-6, rtol=1e-6)


def test_exploring_draws_points_without_replacement():
    """In the order of their probabilities: successive sampling, from q tempered by the scale."""
    count, case = 20_000, Case("uniform", 2, shape=(1, 2))
    params = case.params(batch=1).expand(count, -1, -1, -1)
    q = torch.softmax(case.by_hand(params[:1]).log_q.flatten(), 0)
    for explore in (1.0, 0.5):
        p = q ** (1 / explore) / (q ** (1 / explore)).sum()
        head = case.head(Truncated(2, explore=explore))
        found = head.trained(params, Noise(0, 0, torch.arange(count)))
        kept = torch.zeros(count, 4).scatter(1, found.rows(), 1.0)
        assert (kept.sum(1) == 2).all()
        # Either it comes first, or second after another one.
        after = [[p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i] for i in range(4)]
        expected = p + torch.tensor(after, dtype=DOUBLE).sum(1)
        error = (expected * (1 - expected) / count).sqrt()
        assert ((kept.double().mean(0) - expected).abs() < 5 * error).all()
        # Whatever was drawn is weighted by q.
        ratio = found.log_weights[:, 0] - found.log_weights[:, 1]
        rows = found.rows()
        assert_close(ratio, q.log()[rows[:, 0]] - q.log()[rows[:, 1]])


@pytest.mark.parametrize("points", [1, 3, POINTS])
@pytest.mark.parametrize("explore", [0.0, 1.0])
def test_truncated_training_has_the_gradient_of_the_formula(points, explore):
    params = CASE.params().requires_grad_()
    q = CASE.head(Truncated(points, explore)).trained(params, NOISE)
    total = objective(q, CASE, NOISE).sum()
    found = torch.autograd.grad(total, params)[0]

    logits, mean, log_std, angle, log_width = params.flatten(1, 2).split((1, 2, 2, 1, 1), -1)
    # Which points are kept is no part of the gradient.
    rows = q.rows()
    images = torch.arange(3)[:, None]
    unit = math.pi / 4
    place = CASE.positions[rows // 4]
    loc = CASE.turns[rows % 4] + unit * angle[images, rows, 0]
    mean, std = mean[images, rows], log_std[images, rows].exp()
    width = unit * log_width[images, rows, 0].exp()
    distance = (CASE.positions**2).sum(-1) / (2 * (1.5 * 0.25) ** 2)
    log_p = (-distance).log_softmax(0)[rows // 4] - math.log(4)
    log_q = (logits[images, rows, 0] + log_p).log_softmax(1)
    count = rows.shape[1]
    z = mean + std * NOISE.normal("z", 1, count, 2)[:, 0]
    theta = loc + width * NOISE.normal("theta", 1, count)[:, 0]
    kl_z = (0.5 * (std**2 + mean**2 - 1) - std.log()).sum(-1)
    deviation = (loc - CASE.turns[rows % 4]) / unit
    kl_theta = 0.5 * ((width / unit) ** 2 + deviation**2 - 1) - (width / unit).log()
    value = cost(Latents(z, theta, place)) + log_q - log_p + kl_z + kl_theta
    expected = (log_q.exp() * value).sum()
    assert_close(total, expected, atol=1e-6, rtol=1e-6)
    assert_close(found, torch.autograd.grad(expected, params)[0], atol=1e-6, rtol=1e-6)


# ---- evidence that is known

SHAPE = (1, 7, 7)
# Of the generator's single dot, in the object's frame.
DOT = torch.tensor([0.55, 0.1])


class Dot(torch.nn.Module):
    """An object without content: an image depends on angle and position only."""

    coordinate_based = True

    def forward(self, coords, z):
        bar = torch.exp(-10 * ((coords - DOT) ** 2).sum(-1, keepdim=True))
        return bar + 0.5 * torch.exp(-10 * (coords**2).sum(-1, keepdim=True))


def dot_model(make_model, sampling, angle):
    model = make_model(
        image_shape=SHAPE,
        z_dim=0,
        prior={"z": Gaussian(0), "theta": angle, "shift": GaussianShift(1.2, SHAPE)},
        encoder=partial(GroupConv, group_order=4, channels=4, kernel_size=5, padding=0),
        posterior=partial(Attention, sampling=sampling),
        likelihood=partial(GaussianLikelihood, std=0.5),
    )
    model.generator = Dot()
    return model


def evidence_of(model, images, width, weights):
    """log p(y): positions summed and the angle integrated by the trapezoidal rule.

    Arguments:
        width: The width of the deviations from the 4 rotations.
        weights: The probabilities of the rotations by 0, 90, -180 and -90 degrees.
    """
    grid = torch.arange(180) / 180 * 2 * math.pi - math.pi
    turns = torch.tensor([0.0, math.pi / 2, -math.pi, -math.pi / 2])
    density = torch.zeros(180)
    for r in range(4):
        for k in (-2, -1, 0, 1, 2):
            points = (grid - turns[r] + 2 * math.pi * k).numpy()
            density += weights[r] * torch.from_numpy(norm.pdf(points, 0, width)).float()
    assert density.mean().item() * 2 * math.pi == pytest.approx(1, abs=1e-4)
    pixel = 2 / 6
    # A kernel of 5 px leaves 3x3 positions on 7 px.
    steps = torch.tensor([-1.0, 0.0, 1.0])
    places = torch.cartesian_prod(steps, steps) * pixel
    log_place = (-(places**2).sum(1) / (2 * (1.2 * pixel) ** 2)).log_softmax(0)
    theta = grid.repeat(9)[:, None].expand(-1, len(images))
    shift = places.repeat_interleave(180, 0)[:, None].expand(-1, len(images), -1)
    log_p = log_place.repeat_interleave(180) + density.log().repeat(9)
    with torch.no_grad():
        value = model.log_likelihood(images, Latents(theta[..., None][..., :0], theta, shift))
    return (value + log_p[:, None]).logsumexp(0) + math.log(2 * math.pi / 180)


def angle_priors():
    s = math.radians(60)
    width = min(math.pi / 4, s / math.sqrt(2))
    weights = torch.tensor([0.0, math.pi / 2, math.pi, math.pi / 2])
    weights = (-(weights**2) / (2 * (s**2 - width**2))).softmax(0)
    return {
        "uniform": (UniformAngle(), math.pi / 4, torch.full((4,), 0.25)),
        "gaussian": (GaussianAngle(60.0), width, weights),
    }


def images_of_dots(model):
    """Images that the model would make, and one that it would not."""
    theta = torch.tensor([0.3, 2.0, -1.4])
    shift = torch.tensor([[0.0, 0.0], [1 / 3, 0.0], [-1 / 3, 1 / 3]])
    dots = model.decode(Latents(torch.zeros(3, 0), theta, shift))
    return torch.cat((dots + 0.3 * torch.randn_like(dots), torch.rand(1, *SHAPE)))


@pytest.mark.parametrize("name", ["uniform", "gaussian"])
def test_every_bound_is_below_the_evidence_and_importance_weights_reach_it(make_model, name):
    angle, width, rotations = angle_priors()[name]
    index = torch.arange(4)
    model = dot_model(make_model, Truncated(36), angle)
    images = images_of_dots(model)
    evidence = evidence_of(model, images, width, rotations)
    bounds = {}
    for label, sampling in {
        **{points: Truncated(points) for points in (1, 2, 5, 36)},
        "soft": Soft(),
        "hard": StraightThrough(),
    }.items():
        model.posterior.sampling = sampling
        with torch.no_grad():
            elbo = model.elbo(images, Noise(0, 0, index), samples=2000)
        assert elbo.is_bound
        error = 0.05  # of the mean of 2000 samples
        assert (elbo.value < evidence + error).all()
        bounds[label] = elbo.value
    # Whatever the way of training, the whole posterior is evaluated.
    assert_close(bounds["soft"], bounds[36])
    assert_close(bounds["hard"], bounds[36])
    assert (bounds[36] - bounds[1]).abs().max() > 0.1
    with torch.no_grad():
        weights = model.importance_log_weights(images, Noise(0, 1, index), 3000)
    assert_close(importance_weighted_bound(weights), evidence, atol=0.15, rtol=0)
    assert (bounds[36] < evidence - 0.3).all()


def test_what_training_maximises_is_a_bound_whatever_is_drawn(make_model):
    angle, width, rotations = angle_priors()["gaussian"]
    model = dot_model(make_model, Truncated(36), angle)
    images = images_of_dots(model)
    evidence = evidence_of(model, images, width, rotations)
    repeated = images.repeat_interleave(1500, 0)
    for sampling in (Truncated(2, explore=2.0), Truncated(6), StraightThrough(anneal_steps=1)):
        model.posterior.sampling = sampling
        with torch.no_grad():
            elbo = model.training_elbo(repeated, Noise(0, 5, torch.arange(len(repeated))), 0)
        values = elbo.value.reshape(4, 1500)
        assert (values.mean(1) < evidence + 5 * values.std(1) / math.sqrt(1500)).all()


# ---- one drawn point with a soft gradient


def peaked(params, log_std=-18.0):
    """The same parameters with next to no spread at a point."""
    params = params.clone()
    params[..., 3:5], params[..., 6] = log_std, log_std
    return params


@pytest.mark.parametrize("step", [0, 10, 10**6])
@pytest.mark.parametrize("frame", [None, 0.7])
def test_straight_through_gives_points_as_often_as_they_are_probable(step, frame):
    count = 5000
    params = peaked(CASE.params(batch=1)).expand(count, -1, -1, -1)
    sampling = StraightThrough(2.0, 0.1, anneal_steps=20)
    q = CASE.head(sampling).trained(params, Noise(0, step, torch.arange(count)))
    turn = torch.zeros(count, dtype=DOUBLE) if frame is None else torch.full((count,), frame)
    q = q if frame is None else q.turned(turn.double())
    latents, weights = q.rsample(2, Noise(0, step, torch.arange(count)))
    assert torch.equal(weights, torch.full((2, count), 0.5, dtype=DOUBLE))
    by_hand = CASE.by_hand(params[:1])
    mean = by_hand.z.loc[0].flatten(0, 1)
    # The content tells the point; angle and position are those of the same point.
    row = (latents.z.unsqueeze(2) - mean).abs().amax(3).argmin(2)
    assert_close(latents.z, mean[row], atol=1e-5, rtol=0)
    expected = Latents(mean[row], by_hand.theta.loc.flatten()[row], CASE.positions[row // 4])
    expected = expected.turned(turn.double())
    assert_close(latents.shift, expected.shift, atol=1e-5, rtol=0)
    difference = wrap_angle(latents.theta - expected.theta)
    assert_close(difference, torch.zeros_like(difference), atol=1e-5, rtol=0)
    probability = by_hand.log_q.exp().flatten()
    for i in range(2):
        found = row[i].bincount(minlength=POINTS) / count
        error = (probability * (1 - probability) / count).sqrt()
        assert ((found - probability).abs() < 5 * error + 1e-12).all()
    assert (row[0] != row[1]).any()


def test_straight_through_has_the_spread_at_its_point():
    """As one sample of the posterior has."""
    count = 20_000
    noise = Noise(0, 0, torch.arange(count))
    params = CASE.params(batch=1).expand(count, -1, -1, -1)
    head = CASE.head(StraightThrough())
    hard, _ = head.trained(params, noise).rsample(1, noise)
    one, _ = head(params).rsample(1, Noise(0, 1, torch.arange(count)))
    for found, expected in ((hard.z[0], one.z[0]), (cost(hard)[0], cost(one)[0])):
        error = expected.std(0) / math.sqrt(count / 2)
        assert ((found.mean(0) - expected.mean(0)).abs() < 5 * error).all()
        assert_close(found.std(0), expected.std(0), rtol=0.05, atol=0)


@pytest.mark.parametrize(("step", "temperature"), [(0, 2.0), (10, 1.0), (20, 0.5), (99, 0.5)])
def test_straight_through_has_the_gradient_of_the_soft_average(step, temperature):
    """The average's, with respect to the attention, at the temperature of the step."""
    sampling = StraightThrough(2.0, 0.5, anneal_steps=20)
    assert sampling.temperature_at(step) == pytest.approx(temperature)
    noise = Noise(0, step, torch.arange(3))
    params = CASE.params().requires_grad_()
    q = CASE.head(sampling).trained(params, noise)
    latents, _ = q.rsample(1, noise)
    slopes = torch.randn(3, 5, dtype=DOUBLE)
    total = (
        (slopes[:, :2] * latents.z).sum()
        + (slopes[:, 2] * latents.theta).sum()
        + (slopes[:, 3:] * latents.shift).sum()
    )
    found = torch.autograd.grad(total, params)[0]

    by_hand = CASE.by_hand(params)
    log_q = by_hand.log_q.flatten(1)
    noisy = log_q + gumbel(noise, "point 0", log_q)
    chosen = noisy.argmax(1)
    images = torch.arange(3)
    weights = (noisy / temperature).softmax(1)
    theta = by_hand.theta.loc.flatten(1).detach()
    # Angles as differences from the one that was drawn, the short way around.
    theta = wrap_angle(theta - theta[images, chosen, None])
    mean = by_hand.z.loc.flatten(1, 2).detach()
    place = CASE.positions.repeat_interleave(4, 0)
    value = (
        (slopes[:, None, :2] * mean).sum(2)
        + slopes[:, 2:3] * theta
        + (slopes[:, None, 3:] * place).sum(2)
    )
    expected = torch.autograd.grad((weights * value).sum(), params)[0][..., 0]
    assert_close(found[..., 0], expected, atol=1e-6, rtol=1e-6)
    # The variables at the point that was drawn, and at no other.
    others = found[..., 1:].flatten(1, 2)
    assert others[images, chosen].all()
    assert_close(others[images, chosen, :2], slopes[:, :2])
    others[images, chosen] = 0
    assert not others.any()


def test_the_temperature_falls_exponentially():
    sampling = StraightThrough(1.0, 0.01, anneal_steps=100)
    found = [sampling.temperature_at(step) for step in (0, 25, 50, 100, 200)]
    assert found == pytest.approx([1, 10**-0.5, 0.1, 0.01, 0.01])


# ---- the published average


@pytest.mark.parametrize("case", [CASE, NORMAL])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_soft_average_is_the_published_formula(case, temperature):
    params = case.params()
    q = case.head(Soft(temperature)).trained(params, NOISE)
    assert not q.gives_bound
    latents, weights = q.rsample(2, NOISE)
    assert torch.equal(weights, torch.full((2, 3), 0.5, dtype=DOUBLE))
    by_hand = case.by_hand(params)
    log_q = by_hand.log_q.flatten(1)
    for i in range(2):
        w = ((log_q + gumbel(NOISE, f"point {i}", log_q)) / temperature).exp()
        w = (w / w.sum(1, keepdim=True)).reshape(by_hand.log_q.shape)
        z = torch.einsum("bpr,bprd->bd", w, by_hand.z.loc)
        spread = torch.einsum("bpr,bprd->bd", w, by_hand.z.scale)
        assert_close(latents.z[i], z + spread * NOISE.normal(f"z {i}", 2))
        theta = (w * by_hand.theta.loc).sum((1, 2))
        spread = (w * by_hand.theta.scale).sum((1, 2))
        assert_close(latents.theta[i], theta + spread * NOISE.normal(f"theta {i}"))
        assert_close(latents.shift[i], torch.einsum("bpr,pd->bd", w, case.positions))
    assert (latents.z[0] - latents.z[1]).abs().max() > 0.1


def test_the_soft_average_gives_every_point_a_gradient():
    params = CASE.params().requires_grad_()
    q = CASE.head(Soft()).trained(params, NOISE)
    objective(q, CASE, NOISE).sum().backward()
    assert (params.grad.abs() > 0).all()


def test_what_is_reported_with_the_soft_average_is_drawn():
    params = peaked(CASE.params())
    q = CASE.head(Soft())(params)
    assert q.gives_bound
    latents, _ = q.rsample(50, NOISE)
    assert q.log_prob(latents).isfinite().all()
    # The average lies between the positions.
    average, _ = CASE.head(Soft()).trained(params, NOISE).rsample(50, NOISE)
    assert (q.log_prob(average) == -torch.inf).all()


def test_gumbel_noise_is_standard():
    noise = gumbel(Noise(0, 0, torch.arange(200)), "x", torch.zeros(200, 500, dtype=DOUBLE))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.03)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Soft(0.0), "temperature"),
        (lambda: StraightThrough(temperature=-1.0), "temperature"),
        (lambda: StraightThrough(final_temperature=0.0), "final_temperature"),
        (lambda: StraightThrough(anneal_steps=0), "anneal_steps"),
        (lambda: Truncated(0), "points"),
        (lambda: Truncated(2.5), "points"),
        (lambda: Truncated(4, explore=-0.1), "explore"),
        (lambda: Truncated(4, explore=math.nan), "explore"),
    ],
)
def test_values_out_of_range_are_named(make, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        make()
