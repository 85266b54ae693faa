import logging
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tests.crash_trials import differences
from tests.helpers import run_command, write_particles

import svae.train
from svae.ctf import CTF_PARAMS, ctf
from svae.datasets import Particles
from svae.datasets.base import SPLITS
from svae.errors import UserError
from svae.formats.mrc import write_stack
from svae.run import images_to_encode

REAL = Path(os.environ.get("SVAE_DATA_DIR", "")) / "particles"

TINY = [
    "dataset=particles",
    "dataset.batch_size=5",
    "dataset.eval_batch_size=3",
    "model.pixels_per_image=40",
    "model.encoder.hidden=8",
    "model.generator.hidden=8",
    "model.pose_candidates=1",
    "evaluation.iwae_samples=2",
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
]
NO_FIGURES = "~callbacks.figures"


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    monkeypatch.setenv("SVAE_TRUSTED_TARGETS", "tests")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


@pytest.fixture(scope="module")
def star(tmp_path_factory):
    return write_particles(tmp_path_factory.mktemp("particles"), count=24)


class InMemoryParticles(Particles):
    """The same particles, read before the training."""

    def read(self):
        splits = super().read()
        return {name: part[torch.arange(len(part))] for name, part in splits.items()}


def train(run: Path, star: Path, *options: str) -> int | str:
    """Train into a folder; what the command ended with."""
    try:
        run_command(
            svae.train.main, f"hydra.run.dir={run}", *TINY, f"dataset.path={star}", *options
        )
    except SystemExit as ended:
        return ended.code
    return 0


def images_of(stack: Path) -> np.ndarray:
    count, side = (np.fromfile(stack, np.int32, 3)[i] for i in (2, 0))
    return np.fromfile(stack, np.float32, offset=1024).reshape(count, side, side)


def prepared(star: Path, **options) -> Particles:
    data = Particles(str(star), **{"normalize": "none", **options})
    data.setup()
    return data


@pytest.fixture(scope="module")
def in_memory(star, tmp_path_factory):
    run = tmp_path_factory.mktemp("memory") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVAE_TRUSTED_TARGETS", "tests")
        patch.syspath_prepend(str(Path(__file__).parents[2]))
        target = "dataset._target_=tests.datasets.test_particles.InMemoryParticles"
        assert train(run, star, NO_FIGURES, target) == 0
    return run


def test_a_training_without_reading_ahead_is_that_of_images_in_memory(star, in_memory, tmp_path):
    assert train(tmp_path / "run", star, NO_FIGURES, "dataset.workers=0") == 0
    assert differences(tmp_path / "run", in_memory) == []


def test_a_training_goes_on_in_the_middle_of_an_epoch_as_if_nothing_had_been(
    star, in_memory, tmp_path
):
    """With threads that had read further, and figures, which look at images by themselves."""
    run = tmp_path / "run"
    stop = "+callbacks.stop={_target_: tests.helpers.Interrupt, epoch: 1, batch: 1, name: SIGTERM}"
    assert train(run, star, stop) == 143
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = (s for k, s in checkpoint.items() if "InMemory" in k or k == "Particles")
    assert state == {"served": 2}
    # The number of threads is no other setting.
    assert train(run, star, "dataset.workers=1") == 0
    assert differences(run, in_memory) == []
    assert (run / "figures" / "reconstructions.png").is_file()


def test_the_number_of_batches_that_were_received_is_known(star):
    data = prepared(star, batch_size=3, workers=2)
    batches = iter(loader := data.train_dataloader())
    for number in range(1, 5):
        next(batches)
        assert loader.served == number
        assert loader.sampler.served > number  # what is read ahead
    batches.close()


def test_batches_are_those_of_the_files_in_the_order_of_the_star(star):
    data = prepared(star, workers=2)
    files = [images_of(star.parent / f"stack{i}.mrcs") for i in range(2)]
    images = data.everything()
    assert images.tensors["index"].tolist() == list(range(24))
    rows = torch.randperm(24)
    batch = images[rows]
    assert batch["index"].tolist() == rows.tolist()
    expected = np.stack([files[i % 2][i // 2] for i in rows.tolist()])[:, None]
    np.testing.assert_array_equal(batch["image"].numpy(), expected)
    assert batch["image"].dtype == torch.float32
    assert data.file_names[3] == data.particles.name(3) == "000002@stack1.mrcs"
    # The splits are parts of it, and together all of it.
    for number, name in enumerate(SPLITS):
        own = data.splits[name]["index"]
        assert set(own.tolist()) == set(rows[batch["split"] == number].tolist())
        (loaded,) = data.loader(name)
        assert sorted(loaded["index"].tolist()) == sorted(own.tolist())
        np.testing.assert_array_equal(
            loaded["image"].numpy(), images[loaded["index"]]["image"].numpy()
        )
    assert data.image_shape == (1, 16, 16)
    assert data.pixel_size == 2.0


def test_nothing_of_the_pixels_is_pickled(tmp_path):
    star = write_particles(tmp_path, count=40, side=64)
    data = prepared(star)
    source = data.sources["train"]
    batch = source[torch.arange(3)]
    content = pickle.dumps(source)
    assert len(content) < 20_000 < batch["image"].nbytes
    assert b"rlnDefocusU" not in content  # nor the table, which may be large
    torch.testing.assert_close(pickle.loads(content)[torch.arange(3)], batch)


def test_a_selection_keeps_which_particle_is_which(star, tmp_path):
    np.save(tmp_path / "some.npy", [7, 2, 20, 21])
    data = prepared(star, select=str(tmp_path / "some.npy"))
    assert data.particles.rows.tolist() == [7, 2, 20, 21]
    everything = prepared(star).everything()[torch.tensor([7, 2, 20, 21])]
    batch = data.everything()[torch.arange(4)]
    torch.testing.assert_close(batch["image"], everything["image"])
    assert batch["index"].tolist() == [0, 1, 2, 3]


def test_few_particles_can_be_looked_at_and_not_trained_on(star, tmp_path):
    np.save(tmp_path / "two.npy", [5, 6])
    data = Particles(str(star), select=str(tmp_path / "two.npy"))
    images = data.everything()
    assert images[torch.arange(2)]["image"].shape == (2, 1, 16, 16)
    assert "split" not in images.tensors
    with pytest.raises(ValueError, match=r"particles\.star: expected at least 3 images"):
        data.setup()


def test_cropped_and_normalised(star):
    data = Particles(str(star), size=12, mask_radius=0.9)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert data.image_shape == batch["image"].shape[1:] == (1, 12, 12)
    assert data.pixel_size == pytest.approx(2.0 * 16 / 12)
    raw = prepared(star).everything()[batch["index"]]["image"][:, 0]
    torch.testing.assert_close(batch["image"][:, 0], data.preparation(raw))
    assert not torch.equal(batch["image"][:, 0], raw[:, :12, :12])


def test_the_data_sets_mean_is_of_the_training_images_and_serves_others(star, tmp_path):
    data = prepared(star, normalize="dataset", invert="auto", size=12)
    train = torch.cat([b["image"] for b in data.train_dataloader()])
    assert train.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    found = data.found()
    assert found["invert"] is False
    assert found["path"] == str(star)
    again = Particles(**{"normalize": "dataset", "size": 12, **found})
    torch.testing.assert_close(again.everything()[:4], data.everything()[:4])

    # Another stack is shown to the model as its own was.
    run = {"dataset": {"_target_": "svae.datasets.Particles", "normalize": "dataset", "size": 12}}
    run["dataset"] |= found
    run["model"] = {"image_shape": [1, 12, 12]}
    OmegaConf.save(OmegaConf.create(run), tmp_path / "config.yaml")
    other = write_particles(tmp_path / "other", count=5)
    dataset = {"_target_": "svae.datasets.Particles", "path": str(other)}
    cfg = OmegaConf.create({"run": str(tmp_path), "dataset": dataset})
    shown, images = images_to_encode(cfg, {"path"})
    assert shown.preparation == data.preparation
    assert images[torch.arange(5)]["image"].shape == (5, 1, 12, 12)
    # Without the run's numbers where another normalization is asked for.
    cfg.dataset.normalize = "image"
    shown, _ = images_to_encode(cfg, {"path", "normalize"})
    assert shown.preparation.mean is None
    cfg.dataset.size = 8
    with pytest.raises(ValueError, match=r"got \(1, 8, 8\); dataset.size=12 may help"):
        images_to_encode(cfg, {"path", "size"})


@pytest.mark.parametrize(
    ("size", "pixel_size", "told"),
    [
        (None, None, ""),
        (None, 2.01, ""),
        (None, 4.0, "a pixel is 4 Å, and was 2 Å in the training: .* 0.5 times .* 32 Å .*64 Å"),
        (12, None, ""),
        (12, 4.0, "a pixel after cropping is 5.333 Å, and was 2.667 Å .* 0.5 times"),
    ],
)
def test_another_pixel_size_than_that_of_the_training_is_told(
    star, tmp_path, caplog, size, pixel_size, told
):
    trained = prepared(star, size=size)
    run = {"_target_": "svae.datasets.Particles", "normalize": "none", "size": size}
    run |= trained.found()
    config = {"dataset": run, "model": {"image_shape": list(trained.image_shape)}}
    OmegaConf.save(OmegaConf.create(config), tmp_path / "config.yaml")
    caplog.clear()
    dataset = {"_target_": "svae.datasets.Particles", "path": str(star), "pixel_size": pixel_size}
    cfg = OmegaConf.create({"run": str(tmp_path), "dataset": dataset})
    images_to_encode(cfg, {"path", "pixel_size"})
    assert re.search(told, caplog.text) if told else "pixel is" not in caplog.text


def test_ctf_forward(star):
    data = prepared(star, ctf="forward", size=8)
    batch = data.everything()[torch.tensor([3, 0])]
    named = dict(zip(CTF_PARAMS, batch["ctf"].T.tolist(), strict=True))
    assert named["defocus_u_A"] == [10300, 10000]
    assert named["defocus_v_A"] == [10100, 9800]
    assert named["astigmatism_deg"] == [30, 30]
    assert named["pixel_size_A"] == [4.0, 4.0]
    assert named["voltage_kV"] == [300, 300]
    assert named["cs_mm"] == pytest.approx([2.7, 2.7])
    assert named["amplitude_contrast"] == pytest.approx([0.1, 0.1])
    assert batch["ctf"].dtype == torch.float32
    assert batch["ctf_applied"].tolist() == [0, 0]
    assert {"ctf", "ctf_applied"} <= data.splits["train"].keys()


@pytest.mark.parametrize("applied", [0, 1, 2])
def test_phases_are_flipped_once(star, applied):
    raw = prepared(star).everything()[torch.tensor([4])]["image"][0, 0].double()
    data = Particles(str(star), ctf="phase_flip", normalize="none")
    data.particles.applied[:] = applied
    data.setup()
    image = data.everything()[torch.tensor([4])]["image"][0, 0]
    params = torch.tensor([[10400, 10200, 30, 300, 2.7, 0.1, 0, 2.0, 0]])
    sign = torch.where(ctf(params, 16, 16)[0] < 0, -1.0, 1.0)
    assert (sign < 0).any()
    expected = torch.fft.irfft2(torch.fft.rfft2(raw) * sign, s=(16, 16)) if not applied else raw
    torch.testing.assert_close(image.double(), expected, atol=1e-5, rtol=0)
    assert "ctf" not in data.splits["train"]


def test_an_unused_ctf_is_told_once(star, caplog):
    with caplog.at_level(logging.INFO):
        prepared(star)
    (line,) = [r.getMessage() for r in caplog.records if "ctf" in r.getMessage()]
    assert line.startswith(f"dataset.ctf=none: the CTF in {star} is not used")


@pytest.fixture
def spoilt(tmp_path):
    """A stack with an image of NaN and a constant one."""
    images = np.random.default_rng(0).standard_normal((30, 8, 8)).astype(np.float32)
    images[21, 3, 3] = np.nan
    images[7] = 2.5
    np.save(tmp_path / "spoilt.npy", images)
    return tmp_path / "spoilt.npy"


def test_every_pixel_is_looked_at_before_a_training(spoilt):
    with pytest.raises(ValueError, match=r"000008@spoilt\.npy: it is constant.*2 of the 30") as e:
        Particles(str(spoilt)).setup()
    assert "\n" not in str(e.value)


def test_unusable_particles_are_left_out_and_counted(spoilt, caplog):
    data = Particles(str(spoilt), skip_unusable=True)
    data.setup()
    told = r"2 of the 30 .* left out: 000008@spoilt.npy: it is .*; also 000022@spoilt.npy\n"
    assert re.search(told, caplog.text)
    kept = sorted(torch.cat([split["index"] for split in data.splits.values()]).tolist())
    assert kept == [i for i in range(30) if i not in (7, 21)]
    images = Particles(str(spoilt), skip_unusable=True).everything()
    assert images.tensors["index"].tolist() == kept
    assert images[torch.tensor([20])]["index"].tolist() == [22]


def test_what_nobody_looked_for_ends_the_training_in_one_line(spoilt):
    data = Particles(str(spoilt), check_pixels=False, workers=2)
    data.setup()
    with pytest.raises(UserError, match=r"spoilt\.npy"):
        list(data.train_dataloader())


def without_ctf(folder: Path) -> Path:
    write_stack(folder / "plain.mrcs", [np.random.default_rng(0).random((9, 8, 8))], 9, 8, 8)
    return folder / "plain.mrcs"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["dataset.path=null"], "path: write dataset.path=FILE; expected a .star, .cs"),
        (["dataset.path=/nowhere.star"], "/nowhere.star"),
        (
            ["dataset.size=17"],
            "dataset.size: expected at most the 16 pixels of the images, got 17",
        ),
        (["dataset.workers=-1"], "workers: expected a whole number of at least 0, got -1"),
        (["dataset.ctf=on"], "ctf: expected one of none, phase_flip, forward, got 'on'"),
        (["dataset.val_fraction=0"], "val_fraction: expected a fraction"),
        (["dataset.background_radius=2"], "dataset.background_radius: expected pixels beyond it"),
        (["dataset.bad_ctf=ignore"], "bad_ctf: expected one of error, drop, got 'ignore'"),
        (["dataset.path={plain}", "dataset.ctf=phase_flip"], "plain.mrcs is not known"),
    ],
)
def test_wrong_settings(star, options, message, tmp_path, capfd):
    plain = without_ctf(tmp_path)
    given = [option.format(plain=plain) for option in options]
    assert train(tmp_path / "run", star, *given) == 2
    last = capfd.readouterr().out.splitlines()[-1]
    assert message in last
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.skipif(not REAL.is_dir(), reason="no real particles here")
@pytest.mark.parametrize("name", ["relion31", "empiar_10076_7", "sample_relion_data"])
def test_real_particles(name, tmp_path):
    data = Particles(str(REAL / f"{name}.star"), size=32, ctf="forward", val_fraction=0.2)
    data.setup()
    for split in SPLITS:
        batch = next(iter(data.loader(split)))
        assert batch["image"].shape[1:] == (1, 32, 32)
        assert batch["image"].isfinite().all()
        assert batch["ctf"].shape == (len(batch["index"]), 9)
