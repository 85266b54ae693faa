import json
import math

import pytest
import torch
from omegaconf import OmegaConf
from scipy import stats
from tests.helpers import run_command
from torch.testing import assert_close

import svae.train
from svae.ctf import ctf
from svae.datasets import Hinge
from svae.geometry import pixel_size, remove_pose, rotate
from svae.simulation import project, resolution_std, two_domains

FEW = {"train_images": 60, "val_images": 20, "test_images": 30}


def splits(**options):
    data = Hinge(**(FEW | options))
    data.setup()
    return data.splits


def correlation(a, b):
    return torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1].item()


def drawn(data, conformation, theta, shift_px=(0.0, 0.0)):
    """A projection of the built-in molecule (H, W), from the pose that a batch says."""
    points = two_domains().positions(torch.tensor([conformation]))[..., :2] / data.pixel_size
    points = rotate(points, torch.tensor(theta).double()) + torch.tensor(shift_px)
    std = resolution_std(data.resolution) / data.pixel_size
    return project(points, two_domains().weights, std, data.image_size, data.image_size)[0]


def test_the_paper_s_numbers_of_images():
    data = Hinge()
    assert data.counts == {"train": 15_000, "val": 1_000, "test": 4_000}
    assert data.image_size == 40


@pytest.mark.parametrize("size", [40, 41])
def test_without_its_pose_every_image_of_one_conformation_is_the_same(size):
    still = {"swing_deg": 1e-6, "snr": None, "image_size": size, "shift_std_px": 1.0}
    train = splits(**still, resolution_A=20.0, pixel_size_A=4.5)["train"]
    back = remove_pose(train["image"], train["theta"], train["shift"])[:, 0]
    wrong = remove_pose(train["image"], -train["theta"], train["shift"])[:, 0]
    assert min(correlation(image, back[0]) for image in back) > 0.99
    assert min(correlation(image, wrong[0]) for image in wrong[1:]) < 0.7
    unmoved = remove_pose(train["image"], train["theta"], -train["shift"])[:, 0]
    assert min(correlation(image, unmoved[0]) for image in unmoved) < 0.9


def test_an_image_is_the_molecule_in_the_pose_and_conformation_of_the_batch():
    data = Hinge(**FEW, snr=None, shift_std_px=0.5)
    data.setup()
    train = data.splits["train"]
    for i in range(5):
        shift_px = train["shift"][i] / pixel_size(40, 40)
        theta, conformation = train["theta"][i].item(), train["conformation"][i].item()
        image = drawn(data, conformation, theta, shift_px.tolist())
        scale = image.std() / train["image"][i].std()
        assert_close(train["image"][i, 0] * scale, image, atol=1e-4 * image.max().item(), rtol=0)
        other = drawn(data, 1 - conformation, theta, shift_px.tolist())
        assert correlation(train["image"][i, 0], other) < 0.999 or abs(conformation - 0.5) < 0.02


def test_the_ratio_is_that_of_the_variances_within_the_mask():
    clean, noisy, noisier = (splits(snr=snr)["train"] for snr in (None, 0.1, 0.01))
    for snr, train in ((0.1, noisy), (0.01, noisier)):
        noise = train["image"] - math.sqrt(snr) * clean["image"]
        assert noise.mean().item() == pytest.approx(0, abs=0.02)
        assert noise.std().item() == pytest.approx(1, abs=0.02)
        assert stats.kstest(noise.flatten()[:5000], "norm").pvalue > 1e-3
    # The mask by itself, from the molecule.
    data = Hinge(**FEW, snr=None)
    data.setup()
    upright = torch.stack([drawn(data, c / 8, 0.0) for c in range(9)])
    inside = upright.amax(0) >= 0.05 * upright.max()
    unit = upright[:, inside].var(1, correction=0).mean().sqrt()
    train = data.splits["train"]
    theta, conformation = train["theta"][0].item(), train["conformation"][0].item()
    assert_close(train["image"][0, 0] * unit, drawn(data, conformation, theta), atol=1e-3, rtol=0)


def test_an_image_is_a_function_of_the_seed_and_its_index():
    options = {"shift_std_px": 1.0, "defocus_A": [9000.0, 15000.0], "astigmatism_A": 300.0}
    one, other = splits(**options), splits(**options, seed=2)
    same = splits(**options, train_images=7, val_images=73)
    everything = {n: torch.cat([one[s][n] for s in one]) for n in one["train"]}
    for split in same.values():
        for name in everything:
            assert torch.equal(split[name], everything[name][split["index"]]), name
    assert not torch.isclose(one["train"]["theta"], other["train"]["theta"]).any()
    index = everything["index"]
    assert index.tolist() == list(range(110))


def test_conformations_and_poses_are_spread_as_was_asked_for():
    still = {"image_size": 8, "pixel_size_A": 30.0, "snr": None}
    train = splits(**still, train_images=3000, shift_std_px=1.5)["train"]
    assert stats.kstest(train["conformation"].double(), "uniform").pvalue > 1e-3
    assert stats.kstest((train["theta"].double() / math.pi + 1) / 2, "uniform").pvalue > 1e-3
    shift_px = train["shift"].double() / pixel_size(8, 8)
    assert stats.kstest(shift_px.flatten() / 1.5, "norm").pvalue > 1e-3
    normal = splits(**still, train_images=3000, conformation_distribution="normal")["train"]
    cut = stats.truncnorm(-3, 3, loc=0.5, scale=1 / 6)
    assert stats.kstest(normal["conformation"].double(), cut.cdf).pvalue > 1e-3
    narrow = splits(**still, theta_distribution="normal", theta_std_deg=0.0)["train"]
    assert {"theta", "shift", "ctf"}.isdisjoint(narrow)


@pytest.mark.parametrize("size", [40, 41])
def test_the_ctf_of_the_batch_is_that_of_the_images(size):
    options = {"snr": None, "image_size": size, "b_factor_A2": 300.0, "pixel_size_A": 6.0}
    data = Hinge(**FEW, **options, defocus_A=[4000, 9000], astigmatism_A=500)
    data.setup()
    test = data.splits["test"]
    assert test["ctf_applied"].tolist() == [0] * 30
    u, v = test["ctf"][:, 0], test["ctf"][:, 1]
    assert_close(u - v, torch.full((30,), 500.0), atol=1e-2, rtol=0)
    assert ((u + v) / 2 >= 4000).all()
    assert ((u + v) / 2 <= 9000).all()
    assert test["ctf"][0, 3:].tolist() == pytest.approx([300, 2.7, 0.1, 0, 6, 300])
    clean = Hinge(**FEW, **options)
    clean.setup()
    # The particle is small in its image, so that little leaves it.
    spectrum = torch.fft.rfft2(clean.splits["test"]["image"][:, 0]) * ctf(test["ctf"], size, size)
    expected = torch.fft.irfft2(spectrum, s=(size, size))
    for image, seen in zip(expected, test["image"][:, 0], strict=True):
        assert correlation(image, seen) > 0.995


def test_what_was_left_open_is_found():
    data = Hinge(**FEW)
    data.setup()
    found = data.found()
    assert found["resolution_A"] == 3 * found["pixel_size_A"]
    same = splits(**found)
    assert torch.equal(same["test"]["image"], data.splits["test"]["image"])
    reach = two_domains().positions(torch.linspace(0, 1, 9))[..., :2].norm(dim=-1).max().item()
    assert reach / found["pixel_size_A"] == pytest.approx(0.9 * 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"open": "x.pdb"}, "closed, open: expected two structures or neither, got None and 'x"),
        ({"chain": "A"}, "chain: expected null without closed and open"),
        ({"swing_deg": 0.0}, "swing_deg: expected a number above 0"),
        ({"conformation_distribution": "flat"}, "conformation_distribution: expected one of"),
        ({"image_size": 1}, "image_size"),
        ({"pixel_size_A": -1.0}, "pixel_size_A: expected a number above 0"),
        ({"resolution_A": 0.0}, "resolution_A: expected a number above 0"),
        ({"shift_std_px": -1.0}, "shift_std_px"),
        ({"snr": 0.0}, "snr: expected a number above 0"),
        ({"defocus_A": [2.0, 1.0]}, r"defocus_A: expected \[lowest, highest\], above 0 and in"),
        ({"defocus_A": [5000.0]}, r"defocus_A: expected \[lowest, highest\]"),
        ({"astigmatism_A": -1.0}, "astigmatism_A"),
        ({"amplitude_contrast": 1.5}, "amplitude_contrast: expected a number from 0 to 1, got"),
        ({"voltage_kV": 0.0}, "voltage_kV"),
        ({"test_images": 0}, "test_images"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Hinge(**options)


def test_a_molecule_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match=r"pixel_size_A: expected at least 3\.59 for a molecule"):
        splits(pixel_size_A=2.0)
    with pytest.raises(OSError, match=r"closed: no such file: a\.pdb"):
        splits(closed="a.pdb", open="b.pdb")


@pytest.mark.parametrize(
    ("experiment", "angle"),
    [("hinge", True), ("table1_spatial_vae", True), ("table1_vanilla_2d", False)],
)
def test_the_experiments_say_what_table_1_does(experiment, angle, tmp_path):
    few = [f"dataset.{name}={count}" for name, count in FEW.items()]
    width = "channels" if experiment == "hinge" else "hidden"
    small = [f"model.encoder.{width}=8", "model.generator.hidden=8", "~callbacks.figures"]
    quick = ["debug=quick", "trainer.enable_progress_bar=false", f"hydra.run.dir={tmp_path}"]
    run_command(svae.train.main, f"experiment={experiment}", *few, *small, *quick)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 <= found["test/conformation_correlation"] <= 1
    assert {"test/z_theta_circular_correlation", "test/z_theta_correlation"} <= found.keys()
    assert ("test/theta_circular_correlation" in found) == angle
    config = OmegaConf.load(tmp_path / "config.yaml")
    assert config.dataset.pixel_size_A == pytest.approx(3.99, abs=0.01)
    if experiment != "hinge":
        assert config.optimizer.lr == 1e-4
        assert config.trainer.max_epochs == 1  # of debug=quick
        assert config.callbacks.early_stopping.patience == 500
        assert config.model.generator.activation == config.model.encoder.activation == "tanh"
        assert config.prior.theta.std_deg == 180
    if experiment == "table1_spatial_vae":
        assert config.model.augment_rotation
        assert config.model.z_delay_epochs == 2
