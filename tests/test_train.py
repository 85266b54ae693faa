"""The commands as a user runs them, in this process and on small problems."""

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import svae
import svae.evaluate
import svae.train

SMALL = [
    "dataset.train_copies=1",
    "dataset.eval_copies=1",
    "dataset.batch_size=200",
    "model.pixels_per_image=40",
    "model.encoder.hidden=32",
    "model.generator.hidden=32",
    "evaluation.iwae_samples=3",
    "trainer=cpu",
    "trainer.max_epochs=3",
    "trainer.enable_progress_bar=false",
]


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run a command with overrides; returns the run directory."""
    monkeypatch.chdir(tmp_path)

    def run(main, *overrides: str, name: str = "run") -> Path:
        directory = tmp_path / name
        monkeypatch.setattr(sys, "argv", ["svae", f"hydra.run.dir={directory}", *overrides])
        main()
        return directory

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["svae", f"hydra.run.dir={directory}", *SMALL])
        svae.train.main()
    return directory


def metrics_of(directory):
    return json.loads((directory / "metrics.json").read_text())


def without_time(metrics):
    return {k: v for k, v in metrics.items() if "second" not in k}


def test_the_run_directory_holds_what_was_promised(trained):
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        ".hydra/config.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "figures/manifold.png",
        "figures/reconstructions.png",
        "metrics.csv",
        "metrics.json",
        "train.log",
    } <= names
    assert not [name for name in names if "part" in name]


def test_metrics_have_the_names_of_the_design(trained):
    metrics = metrics_of(trained)
    bound = ["elbo", "log_likelihood", "kl_z", "kl_theta", "kl_shift"]
    expected = {f"{split}/{name}" for split in ("train", "val", "test") for name in bound}
    expected |= {
        "test/iwae_bound",
        "test/theta_circular_correlation",
        "test/theta_circular_correlation_plain",
        "test/theta_error_deg",
        "test/theta_half_turns",
        "test/shift_x_correlation",
        "test/shift_y_correlation",
        "test/shift_rmse_px",
        "test/centre_x_correlation",
        "test/centre_y_correlation",
        "test/centre_rmse_px",
        "test/clustering_accuracy",
        "test/nmi",
        "test/ari",
        "train/seconds_per_epoch",
        "train/images_per_second",
    }
    assert expected <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(name.count("/") == 1 for name in metrics)
    total = metrics["test/log_likelihood"] - sum(metrics[f"test/kl_{k}"] for k in Z_THETA_SHIFT)
    assert metrics["test/elbo"] == pytest.approx(total, rel=1e-5)
    assert metrics["test/iwae_bound"] > metrics["test/elbo"]


Z_THETA_SHIFT = ("z", "theta", "shift")


def test_metrics_csv_has_a_row_per_epoch(trained):
    with (trained / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    elbo = [float(row["val/elbo"]) for row in rows]
    assert elbo[2] > elbo[0]
    best = metrics_of(trained)["val/elbo"]
    assert best == pytest.approx(max(elbo), rel=1e-6)
    assert all(row["train/elbo"] for row in rows)


def test_the_config_says_what_was_decided(trained):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["image_shape"] == [1, 28, 28]
    assert config["trainer"]["accelerator"] == "cpu"
    assert config["environment"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert config["trainer"]["precision"] in ("bf16-mixed", "32-true")
    assert "${" not in (trained / "config.yaml").read_text()


def test_checkpoints_are_tensors_and_plain_containers(trained):
    for name in ("best", "last"):
        content = torch.load(trained / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert "state_dict" in content


def test_two_equal_runs_give_equal_numbers(trained, command):
    again = command(svae.train.main, *SMALL)
    assert without_time(metrics_of(again)) == without_time(metrics_of(trained))


def test_another_seed_gives_other_numbers(trained, command):
    other = command(svae.train.main, *SMALL, "seed=2")
    assert metrics_of(other)["test/elbo"] != metrics_of(trained)["test/elbo"]


def test_images_read_from_their_files_train_as_those_in_memory(command, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(60) % 3)
    options = [
        *(option for option in SMALL if not option.startswith("dataset.")),
        *("dataset=images", f"dataset.path={tmp_path / 'a.npz'}", "dataset.batch_size=20"),
        "~callbacks.figures",
    ]
    runs = [
        command(svae.train.main, *options, f"dataset.in_memory={held}", name=held)
        for held in ("true", "false")
    ]
    held, read = (without_time(metrics_of(run)) for run in runs)
    assert held == read


def test_what_holds_objects_in_the_middle_is_in_the_objective_and_in_no_bound(command):
    held = "model.centre_std_px=0.5"
    run = command(svae.train.main, *SMALL, held, "trainer.max_epochs=6", "~callbacks.figures")
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    off_centre = [float(row["train/off_centre"]) for row in rows]
    assert 0 <= off_centre[-1] < 0.5 * max(off_centre)
    for row, off in zip(rows, off_centre, strict=True):
        value = {name: float(row[f"train/{name}"]) for name in ("objective", "elbo", "guidance")}
        assert value["objective"] == pytest.approx(value["elbo"] - value["guidance"] - off, 1e-4)
    assert not any("off_centre" in name for name in metrics_of(run) if "train" not in name)


@pytest.mark.parametrize("scheduler", ["cosine", "plateau"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(command, scheduler):
    options = [*SMALL, f"scheduler={scheduler}", "trainer.max_epochs=4"]
    whole = command(svae.train.main, *options, name="whole")
    # Stopped after two of the four epochs; the schedule is that of four.
    stop = "+callbacks.stop={_target_: tests.helpers.StopAfter, epochs: 2}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVAE_TRUSTED_TARGETS", "tests")
        patch.syspath_prepend(str(Path(__file__).parents[1]))
        first = command(svae.train.main, *options, stop, "test=false", name="first")
    last = first / "checkpoints" / "last.ckpt"
    resumed = command(svae.train.main, *options, f"ckpt_path={last}", name="resumed")
    assert without_time(metrics_of(resumed)) == without_time(metrics_of(whole))
    for column in ("epoch", "val/elbo", "train/elbo", "train/learning_rate"):
        with (whole / "metrics.csv").open() as a, (resumed / "metrics.csv").open() as b:
            rows = [[row[column] for row in csv.DictReader(file)] for file in (a, b)]
        assert rows[0] == rows[1]


def test_the_best_checkpoint_of_before_comes_along(command):
    """Resumed with a ruinous learning rate, a run still ends with what was best before."""
    first = command(svae.train.main, *SMALL, "scheduler=constant", name="first")
    last = first / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    for group in content["optimizer_states"][0]["param_groups"]:
        group["lr"] = group["initial_lr"] = 0.5
    content["lr_schedulers"][0]["base_lrs"] = [0.5, 0.5]
    ruined = last.with_name("ruined.ckpt")
    torch.save(content, ruined)
    options = [*SMALL, "scheduler=constant", "trainer.max_epochs=4", f"ckpt_path={ruined}"]
    resumed = command(svae.train.main, *options, name="resumed")
    for name in ("val/elbo", "val/kl_z"):
        assert metrics_of(resumed)[name] == metrics_of(first)[name]
    assert metrics_of(resumed)["test/elbo"] == metrics_of(first)["test/elbo"]
    assert (resumed / "checkpoints" / "best.ckpt").is_file()


def test_evaluation_repeats_the_test_from_the_run_directory(trained, command):
    evaluated = command(svae.evaluate.main, f"run={trained}", "trainer=cpu", name="evaluated")
    expected = {k: v for k, v in metrics_of(trained).items() if k.startswith("test/")}
    assert metrics_of(evaluated) == pytest.approx(expected, rel=1e-6)
    assert (evaluated / "figures" / "reconstructions.png").is_file()
    assert (evaluated / "report.html").is_file()
    log = (evaluated / "evaluate.log").read_text().splitlines()
    assert "test/elbo" in log[-2]
    assert str(evaluated) in log[-1]


def test_the_bound_does_not_depend_on_the_evaluation_batch(trained, command):
    options = ["dataset.eval_batch_size=90", "trainer.precision=32-true"]
    one = command(svae.train.main, *SMALL, *options, name="one")
    two = command(svae.train.main, *SMALL, options[1], name="two")
    assert metrics_of(one)["test/elbo"] == pytest.approx(metrics_of(two)["test/elbo"], rel=1e-6)


def test_load_gives_a_model_that_encodes_and_decodes(trained):
    vae = svae.load(trained)
    images = torch.rand(5, 1, 28, 28)
    latents = vae.encode(images)
    assert isinstance(latents, svae.Latents)
    assert vae.decode(latents).shape == images.shape
    assert not vae.training
    last = svae.load(str(trained), checkpoint="last")
    assert last.decode(latents).shape == images.shape


@pytest.mark.slow
def test_rows_of_metrics_csv_hold_what_their_epoch_measured(command):
    """Validated every second epoch, and cut in the middle of the third."""
    cut = ["trainer.max_epochs=-1", "trainer.max_steps=17", "trainer.check_val_every_n_epoch=2"]
    options = [*SMALL, *cut, "test=false", "evaluation.iwae_samples=0"]
    directory = command(svae.train.main, *options)
    with (directory / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["7", "14", "17"]
    assert [bool(row["train/elbo"]) for row in rows] == [True, True, False]
    assert [bool(row["val/elbo"]) for row in rows] == [False, True, False]
