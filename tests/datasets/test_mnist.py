import gzip
import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from scipy import stats
from tests.helpers import write_mnist

from svae.datasets import MNIST, mnist
from svae.geometry import pixel_size
from svae.instantiate import instantiate
from svae.paths import conf_dir


@pytest.fixture
def folder(tmp_path):
    write_mnist(tmp_path)
    return tmp_path


def test_splits_and_scale(folder):
    data = MNIST(str(folder), val_images=10)
    data.prepare_data()
    data.setup()
    sizes = {name: len(split["index"]) for name, split in data.splits.items()}
    assert sizes == {"train": 50, "val": 10, "test": 20}
    assert data.image_shape == (1, 28, 28)
    assert data.splits["test"]["index"].tolist() == list(range(60, 80))
    raw = (folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:]
    expected = torch.tensor(list(raw)).reshape(20, 1, 28, 28) / 255
    assert torch.equal(data.splits["test"]["image"], expected)


def test_packed_files_are_read_and_left_packed(folder, monkeypatch):
    raw = folder / "MNIST" / "raw"
    plain = MNIST(str(folder), val_images=10)
    plain.setup()
    for path in list(raw.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    monkeypatch.setattr(mnist, "check_integrity", lambda path, md5: True)
    packed = MNIST(str(folder), val_images=10)
    packed.prepare_data()
    packed.setup()
    assert torch.equal(packed.splits["test"]["image"], plain.splits["test"]["image"])
    assert all(path.suffix == ".gz" for path in raw.iterdir())


def test_missing_files_are_named_with_the_place_and_a_way_on(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(mnist.torchvision.datasets, "MNIST", no_network)
    with pytest.raises(FileNotFoundError) as error:
        MNIST(str(tmp_path)).prepare_data()
    message = str(error.value)
    assert "train-images-idx3-ubyte.gz" in message
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "dataset=rot_digits" in message


@pytest.mark.parametrize("content", [b"", b"\0\0\x0b\x03" + bytes(12), b"\0\0\x08\x01\0\0\0\x09"])
def test_a_damaged_file_is_named(folder, content):
    (folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte is damaged"):
        MNIST(str(folder), val_images=10).setup()


def test_a_packed_file_with_another_checksum_is_refused(folder):
    raw = folder / "MNIST" / "raw"
    path = raw / "t10k-labels-idx1-ubyte"
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    with pytest.raises(ValueError, match="checksum"):
        MNIST(str(folder), val_images=10).setup()


def test_a_validation_split_that_leaves_nothing_is_refused(folder):
    with pytest.raises(ValueError, match="val_images"):
        MNIST(str(folder), val_images=0)
    with pytest.raises(ValueError, match="train"):
        MNIST(str(folder), val_images=60).setup()


@pytest.mark.parametrize("name", ["mnist_n", "mnist_u"])
def test_the_sets_of_target_vae(name, folder):
    options = [f"dataset.data_dir={folder}", "dataset.val_images=10", "dataset.train_copies=40"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("train", overrides=[f"dataset={name}", *options])
    data = instantiate(config.dataset, "dataset")
    data.setup()
    assert data.image_shape == (1, 50, 50)
    train, test = data.splits["train"], data.splits["test"]
    theta = train["theta"].double()
    if name == "mnist_u":
        assert stats.kstest((theta / math.pi + 1) / 2, "uniform").pvalue > 1e-3
    else:
        assert stats.kstest(theta / (math.pi / 4), "norm").pvalue > 1e-3
    shift_px = train["shift"].double() / pixel_size(50, 50)
    for axis in (0, 1):
        assert stats.kstest(shift_px[:, axis] / 5, "norm").pvalue > 1e-3
    # The digits as they are, with the 11 pixels of margin of the published sets.
    plain = MNIST(str(folder), val_images=10)
    plain.setup()
    assert torch.equal(test["untransformed"][..., 11:-11, 11:-11], plain.splits["test"]["image"])
    assert test["untransformed"].sum() == pytest.approx(plain.splits["test"]["image"].sum())
