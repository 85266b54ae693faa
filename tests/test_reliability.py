"""What a training survives: signals, kills, numbers that are not finite, full disks, strangers."""

import errno
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from tests.crash_trials import crash_trial, differences
from tests.helpers import run_command
from tests.soak import Reading, anonymous_mb, growth

import svae
import svae.callbacks.figures
import svae.callbacks.metrics_csv
import svae.decode
import svae.encode
import svae.evaluate
import svae.train
from svae import resume
from svae.datasets.base import EpochBatches
from svae.files import write_atomic
from svae.model import SpatialVAE
from svae.module import VAEModule
from svae.signals import Signals
from svae.status import Status, read_status

SMALL = [
    "dataset.train_copies=1",
    "dataset.eval_copies=1",
    "dataset.batch_size=300",
    "model.pixels_per_image=20",
    "model.encoder.hidden=8",
    "model.generator.hidden=8",
    "evaluation.iwae_samples=0",
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=3",
    "trainer.enable_progress_bar=false",
]
NO_FIGURES = "~callbacks.figures"


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    monkeypatch.setenv("SVAE_TRUSTED_TARGETS", "tests")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


def train(run: Path, *options: str) -> int | str:
    """Train into a folder; what the command ended with."""
    try:
        run_command(svae.train.main, f"hydra.run.dir={run}", *SMALL, *options)
    except SystemExit as ended:
        return ended.code
    return 0


def log_of(run: Path) -> list[str]:
    return [line.split(" - ", 1)[-1] for line in (run / "train.log").read_text().splitlines()]


def content(run: Path) -> dict[Path, bytes]:
    """What lies in a folder, the log apart."""
    return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.suffix != ".log"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nobody interrupted, by their options; each is made once."""
    made = {}

    def run(*options: str) -> Path:
        if options not in made:
            made[options] = tmp_path_factory.mktemp("whole") / "run"
            assert train(made[options], NO_FIGURES, *options) == 0
        return made[options]

    return run


STEPS = ["trainer.max_epochs=-1", "trainer.max_steps=13"]
PLATEAU = ["scheduler=plateau", "scheduler.patience=0", "optimizer.lr=0.5"]
DROPOUT = ["model.encoder._target_=tests.helpers.Dropout"]
TWICE = ["trainer.accumulate_grad_batches=2"]


@pytest.mark.parametrize(
    ("epoch", "batch", "options"),
    [
        (0, 2, []),
        (1, 3, []),
        (1, 4, []),  # the last: the step is repeated
        (1, -1, []),
        (1, -2, []),
        (0, -3, []),
        (1, -2, STEPS),
        (2, 0, STEPS),
        (1, -2, PLATEAU),
        (1, 2, DROPOUT),
        (1, -1, DROPOUT),
        (1, -2, DROPOUT),
        (1, 0, TWICE),  # between the two batches of a step
    ],
)
def test_an_interrupted_run_goes_on_in_its_folder_and_ends_as_if_nothing_had_been(
    epoch, batch, options, whole, tmp_path
):
    run = tmp_path / "run"
    place = f"epoch: {epoch}, batch: {batch}, name: SIGTERM"
    stop = f"+callbacks.stop={{_target_: tests.helpers.Interrupt, {place}}}"
    assert train(run, NO_FIGURES, *options, stop) == 143
    status = read_status(run)
    assert status[:2] == ("interrupted", "SIGTERM")
    assert log_of(run)[-1].endswith(f"hydra.run.dir={run} goes on")
    assert train(run, NO_FIGURES, *options) == 0
    assert differences(run, whole(*options)) == []
    assert read_status(run).state == "finished"


@pytest.mark.parametrize(("batch", "saved"), [(2, 3), (-1, 4)])
def test_what_is_saved_within_an_epoch_is_that_moment(batch, saved, tmp_path):
    """In validation it is what was there before the last of the five steps."""
    run = tmp_path / "run"
    place = f"epoch: 1, batch: {batch}, name: SIGUSR1"
    stop = f"+callbacks.stop={{_target_: tests.helpers.Interrupt, {place}}}"
    assert train(run, NO_FIGURES, stop) == 128 + signal.SIGUSR1
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 5 + saved


def test_a_run_that_was_moved_keeps_its_best_checkpoint(whole, tmp_path):
    """And one that lies at the old place is another run's."""
    run, moved = tmp_path / "run", tmp_path / "moved"
    stop = "+callbacks.stop={_target_: tests.helpers.Interrupt, epoch: 0, batch: -3}"
    assert train(run, NO_FIGURES, stop) == 130
    run.rename(moved)
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best.ckpt").write_bytes(b"another")
    assert train(moved, NO_FIGURES, "optimizer.lr=0.004") == 0
    assert differences(moved, whole()) == []
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == b"another"


def test_a_finished_run_is_left_as_it_is(whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(whole(), run)
    before = content(run)
    objectives = []
    prepare = resume.nothing_to_do
    monkeypatch.setattr(
        svae.train, "nothing_to_do", lambda *a: objectives.append(a[1]) or prepare(*a)
    )
    assert train(run, NO_FIGURES) == 0
    assert content(run) == before
    assert log_of(run)[-1] == f"{run}: already finished"
    assert objectives[0].objective == json.loads(before[run / "metrics.json"])["val/elbo"]
    # What changes nothing of it is told.
    assert train(run, NO_FIGURES, "callbacks.early_stopping.patience=3") == 0
    assert content(run) == before
    told = "already finished, with callbacks.early_stopping.patience=20; 3 changes nothing of it"
    assert told in log_of(run)[-1]
    # And what would have changed its training is another run's.
    assert train(run, NO_FIGURES, "trainer.gradient_clip_val=0.1", "trainer.max_epochs=4") == 2
    assert "holds a run with trainer.gradient_clip_val=None, not 0.1" in log_of(run)[-1]
    assert content(run) == before


def test_a_run_is_not_trained_from_its_own_config(whole, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(whole(), run)
    before = content(run)
    for folder in (run, run / ".hydra"):
        other = [f"--config-path={folder}", "--config-name=config", f"output_dir={tmp_path / 'b'}"]
        with pytest.raises(SystemExit) as ended:
            run_command(svae.train.main, *other, f"hydra.run.dir={tmp_path / 'b'}", "seed=7")
        assert ended.value.code == 2
        told = capfd.readouterr()
        assert "expected the configs of svae; to train a run again" in told.out + told.err
        assert content(run) == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("seed=2", "with seed=1, not 2"),
        ("max_gradient_spike=null", "with max_gradient_spike=5.0, not None"),
        ("model.generator.hidden=9", "with model.generator.hidden=8, not 9"),
    ],
)
@pytest.mark.parametrize("state", ["finished", "running"])
def test_a_run_of_other_settings_is_refused(option, message, state, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole(), run)
    (run / "status.json").write_text(json.dumps(Status(state, "", -1.0)._asdict()))
    before = content(run)
    assert before[run / ".hydra" / "overrides.yaml"]
    assert train(run, NO_FIGURES, option) == 2
    assert f"{run} holds a run {message}; expected" in log_of(run)[-1]
    assert content(run) == before


def test_a_finished_run_may_train_for_longer(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole(), run)
    assert train(run, NO_FIGURES, "trainer.max_epochs=4") == 0
    rows = (run / "metrics.csv").read_text().splitlines()
    assert rows[:4] == (whole() / "metrics.csv").read_text().splitlines()
    assert len(rows) == 5
    hydra = {p.name: p.read_text() for p in (run / ".hydra").iterdir()}
    assert "trainer.max_epochs=4\n" in hydra["overrides.yaml"]
    assert OmegaConf.create(hydra["config.yaml"]).trainer.max_epochs == 4
    assert OmegaConf.create(hydra["hydra.yaml"]).hydra.job.name == "train"
    assert any("trainer.max_epochs is 4 and was 3" in line for line in log_of(run))
    assert train(run, NO_FIGURES, "trainer.max_epochs=2") == 2
    assert "trainer.max_epochs: expected at least 4, the epochs that" in log_of(run)[-1]


def test_an_evaluation_writes_no_status(whole, tmp_path):
    into = f"hydra.run.dir={tmp_path / 'evaluated'}"
    run_command(svae.evaluate.main, f"run={whole()}", into, "trainer=cpu")
    assert read_status(tmp_path / "evaluated") is None


def test_batches_that_were_served_are_left_out_once():
    batches = EpochBatches(20, 4, shuffle=True)
    whole = [rows.tolist() for rows in batches]
    batches.skipped = 3
    assert [rows.tolist() for rows in batches] == whole[3:]
    assert batches.served == 5
    assert [rows.tolist() for rows in batches] == whole


def test_a_second_ctrl_c_ends_at_once_and_other_signals_do_not(capfd):
    before = signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        assert signals.received is None
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "Ctrl-C again ends at once" in capfd.readouterr().err


@pytest.fixture
def poisoned(monkeypatch):
    """Images whose loss, or gradient alone, is not finite from a step on."""

    def poison(kind: str, step: int, images: list[int]) -> None:
        training_elbo = SpatialVAE.training_elbo

        def poisoned_elbo(self, image, noise, epoch, *, ctf=None):
            elbo = training_elbo(self, image, noise, epoch, ctf=ctf)
            chosen = torch.isin(noise.index, torch.tensor(images)).nonzero().flatten()
            if noise.step >= step and len(chosen):
                weight = next(self.parameters()).sum()
                # The root of 0 is 0, and its gradient infinite.
                bad = weight * float("nan") if kind == "loss" else (weight * 0).sqrt()
                object.__setattr__(
                    elbo,
                    "log_likelihood",
                    elbo.log_likelihood.index_add(0, chosen, bad.expand(len(chosen))),
                )
            return elbo

        monkeypatch.setattr(SpatialVAE, "training_elbo", poisoned_elbo)

    return poison


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("spike", ["5.0", "null"])
def test_what_is_not_finite_ends_the_training_at_once(kind, spike, poisoned, tmp_path):
    run, options = tmp_path / "run", [NO_FIGURES, f"max_gradient_spike={spike}"]
    poisoned(kind, 5, [45, 218, 1599])
    assert train(run, *options) == 1
    message = log_of(run)[-1]
    step, named = message.split(": ", 1)[0], message.split("of the batch: ")[1].split(";")[0]
    assert step.startswith("training step ")
    assert int(step.split()[2]) >= 5
    assert f"the {kind} is not finite for" in message
    assert set(named.split(", ")) <= {"45", "218", "1599"}
    assert f"(best.ckpt, last.ckpt in {run}/checkpoints)" in message
    assert read_status(run) == Status("failed", message)
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 5
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_a_network_that_takes_no_single_image_is_told_of_too(poisoned, tmp_path, monkeypatch):
    """As batch normalisation: then no images can be told from the others of the batch."""
    poisoned("gradient", 5, [45])
    training_elbo = SpatialVAE.training_elbo

    def of_batches(self, image, *args, **more):
        if len(image) == 1:
            raise ValueError("Expected more than 1 value per channel when training")
        return training_elbo(self, image, *args, **more)

    monkeypatch.setattr(SpatialVAE, "training_elbo", of_batches)
    run = tmp_path / "run"
    assert train(run, NO_FIGURES) == 1
    told = re.search(r"the gradient is not finite for (\d+) of the (\d+) images", log_of(run)[-1])
    assert told is not None
    assert told[1] == told[2] != "1"


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("log_likelihood", r"for 1 of the \d+ images: \d+; what"),
        ("kl", r"\(nan\), with finite log-likelihoods; what"),
    ],
)
def test_a_validation_that_is_not_finite_ends_the_training(what, told, tmp_path, monkeypatch):
    """Early stopping would end it as finished."""
    bound = VAEModule._bound

    def poisoned_bound(self, split, batch, q):
        elbo = bound(self, split, batch, q)
        if split == "val" and self.current_epoch == 1:
            (elbo.kl["z"] if what == "kl" else elbo.log_likelihood)[0] = math.nan
        return elbo

    monkeypatch.setattr(VAEModule, "_bound", poisoned_bound)
    run = tmp_path / "run"
    assert train(run, NO_FIGURES, "dataset.eval_batch_size=1000") == 1
    message = log_of(run)[-1]
    assert message.startswith("validation (epoch 1): the bound val/elbo is not finite ")
    assert re.search(told, message)
    assert f"(best.ckpt, last.ckpt in {run}/checkpoints)" in message
    assert read_status(run) == Status("failed", message)
    # The bound of the epoch before is still the best.
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 0


def test_a_gpu_is_asked_rarely_and_nothing_bad_is_saved(poisoned, tmp_path, monkeypatch):
    """As on a GPU: several steps pass before anybody looks, and a checkpoint comes between."""
    monkeypatch.setattr(svae.module.VAEModule, "device", torch.device("meta"), raising=False)
    monkeypatch.setattr(svae.module, "_GPU_STEPS", 1000)
    run = tmp_path / "run"
    poisoned("loss", 3, list(range(2000)))
    assert train(run, NO_FIGURES, "callbacks.last.every_minutes=1e-9") == 1
    assert log_of(run)[-1].startswith("training step 3 (epoch 0): the loss is not finite for 2")
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3


def test_a_full_disk_costs_no_training(whole, tmp_path, monkeypatch):
    def full(path, content):
        if path.suffix in (".png", ".html", ".csv"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_atomic(path, content)

    for module in (svae.callbacks.figures, svae.callbacks.metrics_csv, svae.report):
        monkeypatch.setattr(module, "write_atomic", full)
    run = tmp_path / "run"
    assert train(run) == 0
    assert read_status(run) == read_status(whole())
    told = "\n".join(log_of(run))
    for what in ("metrics.csv is not up to date", "the figures are not", "the report is not"):
        assert what in told
    assert json.loads((run / "metrics.json").read_text())["test/elbo"] < 0


class Evil:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "executed"),)


@pytest.mark.parametrize("command", ["train", "evaluate", "encode", "decode", "load", "in place"])
def test_a_stranger_s_checkpoint_runs_no_code(command, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole(), run)
    evil = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    evil["evil"] = Evil(tmp_path)
    for name in ("best", "last"):
        torch.save(evil, run / "checkpoints" / f"{name}.ckpt")
    out, ckpt = f"hydra.run.dir={tmp_path / 'out'}", f"ckpt_path={run}/checkpoints/last.ckpt"
    longer = [f"hydra.run.dir={run}", *SMALL, NO_FIGURES, "trainer.max_epochs=5"]
    use = {
        "train": lambda: run_command(svae.train.main, out, *SMALL, NO_FIGURES, ckpt),
        "in place": lambda: run_command(svae.train.main, *longer),
        "evaluate": lambda: run_command(svae.evaluate.main, out, f"run={run}"),
        "encode": lambda: run_command(svae.encode.main, out, f"run={run}"),
        "decode": lambda: run_command(svae.decode.main, out, f"run={run}"),
        "load": lambda: svae.load(run),
    }
    with pytest.raises((SystemExit, ValueError)) as refused:
        use[command]()
    if command == "load":
        # Not what torch says of it: how to run the code.
        assert "(it brings code along, posix.mkdir)" in str(refused.value)
    assert not (tmp_path / "executed").exists()
    torch.load(run / "checkpoints" / "best.ckpt", weights_only=False)
    assert (tmp_path / "executed").exists()  # it would have


@pytest.mark.parametrize(
    ("section", "target"),
    [
        ("dataset", "os.system"),
        ("model", "builtins.eval"),
        ("model", "svae.hardware.os.system"),
        ("optimizer", "svae.files.write_atomic"),
        ("scheduler", "pytorch_lightning.core.saving._load_from_checkpoint"),
    ],
)
def test_a_stranger_s_config_runs_no_code(target, section, whole, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(whole(), run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[section]["_target_"] = target
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        run_command(svae.evaluate.main, f"run={run}", f"hydra.run.dir={tmp_path / 'out'}")
    assert f"{section}._target_: '{target}' is no class of svae" in capfd.readouterr().out


@pytest.mark.slow
def test_a_training_that_is_killed_twice_ends_as_one_that_was_not(tmp_path):
    options = ["trainer.max_epochs=25"]
    kills = crash_trial(tmp_path / "run", 2, 1.5, options, seed=3)
    assert kills[-1].step is not None
    crash_trial(tmp_path / "whole", 0, 0.0, options, seed=0)
    assert differences(tmp_path / "run", tmp_path / "whole") == []


def test_memory_that_grows_is_told_from_memory_that_does_not():
    waves = [Reading(10.0 * i, 900 + 5 * math.sin(i) + 200 * (i < 20)) for i in range(300)]
    assert abs(growth(waves)) < 5
    leak = [Reading(r.seconds, r.mb + r.seconds / 36) for r in waves]  # 100 MB an hour
    assert growth(leak) == pytest.approx(100, abs=5)


def test_memory_is_that_of_the_process():
    before = anonymous_mb(os.getpid())
    # More than a process may have kept of what was freed before.
    held = bytearray(os.urandom(640_000_000))
    assert 600 < anonymous_mb(os.getpid()) - before < 800
    del held
