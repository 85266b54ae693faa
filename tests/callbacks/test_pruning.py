"""Jobs of a sweep that are worse than most others end early."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.helpers import run_command
from tests.test_train import SMALL

import svae.train
from svae.callbacks import MedianPruning
from svae.status import read_status

ROWS = "epoch,step,train/elbo,val/elbo\n0,7,-300,{}\n1,14,-290,\n2,21,-280,{}\n3,28,-270,-1\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a job beside three others that came to epoch 2, and one that did not."""
    (tmp_path / ".jobs").mkdir()
    for name, first, last in (("a", -200, -100), ("b", -200, -300), ("c", -100, "nan")):
        add(tmp_path / name, ROWS.format(first, last))
    add(tmp_path / "d", "epoch,step,val/elbo\n0,7,-10\n")
    own = tmp_path / "own"
    add(own, ROWS.format(1000, 1000))
    return own


def add(run: Path, rows: str) -> None:
    run.mkdir()
    (run / "metrics.csv").write_text(rows)


class Trainer:
    """What the callback asks a trainer."""

    is_global_zero = True
    should_stop = False
    state = SimpleNamespace(fn="fit")
    strategy = SimpleNamespace(broadcast=lambda reason: reason)

    def __init__(self, epoch: int, elbo: float) -> None:
        self.current_epoch = epoch
        self.callback_metrics = {"val/elbo": torch.tensor(elbo)}


def stops(pruning: MedianPruning, epoch: int, elbo: float) -> bool:
    trainer = Trainer(epoch, elbo)
    pruning.on_validation_end(trainer, None)
    assert bool(pruning.reason) == trainer.should_stop
    return trainer.should_stop


@pytest.mark.parametrize(("elbo", "stopped"), [(-101, True), (-100, False), (-99, False)])
def test_below_the_median_of_the_others(folder, elbo, stopped):
    """Of -100, -200 and -100: the best so far, without what is not finite, nor later epochs."""
    pruning = MedianPruning(str(folder), warmup_epochs=0, min_jobs=3)
    assert stops(pruning, 2, elbo) == stopped


def test_the_best_so_far_counts(folder):
    pruning = MedianPruning(str(folder), warmup_epochs=0, min_jobs=3)
    assert not stops(pruning, 1, -90)
    resumed = MedianPruning(str(folder), warmup_epochs=0, min_jobs=3)
    resumed.load_state_dict(pruning.state_dict())
    assert not stops(resumed, 2, -500)


@pytest.mark.parametrize(
    ("options", "epoch"),
    [
        ({"warmup_epochs": 3, "min_jobs": 3}, 2),
        ({"warmup_epochs": 0, "min_jobs": 4}, 2),  # that came as far
        ({"warmup_epochs": 0, "min_jobs": 1}, 4),
    ],
)
def test_with_too_little_to_compare_with_nothing_ends(folder, options, epoch):
    assert not stops(MedianPruning(str(folder), **options), epoch, -1000)


def test_a_run_by_itself_does_not_end(folder):
    (folder.parent / ".jobs").rmdir()
    assert not stops(MedianPruning(str(folder), 0, 1), 2, -1000)


def test_the_validation_of_a_test_ends_nothing(folder):
    trainer = Trainer(2, -1000)
    trainer.state = SimpleNamespace(fn="validate")
    MedianPruning(str(folder), 0, 1).on_validation_end(trainer, None)
    assert not trainer.should_stop


def test_a_pruned_job_has_ended(tmp_path, capfd):
    for name in ("a", "b"):
        add(tmp_path / name, ROWS.format(-1, -1))
    (tmp_path / ".jobs").mkdir()
    options = ["callbacks=pruned", "callbacks.pruning.warmup_epochs=1", "~callbacks.figures"]
    options += ["callbacks.pruning.min_jobs=2", f"hydra.sweep.dir={tmp_path}", *SMALL]
    for _ in range(2):
        run_command(svae.train.main, "-m", "seed=1", *options)
    printed = capfd.readouterr().out
    assert "1 job (1 pruned)" in printed
    assert "already pruned" in printed
    (job,) = tmp_path.glob("seed-1_*")
    status = read_status(job)
    metrics = json.loads((job / "metrics.json").read_text())
    assert status.state == "pruned"
    assert status.message.startswith("after 2 epochs the best val/elbo is -")
    assert status.objective == metrics["val/elbo"]
    assert "test/elbo" not in metrics
    assert len((job / "metrics.csv").read_text().splitlines()) == 3
