"""The engine against the sum over all pixels written out."""

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from svae.encoders import GroupConv
from svae.generators import CoordinateMLP, PixelMLP
from svae.geometry import to_object_frame
from svae.latents import Latents
from svae.likelihoods import Bernoulli, Gaussian, PerPixelGaussian
from svae.noise import Noise
from svae.pixels import draw_pixels
from svae.posteriors import Attention
from svae.posteriors.sampling import StraightThrough, Truncated
from svae.priors import Gaussian as GaussianPrior
from svae.priors import GaussianShift, UniformAngle

SAMPLES, BATCH = 2, 3
NOISE = Noise(0, 0, torch.arange(BATCH))

GENERATORS = {
    "leaky_relu": {},
    "tanh": {"activation": "tanh"},
    "gelu": {"activation": "gelu"},
    "silu": {"activation": "silu"},
    "one layer": {"layers": 1, "activation": "tanh"},
    "three layers": {"layers": 3},
    "residual": {"residual": True, "layers": 3},
    "expanded": {"expand_coords": True},
    "bilinear": {"bilinear": True},
    "expanded, bilinear": {"expand_coords": True, "bilinear": True, "activation": "tanh"},
    "fourier": {"fourier_features": 12},
    "fourier, learnable": {"fourier_features": 12, "fourier_learnable": True},
    "fourier, bilinear": {"fourier_features": 6, "fourier_learnable": True, "bilinear": True},
}
LIKELIHOODS = {
    "bernoulli": Bernoulli,
    "gaussian": partial(Gaussian, std=0.7, learn_std=True),
    "gaussian, nonnegative": partial(Gaussian, std=0.7, nonnegative_mean=True),
    "per-pixel noise": PerPixelGaussian,
    "mask": partial(Bernoulli, mask_radius_px=2.5),
    "gaussian, mask": partial(Gaussian, learn_std=True, mask_radius_px=2.5),
}


@pytest.fixture
def make(make_model):
    """A model whose generator and likelihood, shape and chunks are as given."""

    def make(chunk, shape=(1, 6, 7), likelihood=Bernoulli, z_dim=2, hidden=8, **options):
        generator = partial(CoordinateMLP, hidden=hidden, chunk_pixels=chunk, **options)
        model = make_model(shape, z_dim, generator=generator, likelihood=likelihood).double()
        with torch.no_grad():
            # So that nothing is so small that a mistake with it goes unseen.
            for parameter in model.generator.parameters():
                parameter.mul_(1.5)
        return model

    return make


def some_latents(model, samples=SAMPLES, batch=BATCH):
    return Latents(
        torch.randn(samples, batch, model.z_dim),
        torch.randn(samples, batch),
        0.3 * torch.randn(samples, batch, 2),
        0.2 * torch.randn(samples, batch),
    ).map(lambda value: value.to(model.grid))


def some_images(model, batch=BATCH):
    return torch.rand(batch, *model.image_shape).to(model.grid)


def plain(model, image, latents, pixels=None):
    """Sample by sample and all pixels in one piece."""
    target = image.flatten(2).transpose(1, 2)
    places = model.likelihood.scored_pixels.expand(len(image), -1)
    places = places if pixels is None else pixels.places
    values = torch.stack([target[i, places[i]] for i in range(len(image))])
    sums = []
    for z, *pose in zip(*latents.tensors(), strict=True):
        params = model.generator.pixels(to_object_frame(model.grid[places], *pose), z)
        log_prob = model.likelihood.log_prob(params, values)
        sums.append((log_prob if pixels is None else log_prob * pixels.weight).sum(-1))
    return torch.stack(sums)


def with_gradients(function, model, latents, outer):
    """The value of `function(latents)`, and the gradients of its sum weighted by `outer`."""
    latents = latents.map(lambda value: value.detach().clone().requires_grad_())
    inputs = {
        f"{part}.{name}": parameter
        for part in ("generator", "likelihood")
        for name, parameter in getattr(model, part).named_parameters()
        if parameter.requires_grad
    }
    inputs |= {"z": latents.z, "theta": latents.theta, "shift": latents.shift}
    value = function(latents)
    found = torch.autograd.grad(
        value, tuple(inputs.values()), outer, allow_unused=True, materialize_grads=True
    )
    return value.detach(), dict(zip(inputs, found, strict=True))


def assert_same(found, expected, tolerance=1e-10):
    assert_close(found[0], expected[0], atol=tolerance, rtol=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert found[1][name].dtype == gradient.dtype
        assert_close(
            found[1][name],
            gradient,
            atol=tolerance,
            rtol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def positive(*shape):
    return torch.rand(*shape, dtype=torch.float64) + 0.1


def check(model, samples=SAMPLES, pixels=None, tolerance=1e-10):
    """Value and gradients in every way in which weights are given."""
    image, latents = some_images(model), some_latents(model, samples)
    weights, other = positive(samples, BATCH), torch.randn(samples, BATCH, dtype=torch.float64)
    for given, outer in (
        (None, other),
        (weights, weights),
        (weights, -1.7 * weights),
        (weights, other),
    ):
        found = with_gradients(
            lambda latents, given=given: model.log_likelihood(image, latents, pixels, given),
            model,
            latents,
            outer,
        )
        expected = with_gradients(
            lambda latents: plain(model, image, latents, pixels), model, latents, outer
        )
        assert all(gradient.any() for gradient in expected[1].values() if gradient.numel())
        assert_same(found, expected, tolerance)


@pytest.fixture
def generated(monkeypatch):
    """The number of pixels in each call of a coordinate generator, and whether for gradients."""
    calls = []
    forward = CoordinateMLP.forward

    def recorded(self, coords, z):
        calls.append((coords.shape[:2].numel(), torch.is_grad_enabled()))
        return forward(self, coords, z)

    monkeypatch.setattr(CoordinateMLP, "forward", recorded)
    return calls


# ---- value and gradients, in double precision


@pytest.mark.parametrize("options", GENERATORS.values(), ids=list(GENERATORS))
@pytest.mark.parametrize("z_dim", [0, 2])
def test_every_generator_as_written_out(make, options, z_dim):
    check(make(31, z_dim=z_dim, **options))


@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=list(LIKELIHOODS))
@pytest.mark.parametrize("shape", [(1, 6, 7), (3, 4, 9), (3, 9, 4)], ids=str)
def test_every_likelihood_as_written_out(make, likelihood, shape):
    check(make(23, shape, likelihood))


# A pixel, a part of an image, a whole image, some images and a part, everything and more.
@pytest.mark.parametrize("chunk", [1, 7, 20, 47, 120, 10**9])
@pytest.mark.parametrize("samples", [1, 4])
def test_every_size_of_the_chunks(make, chunk, samples):
    check(make(chunk, (1, 4, 5)), samples)


@pytest.mark.parametrize("focus", [0.0, 0.6])
@pytest.mark.parametrize("count", [1, 11])
@pytest.mark.parametrize("chunk", [4, 25, 1000])
def test_a_subset_of_the_pixels(make, focus, count, chunk):
    likelihood = partial(Gaussian, learn_std=True, mask_radius_px=3.0)
    model = make(chunk, (3, 8, 7), likelihood)
    scored = model.likelihood.scored_pixels
    pixels = draw_pixels(some_images(model), NOISE, scored, count, focus)
    assert pixels.places.shape == (BATCH, count)
    check(model, pixels=pixels)


def test_a_generator_without_chunks_is_evaluated_in_one_piece(make_model):
    likelihood = partial(Bernoulli, mask_radius_px=3.0)
    generator = partial(PixelMLP, hidden=8)
    options = {"infer_theta": False, "infer_shift": False}
    model = make_model((3, 6, 7), generator=generator, likelihood=likelihood, **options).double()
    image, latents, weights = some_images(model), some_latents(model), positive(SAMPLES, BATCH)
    target = image.flatten(2).transpose(1, 2)
    scored = model.likelihood.scored_pixels
    params = torch.stack([model.generator(None, z) for z in latents.z])
    expected = model.likelihood.log_prob(params[:, :, scored], target[:, scored]).sum(-1)
    assert_close(model.log_likelihood(image, latents, weights=weights), expected)


def test_chunks_of_no_size_are_one_piece(make, generated):
    model = make(10)
    model.generator.chunk_pixels = None
    check(model)
    assert {pixels for pixels, _ in generated} == {SAMPLES * BATCH * 42}


def test_no_image_has_no_likelihood(make):
    model = make(10)
    latents = some_latents(model, batch=0)
    for weights in (None, torch.ones(SAMPLES, 0, dtype=torch.float64)):
        value = model.log_likelihood(some_images(model, 0), latents, weights=weights)
        assert value.shape == (SAMPLES, 0)
        value.sum().backward()
        assert not any(p.grad.any() for p in model.generator.parameters())


# ---- one pass or two


@pytest.mark.parametrize("factor", [1.0, -1.7, 1e-6, 0.0])
def test_a_gradient_in_proportion_to_the_weights_takes_one_pass(make, generated, factor):
    model = make(25)
    image, latents, weights = some_images(model), some_latents(model), positive(SAMPLES, BATCH)
    weights[0, 0] = 0.0
    value = model.log_likelihood(image, latents, weights=weights)
    # 42 pixels: two chunks for each image.
    chunks = [(25, True), (17, True)] * SAMPLES * BATCH
    assert generated == chunks
    value.backward(factor * weights)
    assert generated == chunks


def test_any_other_gradient_takes_a_second_pass(make, generated):
    model = make(25)
    image, latents, weights = some_images(model), some_latents(model), positive(SAMPLES, BATCH)
    value = model.log_likelihood(image, latents, weights=weights)
    value.backward(weights.flip(1))
    assert generated == [(25, True), (17, True)] * 2 * SAMPLES * BATCH


def test_without_weights_the_first_pass_is_one_without_gradients(make, generated):
    model = make(25)
    value = model.log_likelihood(some_images(model), some_latents(model))
    assert generated == [(25, False), (17, False)] * SAMPLES * BATCH
    generated.clear()
    value.sum().backward()
    assert generated == [(25, True), (17, True)] * SAMPLES * BATCH


@pytest.mark.parametrize(
    ("weights", "outer"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0 + 3e-6]),
        ([1.0, 2.0, 1e-9], [1.0, 2.0, 1e-6]),
        ([1.0, 2.0, 0.0], [1.0, 2.0, 5e-9]),
        ([1e-9, 2e-9, 3e-9], [3e-9, 2e-9, 1e-9]),
        ([1.0, 2.0, 0.0], [-0.5, -1.0, 0.0]),
        ([1.0, 0.0, 0.0], [0.0, 1.0, 2.0]),
        ([1.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ([1.0, -1.0, 0.0], [1.0, 1.0, 0.0]),
        ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ([1e-200, 1e-200, 0.0], [1.0, 1.0, 0.0]),
        ([1e200, 1e200, 1.0], [1.0, 1.0, 1.0]),
    ],
    ids=str,
)
def test_zeros_and_near_proportions(make, weights, outer):
    model = make(25)
    image, latents = some_images(model), some_latents(model, 1)
    weights, outer = (torch.tensor([x], dtype=torch.float64) for x in (weights, outer))
    found = with_gradients(
        lambda latents: model.log_likelihood(image, latents, weights=weights),
        model,
        latents,
        outer,
    )
    expected = with_gradients(lambda latents: plain(model, image, latents), model, latents, outer)
    assert_same(found, expected)


@pytest.mark.parametrize("given", [True, False])
def test_a_second_backward_pass_finds_the_same(make, given):
    model = make(25)
    image, latents, weights = some_images(model), some_latents(model), positive(SAMPLES, BATCH)
    value = model.log_likelihood(image, latents, weights=weights if given else None)
    inputs = tuple(model.generator.parameters())
    first = torch.autograd.grad(value, inputs, weights, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.mul_(3.0)
    twice = torch.autograd.grad(value, inputs, 2 * weights, retain_graph=True)
    other = torch.autograd.grad(value, inputs, weights.flip(0))
    for a, b in zip(twice, kept, strict=True):
        assert_close(a, 2 * b)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(other, kept, strict=True))


@pytest.mark.parametrize("given", [True, False])
def test_what_was_given_stays_as_it_was(make, given):
    model = make(25)
    image, weights = some_images(model), positive(SAMPLES, BATCH)
    latents = some_latents(model).map(lambda value: value.requires_grad_())
    before = copy.deepcopy([image, weights, *vars(latents).values(), *model.parameters()])
    model.log_likelihood(image, latents, weights=weights if given else None).sum().backward()
    after = [image, weights, *vars(latents).values(), *model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("given", [True, False])
def test_parameters_changed_between_the_passes_are_an_error(make, given):
    model = make(25)
    weights = positive(SAMPLES, BATCH) if given else None
    value = model.log_likelihood(some_images(model), some_latents(model), weights=weights)
    with torch.no_grad():
        model.generator.from_coords.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward(torch.randn(SAMPLES, BATCH, dtype=torch.float64))


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("frozen", ["generator", "latents", "half of the generator", "likelihood"])
def test_only_what_is_trained_gets_a_gradient(make, given, frozen):
    model = make(25, likelihood=partial(Gaussian, learn_std=True))
    image, latents, weights = some_images(model), some_latents(model), positive(SAMPLES, BATCH)
    if frozen == "half of the generator":
        model.generator.hidden.requires_grad_(False)
    elif frozen != "latents":
        getattr(model, frozen).requires_grad_(False)
    if frozen != "latents":
        latents = latents.map(lambda value: value.requires_grad_())
    everything = [*model.parameters(), *vars(latents).values()]
    trained = [x for x in everything if x.requires_grad]
    value = model.log_likelihood(image, latents, weights=weights if given else None)
    value.backward(weights)
    found = [None if x.grad is None else x.grad.clone() for x in trained]
    assert all(x.grad is None for x in everything if not x.requires_grad)
    for x in trained:
        x.grad = None
    plain(model, image, latents).backward(weights)
    for x, gradient in zip(trained, found, strict=True):
        if x.grad is None:
            assert gradient is None
        else:
            assert_close(gradient, x.grad, atol=1e-10, rtol=1e-10)


def test_where_nothing_is_trained_nothing_is_kept(make, generated):
    model = make(25).requires_grad_(False)
    image, latents = some_images(model), some_latents(model)
    value = model.log_likelihood(image, latents, weights=positive(SAMPLES, BATCH))
    assert value.grad_fn is None
    assert not any(with_gradients for _, with_gradients in generated)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("half", [False, True])
def test_without_gradients_none_are_computed(make, generated, mode, given, half):
    """As in validation: `Trainer` runs it in inference mode."""
    model = make(25).float()
    image, latents = some_images(model), some_latents(model)
    weights = positive(SAMPLES, BATCH).float() if given else None
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        expected = model.log_likelihood(image, latents).detach()
        generated.clear()
        with mode():
            value = model.log_likelihood(image, latents, weights=weights)
            bound = model.elbo(image, NOISE, samples=2)
    assert torch.equal(value, expected)
    assert bound.value.isfinite().all()
    assert not value.requires_grad
    # Two chunks for each image, and again for the bound.
    assert generated == [(25, False), (17, False)] * 2 * SAMPLES * BATCH


# ---- memory


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("chunk", [1, 30, 100, 150])
def test_no_more_pixels_are_in_the_generator_than_asked(make, generated, given, chunk):
    model = make(chunk, (1, 6, 7))
    weights = positive(SAMPLES, BATCH)
    value = model.log_likelihood(
        some_images(model), some_latents(model), weights=weights if given else None
    )
    value.backward(weights)
    counts = [pixels for pixels, _ in generated]
    assert max(counts) <= chunk
    assert sum(counts) == SAMPLES * BATCH * 42 * (1 if given else 2)
    # Nor fewer: a chunk is a matrix product, and small ones are slow.
    assert chunk < 42 or max(counts) == chunk // 42 * 42


class Box:
    """What stands for a tensor kept for the backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


def kept_after(function, model):
    """How many numbers besides the parameters are kept for the backward pass."""
    boxes = weakref.WeakSet()

    def pack(tensor):
        box = Box(tensor)
        boxes.add(box)
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        value = function()
    gc.collect()
    assert value.requires_grad
    own = {parameter.data_ptr() for parameter in model.parameters()}
    return sum(box.tensor.numel() for box in boxes if box.tensor.data_ptr() not in own)


@pytest.mark.parametrize("given", [True, False])
def test_what_is_kept_grows_neither_with_the_image_nor_with_the_width(make, given):
    def kept(side, hidden, way):
        model = make(25, (1, side, side), hidden=hidden)
        image, latents, weights = some_images(model), some_latents(model), positive(SAMPLES, BATCH)
        latents = latents.map(lambda value: value.requires_grad_())
        if way == "plain":
            return kept_after(lambda: plain(model, image, latents), model)
        # The sums of the gradients are as many numbers as there are to train.
        trained = [*model.generator.parameters(), *vars(latents).values()]
        sums = sum(x.numel() for x in trained) if given else 0
        function = partial(
            model.log_likelihood, image, latents, weights=weights if given else None
        )
        return kept_after(function, model) - sums

    of_latents = SAMPLES * BATCH * (2 + 1 + 2 + 1)
    for side, hidden in ((6, 8), (20, 8), (6, 64), (20, 64)):
        assert kept(side, hidden, "engine") == of_latents
    assert kept(20, 64, "plain") > SAMPLES * BATCH * 20**2 * 64


# ---- precision

# Without kinks, on two sides of which rounding would put a feature.
SMOOTH = {
    "tanh": {"activation": "tanh"},
    "gelu": {"activation": "gelu"},
    "silu, one layer": {"activation": "silu", "layers": 1},
    "residual": {"activation": "tanh", "residual": True, "layers": 3},
    "expanded, bilinear": {"activation": "tanh", "expand_coords": True, "bilinear": True},
    "fourier": {"activation": "tanh", "fourier_features": 12, "fourier_learnable": True},
    "fourier, bilinear": {"activation": "gelu", "fourier_features": 12, "bilinear": True},
}
KINKED = {name: GENERATORS[name] for name in ("leaky_relu", "three layers", "expanded")}


def flat(gradients, names):
    return torch.cat([gradients[name].double().flatten() for name in names])


def compare(make, options, given, half):
    """The relative errors of log-likelihoods, and errors and cosines of their gradients."""
    exact = make(300, (1, 20, 20), hidden=16, **options)
    model = copy.deepcopy(exact).float()
    image, latents, weights = some_images(exact), some_latents(exact), positive(SAMPLES, BATCH)
    value, gradients = with_gradients(
        lambda latents: plain(exact, image, latents), exact, latents, weights
    )
    weights = weights.float()

    def function(latents):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return model.log_likelihood(image.float(), latents, weights=weights if given else None)

    found = with_gradients(function, model, latents.map(torch.Tensor.float), weights)
    assert found[0].dtype == torch.float32
    assert all(gradient.dtype == torch.float32 for gradient in found[1].values())
    errors, cosines = [], []
    pose = ["z", "theta", "shift"]
    for names in ([name for name in gradients if name not in pose], pose):
        a, b = flat(found[1], names), flat(gradients, names)
        errors.append(((a - b).norm() / b.norm()).item())
        cosines.append(torch.cosine_similarity(a, b, dim=0).item())
    return ((found[0] - value) / value).abs().max().item(), max(errors), min(cosines)


@pytest.mark.parametrize("options", SMOOTH.values(), ids=list(SMOOTH))
@pytest.mark.parametrize("given", [True, False])
def test_single_precision(make, options, given):
    value, error, _ = compare(make, options, given, half=False)
    assert value < 1e-5
    assert error < 1e-4


@pytest.fixture(params=["onednn", "without onednn"])
def multiplication(request):
    """Both ways of bfloat16: with layers fused where the machine can, and without."""
    with torch.backends.mkldnn.flags(enabled=request.param == "onednn"):
        yield


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.usefixtures("multiplication")
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("options", [*SMOOTH.values(), *KINKED.values()], ids=[*SMOOTH, *KINKED])
def test_half_precision(make, options, given):
    """Bounds are three times what was measured."""
    smooth = options in SMOOTH.values()
    value, error, cosine = compare(make, options, given, half=True)
    assert value < (1e-3 if smooth else 3e-3)
    assert error < (0.03 if smooth else 0.075)
    assert cosine > 1 - (1e-4 if smooth else 1e-3)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("options", [{}, {"activation": "gelu"}], ids=str)
def test_half_precision_is_that_of_the_forward_pass(make, options, given):
    """Wherever the gradient is asked for, and whatever was evaluated before."""
    model = make(50, **options).float()
    image, latents = some_images(model), some_latents(model)
    weights = positive(SAMPLES, BATCH).float()
    half = partial(torch.autocast, "cpu", torch.bfloat16)
    function = partial(model.log_likelihood, image, latents, weights=weights if given else None)
    parameters = tuple(model.generator.parameters())

    def gradients(value):
        return torch.autograd.grad(value, parameters, weights)

    single = gradients(function())
    with half():
        value = function()
    outside = gradients(value)
    with half():
        inside = gradients(function())
    with half():
        # Autocast keeps rounded weights: not those that were made without gradients.
        with torch.no_grad():
            function()
        model.log_likelihood(image, latents)
        value = function()
        evaluated = gradients(value)
    value = function()
    with half():
        not_half = gradients(value)
    for found in (inside, evaluated):
        for a, b in zip(found, outside, strict=True):
            assert torch.equal(a, b)
    for a, b in zip(not_half, single, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert any((a - b).norm() > 1e-3 * b.norm() for a, b in zip(outside, single, strict=True))


# ---- the whole bound


def bounds_and_gradients(model, image, outer):
    model.zero_grad()
    elbo = model.training_elbo(image, NOISE, 0)
    elbo.objective(model.beta).backward(outer)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return elbo.value.detach(), {k: v for k, v in gradients.items() if v is not None}


@pytest.mark.parametrize(
    ("sampling", "points"),
    [(Truncated(3), 3), (Truncated(100), 36), (StraightThrough(), 1)],
    ids=["three points", "all points", "one point"],
)
@pytest.mark.parametrize("pixels", [None, 13])
@pytest.mark.parametrize("alike", [True, False])
def test_bounds_of_a_lattice_of_poses(make_model, generated, sampling, points, pixels, alike):
    """The weights of the points are trained too; of images alike, they are all that differs."""
    shape = (1, 7, 7)
    model = make_model(
        shape,
        prior={"z": GaussianPrior(2), "theta": UniformAngle(), "shift": GaussianShift(1.4, shape)},
        encoder=partial(GroupConv, group_order=4, channels=4, kernel_size=5, padding=0),
        posterior=partial(Attention, sampling=sampling),
        generator=partial(CoordinateMLP, hidden=8, chunk_pixels=60),
        pixels_per_image=pixels,
        pixel_focus=0.5,
        beta=1.5,
    ).double()
    with torch.no_grad():
        # Away from equal weights.
        for parameter in model.posterior.parameters():
            parameter.mul_(4.0)
    image = some_images(model)
    outer = torch.full((BATCH,), -0.25, dtype=torch.float64)
    if not alike:
        outer = torch.randn(BATCH, dtype=torch.float64)
    found = bounds_and_gradients(model, image, outer)
    evaluated = sum(count for count, _ in generated)
    scored = points * BATCH * (pixels or 49)
    # What fits one chunk is kept, and not computed again.
    assert evaluated == scored * (1 if alike or scored <= 60 else 2)
    model.log_likelihood = lambda image, latents, pixels, weights: plain(
        model, image, latents, pixels
    )
    expected = bounds_and_gradients(model, image, outer)
    assert set(expected[1]) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert_same(found, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("generator", ["leaky_relu", "fourier", "bilinear"])
def test_compiled_networks_compute_the_same(make, generator):
    model = make(7, **GENERATORS[generator])
    image = some_images(model)
    expected = bounds_and_gradients(model, image, torch.ones(BATCH).double())
    names = set(model.state_dict())
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    model.compile(backend=backend)
    found = bounds_and_gradients(model, image, torch.ones(BATCH).double())
    assert compiled
    assert_same(found, expected)
    assert set(model.state_dict()) == names
