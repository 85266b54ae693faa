import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tests.helpers import run_command
from torch.testing import assert_close

import svae.encode
import svae.train
from svae.datasets import GalaxyZoo
from svae.datasets.galaxy_zoo import FOLDER
from svae.geometry import centre_of_mass, pixel_size

SIDE = 84
SMALL = {"crop": 48, "size": 12}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The challenge's folder: a round reddish galaxy in the middle of each JPEG."""
    folder = tmp_path_factory.mktemp("data") / FOLDER
    folder.mkdir()
    away = np.hypot(*(np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2))
    for i in range(20):
        light = np.exp(-((away / (6 + i / 4)) ** 2))
        pixels = np.stack([light * 250, light * 200, light * 100], -1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{100_008 + i * 1_000}.jpg", quality=95)
    return folder.parent


def images_of(data):
    source = data.everything()
    return source[torch.arange(len(source))]


def test_galaxies_lie_where_the_batch_says(root):
    batch = images_of(GalaxyZoo(data_dir=str(root), shift_std_px=1.5, **SMALL))
    image, shift = batch["image"], batch["shift"]
    assert (image.shape, image.dtype) == ((20, 3, 12, 12), torch.float32)
    assert 0 <= image.min() < 0.1
    assert 0.8 < image.max() <= 1
    assert (image[:, 0].sum() > image[:, 2].sum() * 2).all()  # red and not blue
    step = pixel_size(12, 12)
    assert_close(shift.std() / step, torch.tensor(1.5), atol=0.4, rtol=0)
    near = shift.abs().amax(1) < 2 * step  # the others lie partly outside
    assert near.sum() > 10
    bright = (image.mean(1, keepdim=True) - 0.1).clamp(min=0)
    assert_close(centre_of_mass(bright)[near], shift[near], atol=0.2 * step, rtol=0)


def test_without_a_shift_the_middle_is_cut_out(root):
    batch = images_of(GalaxyZoo(data_dir=str(root), shift_std_px=0, **SMALL))
    assert not batch["shift"].any()
    with Image.open(root / FOLDER / "100008.jpg") as picture:
        small = picture.crop((18, 18, 66, 66)).resize((12, 12), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(small)).movedim(-1, 0) / 255
    assert_close(batch["image"][0], expected, atol=1.5 / 255, rtol=0)


def test_no_window_leaves_the_picture(root):
    shift = images_of(GalaxyZoo(data_dir=str(root), shift_std_px=50, **SMALL))["shift"]
    most = (SIDE - 48) / 2 * 12 / 48 * pixel_size(12, 12)
    assert_close(shift.abs().max(), torch.tensor(most))


def test_shifts_follow_from_the_seed(root):
    first, again, other = (
        images_of(GalaxyZoo(data_dir=str(root), seed=seed, **SMALL)) for seed in (1, 1, 2)
    )
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["shift"], other["shift"])


def test_splits_share_the_pictures_and_hold_bytes(root):
    data = GalaxyZoo(data_dir=str(root), val_fraction=0.2, test_fraction=0.3, **SMALL)
    data.setup()
    assert {name: len(source) for name, source in data.sources.items()} == {
        "train": 10,
        "val": 4,
        "test": 6,
    }
    index = torch.cat([split["index"] for split in data.splits.values()])
    assert sorted(index.tolist()) == list(range(20))
    assert {source.pixels.data_ptr() for source in data.sources.values()} == {
        data.everything().pixels.data_ptr()
    }
    assert data.sources["train"].pixels.dtype == torch.uint8
    everyone = images_of(data)
    assert torch.equal(everyone["split"][data.splits["test"]["index"]], torch.full((6,), 2))
    few = data.sources["val"][torch.tensor([2, 0])]
    assert torch.equal(few["image"], everyone["image"][few["index"]])
    assert data.file_names[1] == "101008.jpg"


def copied(root, tmp_path):
    folder = tmp_path / "zoo"
    folder.mkdir()
    for file in (root / FOLDER).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_truncated_picture_is_named_or_left_out(root, tmp_path, caplog):
    folder = copied(root, tmp_path)
    bad = folder / "103008.jpg"
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    with pytest.raises(
        ValueError, match=r"^103008.jpg: it cannot be read .*(?i:truncated).*skip_un"
    ):
        GalaxyZoo(str(folder), **SMALL).setup()
    caplog.clear()
    data = GalaxyZoo(str(folder), skip_unusable=True, **SMALL)
    batch = images_of(data)
    assert batch["index"].tolist() == [i for i in range(20) if i != 3]
    assert "103008.jpg is left out: it cannot be read" in caplog.text
    assert torch.equal(
        batch["image"][5], images_of(GalaxyZoo(data_dir=str(root), **SMALL))["image"][6]
    )


def test_what_is_wrong_is_told(root, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{FOLDER} is neither in .*kaggle.*=images"):
        GalaxyZoo(data_dir=str(empty)).setup()
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        GalaxyZoo(str(tmp_path / "nowhere")).setup()
    with pytest.raises(ValueError, match="no picture in"):
        GalaxyZoo(str(empty)).setup()
    with pytest.raises(ValueError, match=r"^dataset.crop: expected at most the 84 pixels of 1000"):
        GalaxyZoo(data_dir=str(root)).setup()
    with pytest.raises(ValueError, match=r"^shift_std_px: expected .* at least 0, got -1"):
        GalaxyZoo(shift_std_px=-1)
    folder = copied(root, tmp_path)
    with Image.open(folder / "104008.jpg") as picture:
        picture.resize((90, 84)).save(folder / "104008.jpg")
    with pytest.raises(ValueError, match=r"100008.jpg is 84 x 84 and 104008.jpg 90 x 84 pixels"):
        GalaxyZoo(str(folder), **SMALL).setup()
    Image.fromarray(np.zeros((84, 84), np.uint16)).save(folder / "0.png")
    with pytest.raises(ValueError, match=r"0.png: expected 8 bits per colour, got uint16"):
        GalaxyZoo(str(folder), **SMALL).setup()
    for file in folder.iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 21 pictures"):
        GalaxyZoo(str(folder), skip_unusable=True, **SMALL).setup()


def test_the_papers_training_runs_and_all_galaxies_are_encoded(root, tmp_path, monkeypatch):
    """With the paper's numbers, but for an encoder of 5,000 units and pictures of 424 pixels."""
    monkeypatch.setenv("SVAE_DATA_DIR", str(root))
    run = tmp_path / "run"
    cuts = [f"dataset.{key}={value}" for key, value in SMALL.items()]
    options = ["debug=quick", "trainer.enable_progress_bar=false", "model.encoder.hidden=10"]
    experiment = "experiment=paper_galaxy_zoo"
    run_command(svae.train.main, experiment, f"hydra.run.dir={run}", *cuts, *options)
    config = OmegaConf.load(run / "config.yaml")
    assert config.model.image_shape == [3, 12, 12]
    assert config.model.likelihood._target_ == "svae.likelihoods.Bernoulli"
    table = tmp_path / "table"
    options = [f"run={run}", "progress_bar=false"]
    run_command(svae.encode.main, *options, f"hydra.run.dir={table}")
    lines = (table / "latents.csv").read_text().splitlines()
    assert len(lines) == 21
    assert "100008.jpg" in lines[1]
