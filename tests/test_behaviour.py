"""What a run leaves behind when it does not come to its end, and how it goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.helpers import run_command

import svae
import svae.train
from svae.run import first_difference

SMALL = [
    "dataset.train_copies=1",
    "dataset.eval_copies=1",
    "dataset.batch_size=200",
    "model.pixels_per_image=40",
    "model.encoder.hidden=16",
    "model.generator.hidden=16",
    "evaluation.iwae_samples=2",
    "callbacks.figures.manifold_side=3",
    "trainer=cpu",
    "trainer.max_epochs=3",
    "trainer.enable_progress_bar=false",
]


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    monkeypatch.setenv("SVAE_TRUSTED_TARGETS", "tests")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


def train(directory: Path, *options: str) -> Path:
    run_command(svae.train.main, f"hydra.run.dir={directory}", *SMALL, *options)
    return directory


def interrupted(directory: Path, epoch: int, batch: int) -> Path:
    stop = f"+callbacks.stop={{_target_: tests.helpers.Interrupt, epoch: {epoch}, batch: {batch}}}"
    with pytest.raises(SystemExit) as stopped:
        train(directory, stop)
    assert stopped.value.code == 130
    return directory


def log_of(directory: Path) -> list[str]:
    return [line.split(" - ", 1)[1] for line in (directory / "train.log").read_text().splitlines()]


def numbers(directory: Path) -> dict[str, float]:
    metrics = json.loads((directory / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if "second" not in name}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("behaviour") / "whole")


def test_ctrl_c_leaves_a_run_that_goes_on_as_if_nothing_had_been(tmp_path, whole):
    first = interrupted(tmp_path / "first", epoch=2, batch=3)
    names = {str(p.relative_to(first)) for p in first.rglob("*") if p.is_file()}
    assert {
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "metrics.csv",
        "figures/reconstructions.png",
        "figures/manifold.png",
        "figures/curves.png",
        "report.html",
    } <= names
    assert numbers(first)["val/elbo"] < 0
    assert not any(name.startswith("test/") for name in numbers(first))
    assert log_of(first)[-1].endswith(f"the same command with hydra.run.dir={first} goes on")
    second = train(tmp_path / "second", "ckpt_path=last")
    assert numbers(second) == numbers(whole)


def test_ctrl_c_in_the_first_epoch_leaves_a_usable_checkpoint(tmp_path, whole):
    first = interrupted(tmp_path / "first", epoch=0, batch=2)
    assert svae.load(first, "last").decode(svae.Latents(*latents())).shape == (1, 1, 28, 28)
    assert (first / "report.html").is_file()
    assert (first / "figures" / "reconstructions.png").is_file()
    second = train(tmp_path / "second", "ckpt_path=last")
    assert numbers(second) == numbers(whole)


def test_ctrl_c_in_the_test_keeps_the_training(tmp_path, whole):
    run = interrupted(tmp_path / "run", epoch=0, batch=-3)
    assert numbers(run)["val/elbo"] == numbers(whole)["val/elbo"]
    assert not any(name.startswith("test/") for name in numbers(run))
    assert (run / "report.html").is_file()
    assert (run / "figures" / "reconstructions.png").is_file()


def latents():
    return torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 2)


def test_the_newest_run_of_the_same_kind_is_found(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run = train(tmp_path / name, f"seed={seed}", "trainer.max_epochs=1", "test=false")
        time = 1_700_000_000 + ord(name)
        os.utime(run / "checkpoints" / "last.ckpt", (time, time))
    run = train(tmp_path / "d", "ckpt_path=last", "trainer.max_epochs=2", "test=false")
    assert log_of(run)[0] == f"going on with {tmp_path}/b/checkpoints/last.ckpt"


def test_no_run_of_the_same_kind(tmp_path):
    train(tmp_path / "a", "trainer.max_epochs=1", "test=false")
    with pytest.raises(SystemExit):
        train(tmp_path / "b", "ckpt_path=last", "seed=7")
    message = log_of(tmp_path / "b")[-1]
    assert "none of the 1" in message
    assert "has seed=1 and not 7" in message
    assert not (tmp_path / "b" / "config.yaml").exists()


def test_a_difference_without_matter_hides_no_other():
    old = {"dataset": {"data_dir": "a", "shift_std_px": 1.4, "eval_batch_size": 5}}
    new = {"dataset": {"data_dir": "b", "shift_std_px": 3.0, "eval_batch_size": 6}}
    assert first_difference(old, new, ["dataset"]) == ("dataset.shift_std_px", 1.4, 3.0)
    new["dataset"]["shift_std_px"] = 1.4
    assert first_difference(old, new, ["dataset"]) is None


def test_the_first_difference_is_in_the_order_of_the_sections():
    old = {"seed": 1, "model": {"z_dim": 2, "encoder": {"hidden": [8, 8]}}, "prior": None}
    new = {"seed": 2, "model": {"z_dim": 2, "encoder": {"hidden": [8, 9]}}, "prior": {"z": 1}}
    hidden = ("model.encoder.hidden", [8, 8], [8, 9])
    assert first_difference(old, new, ["model", "seed"]) == hidden
    assert first_difference(old, new, ["seed", "model"]) == ("seed", 1, 2)
    assert first_difference(old, new, ["prior"]) == ("prior", None, {"z": 1})
    assert first_difference(old, new, ["logger"]) is None


def test_a_full_disk_costs_nothing_that_was_saved(tmp_path):
    """In a process of its own, in which from the second epoch on files cannot grow."""
    run = tmp_path / "run"
    full = "+callbacks.full={_target_: tests.helpers.FullDisk, epoch: 1, limit: 20000}"
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "svae.train", f"hydra.run.dir={run}", *SMALL, full],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([root, *sys.path])},
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    assert done.returncode == 2, lines
    assert "File too large" in lines[-1]
    assert "what was saved before is whole (best.ckpt, last.ckpt in " in lines[-1]
    assert "Traceback" not in done.stdout + done.stderr
    for name in ("best", "last"):
        content = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert content["epoch"] == 0
    assert not list(run.rglob("*.part"))


def test_the_end_says_what_came_out_and_where_it_lies(tmp_path):
    run = train(tmp_path / "run", "trainer.max_epochs=1")
    what, where = log_of(run)[-2:]
    assert what.startswith("val/elbo -")
    assert "test/elbo -" in what
    assert where == f"run directory: {run} (open report.html)"


def test_another_run_s_folder_is_not_written_into(whole):
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file() and p.suffix != ".log"}
    with pytest.raises(SystemExit):
        train(whole, "seed=7")
    assert "with seed=1, not 7" in log_of(whole)[-1]
    assert {p: p.read_bytes() for p in before} == before


def test_every_job_of_a_sweep_has_a_report(tmp_path):
    sweep = tmp_path / "sweep"
    options = ["-m", "model.z_dim=1,3", f"hydra.sweep.dir={sweep}", "trainer.max_epochs=1"]
    run_command(svae.train.main, *options, *SMALL[:-2], SMALL[-1])
    for job, name in (("z_dim-1", "manifold"), ("z_dim-3", "traversals")):
        assert (sweep / job / "report.html").is_file()
        assert (sweep / job / "figures" / f"{name}.png").is_file()
