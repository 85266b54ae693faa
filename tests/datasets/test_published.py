import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from tests.helpers import run_command

import svae.train
from svae.datasets import EMPIAR10025, PublishedArrays
from svae.formats.mrc import write_stack
from svae.paths import conf_dir

random = np.random.default_rng(0)
TRAIN, TEST = (random.normal(size=(n, 8, 8)) * 3 + 1 for n in (20, 6))
ADDRESS = "http://somewhere/antibody.tar.gz"
GALAXIES = {"train_file": "galaxy_zoo_train.npy", "test_file": "galaxy_zoo_test.npy"}


def write(root, folder, train, test, name="processed_{}.npy"):
    (root / folder).mkdir(parents=True, exist_ok=True)
    for part, array in (("train", train), ("test", test)):
        np.save(root / folder / name.format(part), array)
    return root


def antibody(root, **options):
    options = {"folder": "antibody", "address": ADDRESS, "val_images": 5} | options
    return PublishedArrays(data_dir=str(root), **options)


def test_the_published_test_split_is_kept(tmp_path):
    data = antibody(write(tmp_path, "antibody", TRAIN, TEST))
    data.setup()
    splits = data.splits
    rows = {name: split["index"].tolist() for name, split in splits.items()}
    assert rows["test"] == list(range(20, 26))
    assert len(rows["val"]) == 5
    assert sorted(rows["train"] + rows["val"]) == list(range(20))
    expected = torch.from_numpy(np.concatenate([TRAIN, TEST])).float().unsqueeze(1)
    for split in splits.values():
        assert torch.equal(split["image"], expected[split["index"]])
    everyone = data.everything()
    batch = everyone[torch.arange(len(everyone))]
    assert torch.equal(batch["image"], expected)
    assert torch.equal(batch["split"][20:], torch.full((6,), 2))


def test_other_seeds_validate_on_other_images(tmp_path):
    write(tmp_path, "antibody", TRAIN, TEST)
    first, again, other = (antibody(tmp_path, seed=seed).read()["val"] for seed in (1, 1, 2))
    assert torch.equal(first["index"], again["index"])
    assert not torch.equal(first["index"], other["index"])


def test_each_image_is_normalised_by_itself(tmp_path):
    data = antibody(write(tmp_path, "antibody", TRAIN, TEST), normalize="image_standard")
    image = data.read()["test"]["image"]
    assert torch.allclose(image.mean((1, 2, 3)), torch.zeros(6), atol=1e-6)
    assert torch.allclose(image.var((1, 2, 3), correction=0), torch.ones(6), atol=1e-5)
    expected = (TEST[2] - TEST[2].mean()) / TEST[2].std()
    assert np.allclose(image[2, 0], expected, atol=1e-5)


def test_colours_of_bytes_become_0_to_1(tmp_path):
    train, test = (random.integers(0, 256, (n, 8, 8, 3), np.uint8) for n in (20, 6))
    write(tmp_path, "galaxy_zoo", train, test, "galaxy_zoo_{}.npy")
    data = antibody(tmp_path, folder="galaxy_zoo", **GALAXIES)
    data.setup()
    assert data.image_shape == (3, 8, 8)
    everyone = data.everything()
    batch = everyone[torch.tensor([3, 22])]
    assert torch.equal(batch["split"], torch.tensor([int(3 in data.splits["val"]["index"]), 2]))
    expected = torch.from_numpy(np.stack([train[3], test[2]])).movedim(-1, 1) / 255
    assert torch.equal(batch["image"], expected)
    few = data.sources["test"][torch.tensor([2])]
    assert torch.equal(few["image"], expected[1:])


def test_what_is_wrong_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^antibody: processed_train.npy is not in ") as e:
        antibody(tmp_path).setup()
    assert f"{tmp_path / 'antibody'}. Unpack {ADDRESS} in {tmp_path}, or write" in str(e.value)
    with pytest.raises(ValueError, match=r"^normalize: expected one of none, image_standard"):
        antibody(tmp_path, normalize="mean")
    with pytest.raises(ValueError, match=r"^val_images: expected fewer than the 20 images"):
        antibody(write(tmp_path, "antibody", TRAIN, TEST), val_images=20).setup()
    write(tmp_path, "antibody", TRAIN, TEST[:, :7])
    with pytest.raises(
        ValueError, match=r"^antibody: processed_train.*\(20, 1, 8, 8\) and .*\(6, 1, 7, 8\); ex"
    ):
        antibody(tmp_path).setup()
    bad = TRAIN.copy()
    bad[[4, 7], 0, 0] = np.nan, 1e300
    write(tmp_path, "antibody", bad, TEST)
    with pytest.raises(ValueError, match=r"train.npy: 2 of its 20 images .*NaN.* number 4"):
        antibody(tmp_path).setup()
    flat = np.where(np.arange(20)[:, None, None] == 9, 1.0, TRAIN)
    write(tmp_path, "antibody", flat, TEST)
    with pytest.raises(ValueError, match=r"train.npy: 1 of its 20 .* constant.* number 9"):
        antibody(tmp_path, normalize="image_standard").setup()
    write(tmp_path, "antibody", TRAIN, TEST[0])
    with pytest.raises(ValueError, match=r"processed_test.npy: expected the shape"):
        antibody(tmp_path).setup()
    path = tmp_path / "antibody" / "processed_test.npy"
    np.save(path, TEST)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"processed_test.npy: it is damaged"):
        antibody(tmp_path).setup()


@pytest.mark.parametrize(("name", "folder"), [("antibody", "antibody"), ("integrin_5hdb", "5HDB")])
def test_the_papers_trainings_run(name, folder, tmp_path, monkeypatch):
    write(tmp_path / "data", folder, TRAIN, TEST)
    monkeypatch.setenv("SVAE_DATA_DIR", str(tmp_path / "data"))
    run = tmp_path / "run"
    options = ["debug=quick", "trainer.enable_progress_bar=false", "dataset.val_images=5"]
    run_command(svae.train.main, f"experiment=paper_{name}", f"hydra.run.dir={run}", *options)
    assert (run / "metrics.json").is_file()


def composed(name):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose("train", overrides=[f"experiment=paper_{name}"])


@pytest.mark.parametrize(
    ("name", "likelihood", "widths", "shift", "epochs", "turned"),
    [
        ("galaxy_zoo", "Bernoulli", (5000, 500), 8.0, 300, False),
        ("antibody", "Gaussian", (1000, 1000), 2.0, 1000, True),
        ("codhacs", "Gaussian", (1000, 1000), 2.0, 1000, True),
        ("integrin_5hdb", "Gaussian", (500, 500), None, 500, True),
    ],
)
def test_experiments_have_the_papers_numbers(name, likelihood, widths, shift, epochs, turned):
    config = composed(name)
    model = config.model
    assert (model.encoder.hidden, model.generator.hidden) == widths
    assert (model.encoder.layers, model.generator.layers) == (2, 2)
    assert (config.prior.shift.std_px if model.infer_shift else None) == shift
    assert (config.trainer.max_epochs, model.augment_rotation) == (epochs, turned)
    assert model.likelihood._target_ == f"svae.likelihoods.{likelihood}"
    if likelihood == "Gaussian":
        assert (model.likelihood.std, model.likelihood.learn_std) == (1.0, False)
    assert config.prior.theta._target_ == "svae.priors.UniformAngle"
    assert config.prior.theta.std_deg == 180
    assert (config.optimizer._target_, config.optimizer.lr) == ("torch.optim.Adam", 1e-4)
    assert (model.generator.fourier_features, model.pixels_per_image) == (0, None)
    folders = {"integrin_5hdb": "5HDB", "galaxy_zoo": None}
    assert config.dataset.get("folder") == folders.get(name, name)


def test_integrins_z_waits_for_two_epochs():
    model = composed("integrin_5hdb").model
    assert (model.z_dim, model.z_delay_epochs) == (1, 2)


def test_the_proteasome_is_found_where_the_published_command_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SVAE_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"empiar/EMPIAR-10025 .*dataset=hinge$"):
        EMPIAR10025()
    folder = tmp_path / "EMPIAR10025" / "mrcs"
    folder.mkdir(parents=True)
    stack = random.normal(size=(12, 16, 16)).astype(np.float32)
    write_stack(folder / "a.mrcs", stack, 12, 16, 16)
    data = EMPIAR10025(size=10)
    data.setup()
    assert data.image_shape == (1, 10, 10)
    assert data.found()["path"] == str(folder / "a.mrcs")
    write_stack(folder / "b.mrcs", stack, 12, 16, 16)
    with pytest.raises(ValueError, match=r"which of the 2 files a.mrcs, b.mrcs"):
        EMPIAR10025()
    assert EMPIAR10025(str(folder / "b.mrcs")).path.name == "b.mrcs"
