"""The figures of a run, drawn by the callback in trainings of a few seconds."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tests.callbacks.recording import Recorder
from tests.helpers import run_command, write_pictures

import svae.evaluate
import svae.train
from svae.callbacks import Figures
from svae.callbacks.figures import rows_of
from svae.gallery import Gallery
from svae.report.page import CAPTIONS
from svae.run import prepared_data, read_config

TINY = [
    "model.encoder.hidden=16",
    "model.generator.hidden=16",
    "trainer.precision=32-true",
    "evaluation.iwae_samples=0",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "callbacks.figures.manifold_side=4",
]
DIGITS = [
    "dataset.train_copies=1",
    "dataset.eval_copies=1",
    "trainer.limit_train_batches=3",
    "trainer.max_epochs=5",
    "callbacks.figures.every_n_epochs=2",
]
OF_EVERY_TIME = {"reconstructions", "manifold", "latents", "pose", "found_pose", "curves"}
OF_THE_END = {"worst", "samples", "interpolations", "rotations"}
OF_CLUSTERS = {"aligned", "confusion", "aligned_spectral", "confusion_spectral"}


def train(folder, *overrides):
    """A run with a dashboard, and what `Gallery.worst` and the curves were given."""
    seen = {"worst": [], "curves": []}
    worst, curves = Gallery.worst, svae.callbacks.figures.curves_figure

    def watched_worst(self, images, inferred, names, ctf=None):
        seen["worst"].append((images, inferred, names))
        return worst(self, images, inferred, names, ctf)

    def watched_curves(rows):
        seen["curves"].append([int(row["epoch"]) for row in rows])
        return curves(rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVAE_TRUSTED_TARGETS", "tests")
        patch.setattr(Gallery, "worst", watched_worst)
        patch.setattr(svae.callbacks.figures, "curves_figure", watched_curves)
        recorder = "+logger.recorder={_target_: tests.callbacks.recording.Recorder}"
        run_command(svae.train.main, f"hydra.run.dir={folder}", *TINY, recorder, *overrides)
    return SimpleNamespace(folder=folder, shown=Recorder.newest, **seen)


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    return train(tmp_path_factory.mktemp("tested") / "run", *DIGITS)


@pytest.fixture(scope="module")
def untested(tmp_path_factory):
    """Pictures in files, several of one brightness, without a test."""
    folder = tmp_path_factory.mktemp("untested")
    write_pictures(folder / "pictures", count=90, labels=3)
    return train(
        folder / "run",
        "dataset=images",
        f"dataset.path={folder / 'pictures'}",
        "dataset.val_fraction=0.4",
        "trainer.max_epochs=1",
        "model.z_dim=3",
        "test=false",
    )


def names_in(folder):
    return {path.stem for path in (folder / "figures").glob("*.png")}


def test_all_figures_of_a_tested_run_are_there_and_whole(tested):
    names = OF_EVERY_TIME | OF_THE_END | OF_CLUSTERS
    assert names_in(tested.folder) == names
    assert names <= CAPTIONS.keys()
    for path in (tested.folder / "figures").iterdir():
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 100


def test_a_run_without_test_has_the_figures_of_its_validation_split(untested):
    names = {"reconstructions", "traversals", "latents", "pose_histogram", "found_pose", "curves"}
    assert names_in(untested.folder) == names | OF_THE_END


def test_they_are_drawn_every_few_epochs_and_at_the_end(tested):
    figures = tested.shown.figures
    by_epoch = {}
    for epoch, name, _ in figures:
        by_epoch.setdefault(epoch, []).append(name)
    # Epochs count from 0: after the second, the fourth, and the test after the fifth.
    assert by_epoch.keys() == {1, 3, 5}
    for epoch in (1, 3):
        assert sorted(by_epoch[epoch]) == sorted(OF_EVERY_TIME)
    assert sorted(by_epoch[5]) == sorted(OF_EVERY_TIME | OF_THE_END | OF_CLUSTERS)


def test_dashboards_get_the_files_of_the_folder(tested):
    last = {name: content for _, name, content in tested.shown.figures}
    for name in OF_EVERY_TIME | OF_THE_END | OF_CLUSTERS:
        assert last[name] == (tested.folder / "figures" / f"{name}.png").read_bytes()


def test_the_curves_run_to_the_last_epoch_after_the_test_too(tested):
    assert tested.curves == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize(("run", "split"), [("tested", "test"), ("untested", "val")])
def test_rows_of_the_latent_table_belong_to_their_thumbnails(run, split, request):
    run = request.getfixturevalue(run)
    ((columns, images),) = run.shown.tables
    data = prepared_data(read_config(run.folder))
    batch = data.splits[split]
    order = batch["index"].argsort()
    assert columns["index"].tolist() == batch["index"][order].tolist()
    torch.testing.assert_close(images, batch["image"][order])
    labels = batch["label"][order].tolist()
    if split == "val":
        assert columns["label"].tolist() == [f"kind{label}" for label in labels]
        names = [data.file_names[i] for i in columns["index"]]
        assert columns["file"].tolist() == names
        assert all(n.startswith(k) for n, k in zip(names, columns["label"], strict=True))
    else:
        assert columns["label"].tolist() == labels
        assert "file" not in columns
    expected = svae.load(run.folder, "best" if split == "test" else "last").encode(images)
    z0 = torch.from_numpy(columns["z0"])
    assert torch.corrcoef(torch.stack((z0, expected.z[:, 0])))[0, 1] > 0.999


@pytest.mark.parametrize(("run", "split"), [("tested", "test"), ("untested", "val")])
def test_the_worst_have_the_lowest_log_likelihoods(run, split, request):
    run = request.getfixturevalue(run)
    ((images, inferred, names),) = run.worst
    ((columns, _),) = run.shown.tables
    index, nats = columns["index"], columns["log_likelihood"]
    lowest = index[nats.argsort()[:12]]
    assert inferred.index.tolist() == lowest.tolist()
    data = prepared_data(read_config(run.folder))
    everything = data.everything()
    rows = torch.searchsorted(everything.tensors["index"], torch.from_numpy(lowest))
    torch.testing.assert_close(images, everything[rows]["image"])
    if split == "val":
        assert names == [data.file_names[i] for i in lowest]
    else:
        assert names == [str(i) for i in lowest]


def test_a_large_table_is_thinned_and_bright_images_are_scaled(tmp_path, monkeypatch):
    monkeypatch.setattr("svae.callbacks.figures.TABLE_ROWS", 7)
    write_pictures(tmp_path / "pictures", count=40)
    run = train(
        tmp_path / "run",
        "dataset=images",
        f"dataset.path={tmp_path / 'pictures'}",
        "dataset.normalize=standard",
        "dataset.val_fraction=0.4",
        "trainer.max_epochs=1",
        "callbacks.figures.every_n_epochs=0",
        "test=false",
    )
    ((columns, images),) = run.shown.tables
    assert len(columns["index"]) == len(images) == 7
    assert images.min() == 0
    assert images.max() == 1
    batch = prepared_data(read_config(run.folder)).splits["val"]
    assert columns["index"][0] == batch["index"].min()
    assert columns["index"][-1] == batch["index"].max()
    for index, image in zip(columns["index"], images, strict=True):
        (raw,) = batch["image"][batch["index"] == index]
        assert torch.corrcoef(torch.stack((raw.flatten(), image.flatten())))[0, 1] > 0.9999
    # At the end only.
    assert len({name for _, name, _ in run.shown.figures}) == len(run.shown.figures)


def test_colours_and_a_mask(tmp_path):
    (tmp_path / "rgb").mkdir()
    for i in range(12):
        pixels = torch.randint(0, 255, (12, 12, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "rgb" / f"{i}.png")
    run = train(
        tmp_path / "run",
        "dataset=images",
        f"dataset.path={tmp_path / 'rgb'}",
        "model.likelihood.mask_radius_px=4",
        "trainer.max_epochs=1",
    )
    # One image is tested: nothing to scatter and no pair.
    expected = {"reconstructions", "manifold", "pose_histogram", "curves", "worst", "samples"}
    assert names_in(run.folder) == expected | {"found_pose", "rotations"}
    ((_, images),) = run.shown.tables
    assert images.shape == (1, 3, 12, 12)


def test_an_epoch_without_validation_draws_nothing(tmp_path):
    options = ["trainer.check_val_every_n_epoch=3", "trainer.max_epochs=4", "test=false"]
    run = train(tmp_path / "run", *DIGITS, *options, "callbacks.figures.every_n_epochs=1")
    assert [epoch for epoch, name, _ in run.shown.figures if name == "manifold"] == [2, 3]


def test_evaluation_draws_the_same_without_curves(tested, tmp_path):
    folder = tmp_path / "evaluated"
    run_command(
        svae.evaluate.main, f"run={tested.folder}", "trainer=cpu", f"hydra.run.dir={folder}"
    )
    assert names_in(folder) == OF_EVERY_TIME - {"curves"} | OF_THE_END | OF_CLUSTERS


def test_rows_are_found_whatever_the_order():
    batch = {"index": torch.tensor([9, 4, 30, 7])}
    rows = rows_of(batch, torch.tensor([30, 4, 4, 9]))
    assert rows.tolist() == [2, 1, 1, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"every_n_epochs": -1}, "every_n_epochs: expected .* at least 0, got -1"),
        ({"examples": 0}, "examples: expected .* at least 1, got 0"),
        ({"examples": 13}, "examples: expected at most 12, got 13"),
        ({"manifold_side": 1}, "manifold_side: expected .* at least 2, got 1"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        Figures("figures", **wrong)
