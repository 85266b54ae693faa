"""`model/likelihood=auto`, and what it decides."""

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import instantiate
from tests.helpers import run_command

import svae.train
from svae.likelihoods import Bernoulli, Gaussian, fitting

#: Mostly black or white; a few pixels are grey.
DIGITS = torch.tensor([[0.0, 0.1, 1.0, 0.0], [0.9, 0.0, 0.5, 1.0]])
GREY = torch.tensor([[0.3, 0.5, 0.6, 0.4], [0.5, 0.45, 0.7, 0.35]])


def made(*images, **options):
    return instantiate(fitting(images, **options))(image_shape=(1, 9, 9))


def test_black_and_white_is_bernoulli():
    assert type(made(DIGITS, DIGITS[:1])) is Bernoulli
    assert type(made(DIGITS.round())) is Bernoulli


def test_grey_tones_are_gaussian_and_as_wide_as_the_pixels_of_all_parts():
    likelihood = made(GREY[:1], GREY[1:])
    assert type(likelihood) is Gaussian
    expected = GREY.std(correction=0).item()
    assert likelihood.log_std.exp().item() == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("mean", [0.02, 0.3, 0.9])
def test_the_share_of_the_variance_decides_whatever_the_mean(mean):
    """Pixels m + s (b - m), b being 0 or 1 with mean m, have s^2 of the variance m (1 - m)."""
    count = 1000
    ones = torch.zeros(count)
    ones[: round(mean * count)] = 1
    kinds = [type(made(mean + share**0.5 * (ones - mean))) for share in (0.38, 0.42)]
    assert kinds == [Gaussian, Bernoulli]


@pytest.mark.parametrize("value", [-1e-6, 1 + 1e-6, float("nan"), float("inf")])
def test_one_value_outside_in_any_part_makes_it_gaussian(value):
    likelihood = made(DIGITS, torch.tensor([0.5, value]))
    assert type(likelihood) is Gaussian
    assert likelihood.log_std.requires_grad
    assert likelihood.log_std.isfinite()
    assert not likelihood.nonnegative_mean


@pytest.mark.parametrize("value", [0.5, 7.0])
def test_images_of_one_value_have_a_width_as_well(value):
    assert made(torch.full((3, 4), value)).log_std.item() == 0


@pytest.mark.parametrize("images", [DIGITS, GREY, DIGITS * 3], ids=["digits", "grey", "outside"])
def test_the_mask_is_kept(images):
    assert len(made(images).scored_pixels) == 81
    assert len(made(images, mask_radius_px=1).scored_pixels) == 5


TINY = [
    "dataset=images",
    "model.encoder.hidden=8",
    "model.generator.hidden=8",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.enable_progress_bar=false",
    "~callbacks.figures",
    "test=false",
]


def write_stack(folder, scale):
    stack = np.random.default_rng(0).random((20, 12, 12)) < 0.3
    np.save(folder / "stack.npy", stack.astype(np.float32) * scale)
    return f"dataset.path={folder / 'stack.npy'}"


@pytest.mark.parametrize(
    ("normalize", "target"),
    [("none", "svae.likelihoods.Gaussian"), ("range", "svae.likelihoods.Bernoulli")],
)
def test_the_config_of_a_run_holds_what_was_chosen(tmp_path, normalize, target):
    run = tmp_path / "run"
    options = [f"dataset.normalize={normalize}", "model.likelihood.mask_radius_px=4"]
    run_command(svae.train.main, f"hydra.run.dir={run}", *TINY, write_stack(tmp_path, 5), *options)
    likelihood = yaml.safe_load((run / "config.yaml").read_text())["model"]["likelihood"]
    assert likelihood["_target_"] == target
    assert likelihood["mask_radius_px"] == 4
    assert likelihood.get("learn_std", False) is (normalize == "none")
    loaded = svae.load(run).likelihood
    assert len(loaded.scored_pixels) < 144
    if normalize == "none":
        assert likelihood["std"] == pytest.approx(5 * 0.21**0.5, rel=0.05)
        trained = loaded.log_std.exp().item()
        assert trained != pytest.approx(likelihood["std"], rel=1e-4)


def test_a_likelihood_that_the_data_contradict_is_named(tmp_path, capfd):
    options = [write_stack(tmp_path, 5), "dataset.normalize=none", "model/likelihood=bernoulli"]
    with pytest.raises(SystemExit):
        run_command(svae.train.main, f"hydra.run.dir={tmp_path / 'run'}", *TINY, *options)
    (line,) = capfd.readouterr().out.splitlines()
    assert "Bernoulli likelihood expects pixel values from 0 to 1, got" in line
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()
