"""The CTF against formulas written out, and a model that sees through it."""

import cmath
import math
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch.testing import assert_close

from svae.ctf import CTF, CTF_PARAMS, PHASES_FLIPPED, PREMULTIPLIED, ctf
from svae.datasets import ImageDataModule
from svae.generators import PixelMLP
from svae.geometry import pixel_grid, pixel_size, to_object_frame
from svae.inferred import infer_batch
from svae.latents import Latents
from svae.likelihoods import Bernoulli, Gaussian, PerPixelGaussian
from svae.metrics.bounds import importance_weighted_bound
from svae.module import VAEModule
from svae.noise import Noise
from svae.schedules import constant

USUAL = {
    "defocus_u_A": 15000.0,
    "defocus_v_A": 15000.0,
    "astigmatism_deg": 0.0,
    "voltage_kV": 300.0,
    "cs_mm": 2.7,
    "amplitude_contrast": 0.1,
    "phase_shift_deg": 0.0,
    "pixel_size_A": 1.5,
    "b_factor_A2": 0.0,
}
ASTIGMATIC = {"defocus_u_A": 18000.0, "defocus_v_A": 12000.0, "astigmatism_deg": 35.0}


def params(**changed):
    """One row of numbers, (1, 9)."""
    return torch.tensor([[(USUAL | changed)[name] for name in CTF_PARAMS]])


def by_hand(values, height, width):
    """Frequency by frequency, from Planck's constant on; RELION's sign and its axes."""
    h, m, e, c = 6.62607015e-34, 9.1093837015e-31, 1.602176634e-19, 299792458.0
    volts = values["voltage_kV"] * 1e3
    momentum = math.sqrt(2 * m * e * volts * (1 + e * volts / (2 * m * c**2)))
    wavelength = h / momentum * 1e10
    rows = []
    for i in range(height):
        y = (i if i < (height + 1) // 2 else i - height) / height / values["pixel_size_A"]
        for j in range(width // 2 + 1):
            x = j / width / values["pixel_size_A"]
            s = math.hypot(x, y)
            # From x, the columns, towards y, the rows.
            angle = math.atan2(y, x) - math.radians(values["astigmatism_deg"])
            u, v = values["defocus_u_A"], values["defocus_v_A"]
            defocus = u * math.cos(angle) ** 2 + v * math.sin(angle) ** 2
            gamma = math.pi / 2 * values["cs_mm"] * 1e7 * wavelength**3 * s**4
            gamma -= math.pi * wavelength * defocus * s**2 + math.radians(
                values["phase_shift_deg"]
            )
            w = values["amplitude_contrast"]
            value = -math.sqrt(1 - w**2) * math.sin(gamma) + w * math.cos(gamma)
            rows.append(value * math.exp(-values["b_factor_A2"] * s**2 / 4))
    return torch.tensor(rows).view(height, width // 2 + 1)


CASES = {
    "usual": {},
    "astigmatic": ASTIGMATIC,
    "a phase plate": {"phase_shift_deg": 90.0, "defocus_u_A": 5000.0, "defocus_v_A": 5000.0},
    "damped": {"b_factor_A2": 80.0},
    "another microscope": {"voltage_kV": 120.0, "cs_mm": 2.0, "amplitude_contrast": 0.07},
    "far from focus, fine": {"defocus_u_A": 40000.0, "defocus_v_A": 39000.0, "pixel_size_A": 1.2},
    "overfocus": {"defocus_u_A": -9000.0, "defocus_v_A": -8000.0, "astigmatism_deg": -70.0},
}


@pytest.mark.parametrize("shape", [(16, 16), (15, 12), (9, 21)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_formula(case, shape):
    values = USUAL | CASES[case]
    found = ctf(params(**values), *shape)
    assert found.shape == (1, shape[0], shape[1] // 2 + 1)
    assert found.dtype == torch.float32
    # The constants of the wavelength have 6 digits, and there are up to 800 radians.
    assert_close(found[0], by_hand(values, *shape), atol=5e-3, rtol=0)


@pytest.mark.parametrize("case", ["usual", "astigmatic", "a phase plate", "another microscope"])
def test_it_is_that_of_torch_ctf(case):
    torch_ctf = pytest.importorskip("torch_ctf")
    values = USUAL | CASES[case]
    u, v = values["defocus_u_A"] / 1e4, values["defocus_v_A"] / 1e4
    expected = torch_ctf.calculate_ctf_2d(
        defocus=(u + v) / 2,
        astigmatism=(u - v) / 2,
        astigmatism_angle=values["astigmatism_deg"],
        voltage=values["voltage_kV"],
        spherical_aberration=values["cs_mm"],
        amplitude_contrast=values["amplitude_contrast"],
        phase_shift=values["phase_shift_deg"],
        pixel_size=values["pixel_size_A"],
        image_shape=(32, 40),
        rfft=True,
        fftshift=False,
    )
    assert_close(ctf(params(**values), 32, 40)[0], expected.squeeze(0), atol=1.5e-3, rtol=0)


def test_at_no_frequency_it_is_the_amplitude_contrast():
    """Positive: what is bright stays bright; and without any, a phase plate alone is left."""
    assert ctf(params(), 8, 8)[0, 0, 0].item() == pytest.approx(0.1)
    plate = params(amplitude_contrast=0.0, phase_shift_deg=90.0)
    assert ctf(plate, 8, 8)[0, 0, 0].item() == pytest.approx(1.0)
    # Underfocus makes it grow from there.
    assert ctf(params(), 64, 64)[0, 0, 1] > 0.1


def test_the_angle_goes_from_columns_to_rows():
    """The first zero lies nearest to the centre where the defocus is largest: along u."""
    values = ctf(params(**ASTIGMATIC | {"astigmatism_deg": 45.0}), 33, 33)[0]
    same, other = values[4, 4], values[-4, 4]  # down and right; up and right
    strong = by_hand(USUAL | {"defocus_u_A": 18000.0, "defocus_v_A": 18000.0}, 33, 33)[4, 4]
    weak = by_hand(USUAL | {"defocus_u_A": 12000.0, "defocus_v_A": 12000.0}, 33, 33)[4, 4]
    assert same.item() == pytest.approx(strong.item(), abs=1e-3)
    assert other.item() == pytest.approx(weak.item(), abs=1e-3)


def test_what_was_applied_is_respected():
    rows = params(**ASTIGMATIC).expand(3, -1)
    plain = ctf(rows[:1], 12, 14)[0]
    found = ctf(rows, 12, 14, torch.tensor([0, PHASES_FLIPPED, PREMULTIPLIED]))
    assert_close(found, torch.stack((plain, plain.abs(), plain**2)))
    assert plain.min() < -0.5


def test_parameters_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"params: expected shape \(B, 9\), got \(1, 8\)"):
        ctf(params()[:, :8], 8, 8)


def some_ctfs(count):
    rows = params().repeat(count, 1)
    rows[:, 0] += 3000 * torch.arange(count)
    rows[:, 2] = 20.0 * torch.arange(count)
    return CTF(rows, torch.arange(count) % 3)


@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("shape", [(9, 11), (8, 10)], ids=str)
def test_filtering_is_a_sum_over_frequencies(shape, padding):
    """Of a single bright pixel: the point-spread function, as a cosine sum around it."""
    height, width = shape
    image = torch.zeros(2, 1, *shape, dtype=torch.float64)
    image[:, 0, 3, 4] = 1.0
    ctfs = some_ctfs(2)
    found = ctfs.filtered(image, padding)
    h, w = padding * height, padding * width
    for k in range(2):
        values = ctf(ctfs.params[k : k + 1], h, w, ctfs.applied[k : k + 1])[0].double()
        for i, j in ((3, 4), (0, 0), (7, 9)):
            total = 0.0
            for a in range(h):
                for b in range(w):
                    half = values[a, b] if b <= w // 2 else values[-a % h, w - b]
                    wave = cmath.exp(2j * math.pi * (a * (i - 3) / h + b * (j - 4) / w))
                    total += (half * wave).real
            # Frequencies at the end of an even size have no partner of the other sign.
            expected = pytest.approx(float(total) / (h * w), abs=2e-3)
            assert found[k, 0, i, j].item() == expected


@pytest.mark.parametrize("shape", [(9, 11), (9, 8)], ids=str)
def test_the_mirror_image_of_what_is_seen_is_the_mirror_image_seen(shape):
    """But for the last frequency of an even height, of which there is one of two signs."""
    image = torch.rand(2, 1, *shape)
    ctfs, which = some_ctfs(2), torch.tensor([False, True])
    ctfs.params[:, 2] += 10
    found = ctfs.mirrored(which).filtered(torch.stack((image[0], image[1].flip(-1))))
    expected = ctfs.filtered(image)
    assert_close(found, torch.stack((expected[0], expected[1].flip(-1))))
    assert not torch.allclose(found[1], ctfs.filtered(image.flip(-1))[1], atol=1e-3)


def test_padding_keeps_what_leaves_an_image_from_coming_back():
    image = torch.zeros(1, 1, 32, 32)
    image[..., 0] = 1.0
    near = params(defocus_u_A=3000.0, defocus_v_A=3000.0, pixel_size_A=4.0, b_factor_A2=300.0)
    ctfs = CTF(near, torch.zeros(1, dtype=torch.long))
    around, out = ctfs.filtered(image), ctfs.filtered(image, 2)
    assert around[..., -6:].abs().max() > 10 * out[..., -6:].abs().max()


def test_channels_are_filtered_alike():
    images = torch.randn(2, 3, 8, 9)
    ctfs = some_ctfs(2)
    assert_close(ctfs.filtered(images)[:, 2:], ctfs.filtered(images[:, 2:]))


def test_a_batch_without_a_ctf_has_none():
    assert CTF.of({"image": torch.zeros(1)}) is None
    found = CTF.of({"ctf": params(), "ctf_applied": torch.tensor([1])})
    assert found.applied.tolist() == [1]
    assert CTF.of({"ctf": params()}).applied.tolist() == [0]


# ---- a model that sees through it

INDEX = torch.arange(3)
NOISE = Noise(0, 0, INDEX)
LIKELIHOODS = {
    "gaussian": partial(Gaussian, std=0.7, learn_std=True),
    "per-pixel noise": PerPixelGaussian,
    "nonnegative": partial(Gaussian, learn_std=True, nonnegative_mean=True),
    "masks": partial(
        PerPixelGaussian,
        nonnegative_mean=True,
        mask_radius_px=3.0,
        object_radius_px=1.5,
        object_edge_px=2.0,
    ),
    "padding": partial(Gaussian, learn_std=True, mask_radius_px=2.5, ctf_padding=2),
}


def some(model, samples=2):
    """Images, latents and CTFs."""
    count, shape = len(INDEX), model.image_shape
    latents = Latents(
        torch.randn(samples, count, model.z_dim),
        torch.randn(samples, count),
        0.3 * torch.randn(samples, count, 2),
    ).map(lambda value: value.to(model.grid))
    return torch.randn(count, *shape).to(model.grid), latents, some_ctfs(count)


@pytest.mark.parametrize("padding", [1, 2])
def test_the_likelihood_is_that_of_the_filtered_decoded_image(make_model, padding):
    """The noise is not filtered, and pixels out of the mask count for nothing."""
    likelihood = partial(Gaussian, std=0.5, mask_radius_px=3.0, ctf_padding=padding)
    model = make_model(likelihood=likelihood)
    images, latents, ctfs = some(model, 1)
    seen = ctfs.filtered(model.decode(latents[0]), padding)
    assert_close(model.decode(latents[0], ctf=ctfs), seen)
    inside = pixel_grid(9, 9).norm(dim=-1).view(9, 9) <= 3.0 * pixel_size(9, 9) + 1e-6
    normal = torch.distributions.Normal(seen, 0.5)
    expected = (normal.log_prob(images) * inside).sum((1, 2, 3))
    assert_close(model.log_likelihood(images, latents, ctf=ctfs)[0], expected)


def test_the_noise_of_a_pixel_is_its_own(make_model):
    model = make_model(likelihood=partial(PerPixelGaussian, min_std=0.1))
    images, latents, ctfs = some(model, 1)
    coords = to_object_frame(model.grid, latents.theta[0], latents.shift[0])
    raw = model.generator(coords, latents.z[0])[..., 1]
    std = torch.nn.functional.softplus(raw) + 0.1
    mean = ctfs.filtered(model.decode(latents[0])).flatten(1)
    expected = torch.distributions.Normal(mean, std).log_prob(images.flatten(1)).sum(1)
    assert_close(model.log_likelihood(images, latents, ctf=ctfs)[0], expected)


def gradients(model, value, latents, outer):
    parts = (model.generator, model.likelihood)
    inputs = [p for part in parts for p in part.parameters() if p.requires_grad]
    inputs += [latents.z, latents.theta, latents.shift]
    return torch.autograd.grad(value, inputs, outer)


@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=list(LIKELIHOODS))
@pytest.mark.parametrize(("shape", "chunk"), [((1, 6, 7), 9), ((3, 5, 4), 13), ((1, 6, 7), 100)])
def test_the_engine_finds_the_gradients_of_the_whole(make_model, likelihood, chunk, shape):
    """Chunks of a part of an image, whole images and several, against all in one piece."""
    model = make_model(shape, likelihood=likelihood).double()
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.mul_(1.5)
    images, latents, ctfs = some(model)
    latents = latents.map(lambda value: value.requires_grad_())
    weights = torch.rand(2, 3, dtype=torch.float64) + 0.1
    other = torch.randn(2, 3, dtype=torch.float64)
    for given, outer in ((None, other), (weights, -2 * weights), (weights, other)):
        model.generator.chunk_pixels = None
        whole = model.log_likelihood(images, latents, ctf=ctfs)
        expected = gradients(model, whole, latents, outer)
        model.generator.chunk_pixels = chunk
        value = model.log_likelihood(images, latents, None, given, ctf=ctfs)
        assert_close(value, whole, atol=1e-10, rtol=1e-10)
        found = gradients(model, value, latents, outer)
        assert all(gradient.any() for gradient in expected)
        assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_an_image_at_a_time_is_decoded_whole(make_model, monkeypatch):
    """What is kept does not grow with the number of images, nor with the width of a layer."""
    model = make_model((1, 20, 20), likelihood=Gaussian)
    model.generator.chunk_pixels = 50
    images, latents, ctfs = some(model)
    sizes = []
    pixels = model.generator.pixels
    monkeypatch.setattr(
        model.generator, "pixels", lambda c, z: (sizes.append(c.shape), pixels(c, z))[1]
    )
    filtered = []
    monkeypatch.setattr(
        CTF, "filtered", lambda self, seen, padding: (filtered.append(seen.shape), seen)[1]
    )
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        weights = torch.ones(2, 3)
        value = model.log_likelihood(images, latents, None, weights, ctf=ctfs)
        inside = max(kept)
        kept.clear()
    value.sum().backward()
    assert set(sizes) == {torch.Size((1, 50, 2))}
    assert filtered == [torch.Size((1, 1, 20, 20))] * 6
    # Inside the pass, an image with two coordinates and some for the rotation; after it nothing.
    assert inside <= 400 * 8
    assert not kept


def test_no_gradients_without_gradients(make_model):
    model = make_model(likelihood=Gaussian)
    images, latents, ctfs = some(model)
    expected = model.log_likelihood(images, latents, ctf=ctfs).detach()
    with torch.inference_mode():
        value = model.log_likelihood(images, latents, ctf=ctfs)
    assert not value.requires_grad
    assert_close(value, expected)


def test_half_precision_is_near(make_model):
    model = make_model(likelihood=Gaussian)
    model.generator.chunk_pixels = 20
    images, latents, ctfs = some(model)
    latents = latents.map(lambda value: value.requires_grad_())
    outer = torch.ones(2, 3)

    def both():
        value = model.log_likelihood(images, latents, None, outer, ctf=ctfs)
        return value.detach(), torch.cat(
            [g.flatten() for g in gradients(model, value, latents, outer)]
        )

    exact = both()
    with torch.autocast("cpu", torch.bfloat16):
        half = both()
    assert half[0].dtype == half[1].dtype == torch.float32
    assert_close(half[0], exact[0], rtol=3e-3, atol=0)
    assert (half[1] - exact[1]).norm() < 0.075 * exact[1].norm()


def test_a_generator_of_all_pixels_is_filtered_too(make_model):
    model = make_model(
        likelihood=partial(Gaussian, mask_radius_px=3.0),
        generator=partial(PixelMLP, hidden=8),
        infer_theta=False,
        infer_shift=False,
    )
    images, latents, ctfs = some(model, 1)
    seen = ctfs.filtered(model.decode(latents[0]))
    normal = torch.distributions.Normal(seen, 1.0).log_prob(images).flatten(1)
    expected = normal[:, model.likelihood.scored_pixels].sum(1)
    assert_close(model.log_likelihood(images, latents, ctf=ctfs)[0], expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=list(LIKELIHOODS))
def test_the_bound_stays_below_the_evidence(make_model, likelihood):
    model = make_model(likelihood=likelihood)
    images, _, ctfs = some(model)
    with torch.no_grad():
        elbo = model.elbo(images, NOISE, samples=1000, ctf=ctfs).value
        weights = model.importance_log_weights(images, Noise(0, 1, INDEX), 1000, ctf=ctfs)
    error = weights.std(0).max().item() / math.sqrt(1000)
    assert_close(weights.mean(0), elbo, atol=6 * error, rtol=0)
    assert (importance_weighted_bound(weights) > elbo - 6 * error).all()


def test_candidates_are_told_apart_through_the_ctf(make_model):
    # Of images large enough that elsewhere some of their pixels would do.
    likelihood = partial(Gaussian, std=0.1)
    model = make_model((1, 13, 13), likelihood=likelihood, pose_candidates=4)
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.mul_(4.0)
    images, _, ctfs = some(model)

    def bound(q):
        kl = torch.stack(list(q.kl(model.priors).values())).sum(0)
        return model.log_likelihood(images, q.mode()[None], ctf=ctfs)[0] - kl

    best, one = bound(model.infer(images, ctf=ctfs)), bound(model.infer(images, 1))
    assert (best >= one - 1e-2).all()
    assert (best > one + 1e-2).any()
    assert (bound(model.infer(images)) < best - 1e-2).any()
    assert_close(
        model.encode(images, 2, ctf=ctfs).theta, model.infer(images, ctf=ctfs).mode().theta
    )


def test_what_a_ctf_does_not_go_with_is_named(make_model):
    model = make_model(likelihood=Gaussian, pixels_per_image=20)
    images, latents, ctfs = some(model)
    with pytest.raises(
        ValueError, match=r"model.pixels_per_image: expected null .*dataset.ctf=forward.* got 20"
    ):
        model.check_ctf()
    with pytest.raises(ValueError, match="pixels: expected None with a CTF"):
        model.training_elbo(images, NOISE, 0, ctf=ctfs)
    model = make_model(likelihood=Bernoulli)
    for act in (
        model.check_ctf,
        lambda: model.log_likelihood(images, latents, ctf=ctfs),
        lambda: model.decode(latents[0], ctf=ctfs),
    ):
        with pytest.raises(
            ValueError, match=r"model/likelihood: expected gaussian .*got Bernoulli"
        ):
            act()


def test_what_is_inferred_of_a_batch_is_seen_through_its_ctf(make_model, monkeypatch):
    seen = []
    filtered = CTF.filtered

    def recorded(self, images, padding=1):
        seen.append(self.params[:, 0])
        return filtered(self, images, padding)

    monkeypatch.setattr(CTF, "filtered", recorded)
    model = make_model(likelihood=Gaussian)
    images, _, ctfs = some(model)
    batch = {"image": images, "index": INDEX, "ctf": ctfs.params, "ctf_applied": ctfs.applied}
    found, _ = infer_batch(model, batch)
    assert torch.cat(seen).tolist() == [15000.0, 18000.0, 21000.0]
    expected = model.log_likelihood(images, found.latents[None], ctf=ctfs)[0]
    assert_close(found.log_likelihood, expected)


class Filtered(ImageDataModule):
    """Noise, with CTFs."""

    def read(self):
        def split(first):
            index = torch.arange(first, first + 3)
            ctfs = some_ctfs(3)
            image = Noise(0, "image", index).normal("pixels", 1, 9, 9).float()
            return {
                "image": image,
                "index": index,
                "ctf": ctfs.params,
                "ctf_applied": ctfs.applied,
            }

        return {"train": split(0), "val": split(3), "test": split(6)}


def test_every_step_is_given_it(make_model, monkeypatch):
    """Training, validation and test: with every image decoded, none is scored unfiltered."""
    calls = {"filtered": 0, "scored": 0}
    filtered, log_prob = CTF.filtered, Gaussian.log_prob

    def counted(self, images, padding=1):
        calls["filtered"] += len(images)
        return filtered(self, images, padding)

    def scored(self, params, target, mean=None):
        calls["scored"] += len(params)
        return log_prob(self, params, target, mean)

    monkeypatch.setattr(CTF, "filtered", counted)
    monkeypatch.setattr(Gaussian, "log_prob", scored)
    model = make_model(likelihood=Gaussian, pose_candidates=2)
    module = VAEModule(model, partial(torch.optim.Adam, lr=1e-3), constant, iwae_samples=2)
    data = Filtered(batch_size=3)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    # One in training; two candidates and the bound; the same and two samples.
    assert calls["filtered"] == calls["scored"] == 3 * (1 + 3 + 5)
