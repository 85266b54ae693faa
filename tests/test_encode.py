"""`python -m svae.encode`, in this process, on small runs that are trained once."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image
from tests.helpers import run_command, write_own_array, write_particles, write_pictures

import svae
import svae.encode
import svae.evaluate
import svae.train
from svae.datasets.pictures import PicturesOnDisk
from svae.geometry import pixel_size, wrap_angle

TINY = [
    "model.encoder.hidden=16",
    "model.generator.hidden=16",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.enable_progress_bar=false",
    "~callbacks.figures",
    "test=false",
]
DIGITS = ["dataset.train_copies=1", "dataset.eval_copies=1", "trainer.limit_train_batches=2"]
EXACT = ["precision=32-true", "progress_bar=false"]


def train(folder, *overrides):
    run_command(svae.train.main, f"hydra.run.dir={folder}", *TINY, *overrides)
    return folder


def write_deep(folder, count=24, size=16, peak=40_000, first=0):
    """16-bit pictures in two sub-folders, their brightness within (500, peak)."""
    random = np.random.default_rng(first)
    for i in range(count):
        place = folder / ("cats" if i % 3 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(500, peak, (size, size)).astype(np.uint16)
        Image.fromarray(pixels).save(place / f"img{first + i}.png")
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return train(tmp_path_factory.mktemp("digits") / "run", *DIGITS)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A run on 16-bit pictures."""
    folder = tmp_path_factory.mktemp("deep")
    own = write_deep(folder / "own")
    options = ["dataset=images", f"dataset.path={own}", "dataset.resize=16"]
    return train(folder / "run", *options, "model/likelihood=bernoulli")


@pytest.fixture
def encode(tmp_path):
    """Encode; returns the rows of the CSV, the arrays of the NPZ, and the folder."""

    def run(run, *overrides, name="encoded"):
        folder = tmp_path / name
        run_command(svae.encode.main, f"hydra.run.dir={folder}", f"run={run}", *overrides)
        with (folder / "latents.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        with np.load(folder / "latents.npz", allow_pickle=False) as archive:
            return rows, dict(archive), folder

    return run


@pytest.fixture
def refusal(tmp_path, capfd):
    """The one line that ends a command."""

    def run(*overrides):
        with pytest.raises(SystemExit) as stopped:
            run_command(
                svae.encode.main,
                f"hydra.run.dir={tmp_path / 'refused'}",
                "progress_bar=false",
                *overrides,
            )
        captured = capfd.readouterr()
        printed = captured.out + captured.err
        if isinstance(stopped.value.code, str):
            printed += stopped.value.code
        assert stopped.value.code not in (None, 0)
        lines = [line for line in printed.splitlines() if line.strip()]
        assert len(lines) == 1, printed
        assert not (tmp_path / "refused" / "latents.csv").exists()
        return lines[0]

    return run


def column(rows, name):
    return np.array([row[name] for row in rows], np.float32)


def of_run(run):
    """The model, and the run's images in the order of their index."""
    config = svae.run.read_config(run)
    return svae.load(run), svae.run.prepared_data(config).everything()[:]


def test_every_image_of_the_run_has_a_row_that_says_what_the_model_infers(digits, encode):
    rows, arrays, folder = encode(digits, *EXACT)
    model, batch = of_run(digits)
    latents = model.encode(batch["image"])
    uncertainty = model.infer(batch["image"]).uncertainty()
    centre = model.centre(latents)
    step = pixel_size(28, 28)

    assert [int(row["index"]) for row in rows] == batch["index"].tolist() == list(range(1797))
    assert [int(row["label"]) for row in rows] == batch["label"].tolist()
    assert [row["split"] for row in rows] == [
        svae.datasets.base.SPLITS[i] for i in batch["split"].tolist()
    ]
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    degrees = torch.rad2deg(wrap_angle(latents.theta))
    expected = {
        "z0": latents.z[:, 0],
        "z1": latents.z[:, 1],
        "theta_deg": degrees,
        "shift_x_px": latents.shift[:, 0] / step,
        "shift_y_px": latents.shift[:, 1] / step,
        "z0_std": uncertainty.z[:, 0],
        "z1_std": uncertainty.z[:, 1],
        "theta_std_deg": torch.rad2deg(uncertainty.theta),
        "shift_x_std_px": uncertainty.shift[:, 0] / step,
        "shift_y_std_px": uncertainty.shift[:, 1] / step,
        "centre_x_px": centre[:, 0] / step,
        "centre_y_px": centre[:, 1] / step,
        "log_likelihood": model.log_likelihood(batch["image"], latents[None])[0],
    }
    assert list(rows[0]) == ["index", "split", "label", *_in_order(expected)]
    for name, values in expected.items():
        found = column(rows, name)
        np.testing.assert_allclose(found, values.detach(), rtol=2e-5, atol=2e-5, err_msg=name)
        assert found.std() > 0, name
    assert (folder / "figures" / "latents.png").is_file()
    assert (folder / "figures" / "pose.png").is_file()
    assert arrays["z"].shape == arrays["shift_std_px"].shape == (1797, 2)


def _in_order(names):
    """Each variable before its standard deviation."""
    order = ["z0", "z0_std", "z1", "z1_std", "theta_deg", "theta_std_deg"]
    order += ["shift_x_px", "shift_x_std_px", "shift_y_px", "shift_y_std_px"]
    order += ["centre_x_px", "centre_y_px", "log_likelihood"]
    assert set(order) == set(names)
    return order


def test_both_tables_hold_the_same_numbers(digits, encode):
    rows, arrays, _ = encode(digits, *EXACT)
    columns = {name: array for name, array in arrays.items() if array.ndim == 1}
    for name in ("z", "z_std"):
        columns |= {name.replace("z", f"z{i}"): arrays[name][:, i] for i in range(2)}
    for i, axis in enumerate("xy"):
        columns[f"shift_{axis}_px"] = arrays["shift_px"][:, i]
        columns[f"shift_{axis}_std_px"] = arrays["shift_std_px"][:, i]
        columns[f"centre_{axis}_px"] = arrays["centre_px"][:, i]
    assert columns.keys() == rows[0].keys()
    for name, array in columns.items():
        assert array.dtype.kind in "ifU"
        read = np.array([row[name] for row in rows]).astype(array.dtype)
        # To the last bit: what is written has all the digits.
        np.testing.assert_array_equal(read, array, err_msg=name)


def test_the_batch_size_changes_nothing(digits, encode):
    _, one, _ = encode(digits, *EXACT, "batch_size=37", name="one")
    _, two, _ = encode(digits, *EXACT, "batch_size=5000", name="two")
    assert one.keys() == two.keys()
    for name, array in one.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, two[name], rtol=1e-4, atol=1e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(array, two[name])


def read_deep(folder, names):
    pixels = [np.asarray(Image.open(folder / name), np.float32) for name in names]
    return torch.from_numpy(np.stack(pixels)).unsqueeze(1)


def test_a_folder_of_pictures_is_named_file_by_file(deep, encode):
    rows, arrays, _ = encode(deep, *EXACT)
    order = [f"img{i}.png" for i in range(24)]
    names = [f"cats/{name}" for i, name in enumerate(order) if i % 3]
    names += [f"dogs/{name}" for i, name in enumerate(order) if not i % 3]
    assert [row["file"] for row in rows] == names == arrays["file"].tolist()
    assert [row["label"] for row in rows] == [name[:4] for name in names]
    assert sorted(row["split"] for row in rows) == ["test"] * 2 + ["train"] * 20 + ["val"] * 2


def test_other_pictures_are_read_as_those_of_the_training_were(deep, encode, tmp_path):
    settings = yaml.safe_load((deep / "config.yaml").read_text())["dataset"]
    assert settings["normalize"] == "range"
    offset, scale = settings["offset"], settings["scale"]
    assert offset > 400
    # Half as bright: by their own range they would look like the others.
    other = write_deep(tmp_path / "other", count=7, peak=20_000, first=100)
    rows, _, _ = encode(deep, "dataset=images", f"dataset.path={other}", *EXACT)
    raw = read_deep(other, [row["file"] for row in rows])
    model = svae.load(deep)

    def expected(images):
        return model.log_likelihood(images, model.encode(images)[None])[0].detach().numpy()

    found = column(rows, "log_likelihood")
    as_trained = expected(((raw - offset) / scale).clamp(0, 1))
    np.testing.assert_allclose(found, as_trained, rtol=1e-4)
    assert {row["label"] for row in rows} == {"cats", "dogs"}
    assert "split" not in rows[0]

    given = ["dataset.normalize=depth", "dataset.offset=0", "dataset.scale=65535"]
    rows, _, _ = encode(
        deep, "dataset=images", f"dataset.path={other}", *given, *EXACT, name="given"
    )
    np.testing.assert_allclose(column(rows, "log_likelihood"), expected(raw / 65535), rtol=1e-4)
    assert np.abs(expected(raw / 65535) - as_trained).min() > 0.1


def test_other_pictures_get_the_size_of_the_training(deep, encode, tmp_path):
    large = write_deep(tmp_path / "large", count=3, size=40)
    rows, _, _ = encode(deep, "dataset=images", f"dataset.path={large}")
    assert len(rows) == 3


def test_pictures_are_read_when_they_are_needed(deep, encode, tmp_path, monkeypatch):
    many = write_deep(tmp_path / "many", count=20)
    read, held = [], []
    read_one, infer = PicturesOnDisk._read, svae.encode.infer_batch

    def counted(self, row):
        read.append(row)
        return read_one(self, row)

    def seen(model, batch):
        held.append(len(read))
        return infer(model, batch)

    monkeypatch.setattr(PicturesOnDisk, "_read", counted)
    monkeypatch.setattr(svae.encode, "infer_batch", seen)
    encode(deep, "dataset=images", f"dataset.path={many}", "batch_size=6")
    assert held == [6, 12, 18, 20]


def test_the_progress_bar_and_the_last_lines(deep, encode, capfd):
    _, _, folder = encode(deep)
    assert "images/s" in capfd.readouterr().err
    _, _, folder = encode(deep, "progress_bar=false", name="quiet")
    captured = capfd.readouterr()
    assert captured.err == ""
    what, where = captured.out.splitlines()
    assert "24 images encoded, mean log-likelihood -" in what
    assert str(folder / "latents.csv") in where
    assert "latents.npz" in where


@pytest.mark.parametrize(
    ("model", "there", "absent"),
    [
        (
            ["model=vanilla_vae"],
            {"z0", "z1", "log_likelihood"},
            {"theta_deg", "shift_x_px", "centre_x_px"},
        ),
        (
            ["model.z_dim=0"],
            {"theta_deg", "shift_x_px", "shift_y_std_px", "centre_y_px"},
            {"z0", "z0_std"},
        ),
        (
            ["model.infer_shift=false"],
            {"theta_deg", "theta_std_deg"},
            {"shift_x_px", "centre_x_px"},
        ),
        (["model.infer_theta=false"], {"shift_x_px", "centre_x_px"}, {"theta_deg"}),
    ],
)
def test_what_is_not_inferred_has_no_column(deep, encode, tmp_path, model, there, absent):
    own = deep.parent / "own"
    run = train(tmp_path / "run", "dataset=images", f"dataset.path={own}", *model)
    rows, arrays, _ = encode(run)
    assert there <= rows[0].keys()
    assert not absent & rows[0].keys()
    assert ("z" in arrays) == ("z0" in rows[0])
    assert ("shift_px" in arrays) == ("shift_x_px" in rows[0])
    assert ("centre_px" in arrays) == ("centre_x_px" in rows[0])


def test_images_of_another_size(digits, refusal, tmp_path):
    other = write_deep(tmp_path / "other", count=3, size=20)
    line = refusal(f"run={digits}", "dataset=images", f"dataset.path={other}")
    assert "expected images of shape (1, 28, 28)" in line
    assert "got (1, 20, 20); dataset.resize=28 may help" in line


def test_colours_for_a_model_of_grey_images(deep, refusal, tmp_path):
    (tmp_path / "rgb").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "rgb" / "a.png")
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgb" / "a.png")
    line = refusal(f"run={deep}", "dataset=images", f"dataset.path={tmp_path / 'rgb'}")
    assert "got (3, 16, 16); dataset.color=grey may help" in line


def test_a_damaged_picture_in_the_middle(deep, refusal, tmp_path):
    folder = write_deep(tmp_path / "some", count=9)
    damaged = folder / "cats" / "img5.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    line = refusal(f"run={deep}", "dataset=images", f"dataset.path={folder}", "batch_size=2")
    assert "cats/img5.png: it cannot be read" in line


def test_an_image_with_nan_in_the_middle(deep, refusal, tmp_path):
    stack = np.random.default_rng(0).random((9, 16, 16)).astype(np.float32)
    stack[6, 3, 3] = np.nan
    np.save(tmp_path / "stack.npy", stack)
    line = refusal(
        f"run={deep}",
        "dataset=images",
        f"dataset.path={tmp_path / 'stack.npy'}",
        "batch_size=2",
    )
    assert "stack.npy[6]: 1 of its 256 pixels are NaN or infinite" in line


def test_pixels_that_the_likelihood_does_not_describe(deep, refusal, tmp_path):
    stack = np.random.default_rng(0).random((9, 16, 16)).astype(np.float32)
    stack[6] += 3
    np.save(tmp_path / "stack.npy", stack)
    line = refusal(
        f"run={deep}",
        "dataset=images",
        f"dataset.path={tmp_path / 'stack.npy'}",
        "dataset.normalize=none",
        "batch_size=3",
    )
    assert "images 6 to 8" in line
    assert "Bernoulli" in line


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch_size=0"], "batch_size: expected a whole number of at least 1, got 0"),
        (["accelerator=tpu"], "accelerator: expected one of auto, cpu, gpu, got 'tpu'"),
        (["precision=16"], "precision: expected one of auto, 32-true, bf16-mixed, got 16"),
        (["checkpoint=newest"], "newest.ckpt does not exist; there is best, last"),
        (["dataset=images"], "path: write dataset.path=FOLDER"),
        (["+dataset.path=folder"], "dataset: write dataset=images (or another kind) beside"),
        (["dataset=images", "dataset.path=/nowhere"], "/nowhere does not exist"),
    ],
)
def test_wrong_settings(deep, refusal, overrides, message):
    assert message in refusal(f"run={deep}", *overrides)


def test_no_gpu(deep, refusal, monkeypatch):
    monkeypatch.setattr("svae.run.accelerator_at_hand", lambda: "cpu")
    line = refusal(f"run={deep}", "accelerator=gpu")
    assert "accelerator: torch finds no GPU here; use accelerator=cpu" in line


def test_a_folder_that_is_no_run(refusal, tmp_path):
    assert f"run: {tmp_path} is not a run directory" in refusal(f"run={tmp_path}")


def test_a_full_disk(deep, refusal, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("svae.tables.write_atomic", full)
    assert "No space left on device" in refusal(f"run={deep}")


def pictures_of(folder, count):
    write_pictures(folder, count)
    return ["dataset=images", f"dataset.path={folder}"]


def particles_of(folder, count):
    return ["dataset=particles", f"dataset.path={write_particles(folder, count)}"]


@pytest.mark.parametrize("written", [pictures_of, particles_of])
def test_images_that_were_added_since_the_training_mix_no_splits(written, tmp_path, encode, capfd):
    def refused(main, *overrides):
        with pytest.raises(SystemExit) as stopped:
            run_command(main, "trainer.enable_progress_bar=false", *overrides)
        assert stopped.value.code not in (None, 0)
        told = capfd.readouterr()
        return told.out + told.err + str(stopped.value.code)

    data = written(tmp_path / "own", 12)
    run = train(tmp_path / "run", *data)
    assert svae.run.read_config(run).dataset.contents.startswith("12 images (")
    options = [*EXACT, "classes=0"]
    before = [row["split"] for row in encode(run, *options, name="before")[0]]
    assert sorted(before) == ["test", *["train"] * 10, "val"]

    written(tmp_path / "own", 14)
    capfd.readouterr()
    rows, _, _ = encode(run, *options, name="after")
    assert len(rows) == 14
    assert "split" not in rows[0]
    told = capfd.readouterr()
    assert "has other images than at the training, 14 images (" in told.out + told.err
    tested = [f"run={run}", f"hydra.run.dir={tmp_path / 'tested'}"]
    assert "dataset.contents: " in refused(svae.evaluate.main, *tested)
    longer = [f"hydra.run.dir={run}", *TINY, *data, "trainer.max_epochs=2"]
    assert "holds a run with dataset.contents='12 images (" in refused(svae.train.main, *longer)

    for path in (tmp_path / "own").rglob("img1[23].png"):
        path.unlink()
    written(tmp_path / "own", 12)
    run_command(svae.evaluate.main, "trainer.enable_progress_bar=false", *tested)
    assert (tmp_path / "tested" / "metrics.json").is_file()


def test_a_run_of_before_images_were_told_goes_on(tmp_path):
    data = pictures_of(tmp_path / "own", 12)
    run = train(tmp_path / "run", *data)
    config = svae.run.read_config(run)
    del config.dataset.contents
    OmegaConf.save(config, run / "config.yaml")
    train(run, *data, "trainer.max_epochs=2")
    assert svae.run.read_config(run).dataset.contents.startswith("12 images (")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write so many images for a data set of one's own; the settings that choose it."""
    monkeypatch.setenv("SVAE_TRUSTED_TARGETS", "tests")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))

    def write(count, name="images.npy", **options):
        return write_own_array(tmp_path / name, count, **options)

    return write


def test_other_images_of_ones_own_mix_no_splits(own, tmp_path, encode, capfd):
    data = own(30)
    run = train(tmp_path / "run", *data)
    before = svae.run.read_config(run).splits
    assert before.startswith("18 train, 6 val, 6 test (")
    train(run, "trainer.max_epochs=2", *data)
    rows, _, _ = encode(run, *EXACT, name="before")
    assert [row["split"] for row in rows].count("train") == 18

    own(40)
    capfd.readouterr()
    rows, _, _ = encode(run, *EXACT, name="after")
    assert len(rows) == 40
    assert "split" not in rows[0]
    told = capfd.readouterr()
    assert "other images than at the training, 24 train, 8 val, 8 test" in told.out + told.err
    with pytest.raises(ValueError, match=r"^dataset: tests.helpers.OwnArray has other images "):
        svae.images(run)
    for main, *overrides in (
        (svae.evaluate.main, f"run={run}", f"hydra.run.dir={tmp_path / 'tested'}"),
        (svae.train.main, f"hydra.run.dir={run}", *TINY, "trainer.max_epochs=3", *data),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_command(main, "trainer.enable_progress_bar=false", *overrides)
        assert stopped.value.code not in (None, 0)
        told = capfd.readouterr()
        assert before in told.out + told.err + str(stopped.value.code)

    config = svae.run.read_config(run)
    del config.splits  # of a run of before they were told
    OmegaConf.save(config, run / "config.yaml")
    assert len(svae.images(run)["image"]) == 8


def test_images_of_ones_own_that_are_read_a_batch_at_a_time(own, tmp_path, encode):
    held = train(tmp_path / "held", *own(30))
    lazy = train(tmp_path / "lazy", *own(30, lazy=True))
    expected = [row["split"] for row in encode(held, *EXACT, name="a")[0]]
    assert [row["split"] for row in encode(lazy, *EXACT, name="b")[0]] == expected
    here, there = (svae.images(run, split=None) for run in (held, lazy))
    assert here.keys() == there.keys() == {"image", "index", "split"}
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_other_images_have_no_splits(own, deep, tmp_path):
    run = train(tmp_path / "run", *own(30))
    own(20, name="new.npy")
    others = svae.images(run, path=tmp_path / "new.npy")
    assert others.keys() == {"image", "index"}
    assert len(others["image"]) == 20
    assert "split" not in svae.images(deep, path=write_deep(tmp_path / "pictures", 5))


def test_images_as_a_run_reads_them(deep, tmp_path):
    rows = svae.images(deep, split=None)
    assert rows["index"].tolist() == list(range(24))
    own = svae.images(deep, split="test")
    assert torch.equal(rows["image"][own["index"]], own["image"])
    assert "label" in own
    # Of other brightness, and scaled as the training's, not by themselves.
    others = svae.images(deep, path=write_deep(tmp_path / "new", 5, peak=20_000, first=900))
    assert others["image"].shape == (5, 1, 16, 16)
    assert 0.4 < others["image"].max() / rows["image"].max() < 0.6
    with pytest.raises(ValueError, match="split: expected one of train, val, test, got 'all'"):
        svae.images(deep, split="all")


def test_a_data_set_without_files_reads_no_others(digits):
    assert len(svae.images(digits, split="val")["image"]) > 100
    with pytest.raises(ValueError, match=r"path: svae\.datasets\.RotDigits of .* reads no files"):
        svae.images(digits, path="pictures")
