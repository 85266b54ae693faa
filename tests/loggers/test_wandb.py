"""Runs of W&B, read back from the file that an offline run leaves."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from time import monotonic
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from tests.loggers.reading import OfflineRun, read_run
from tests.loggers.service import service
from torch.utils.data import DataLoader

from svae.command import command
from svae.instantiate import instantiate
from svae.loggers import Dashboard, WandbLogger
from svae.paths import conf_dir

KEY = "0123456789" * 4
VAL_ELBO = [-30.0, -10.0, -20.0]
CONFIG = {"model": {"z_dim": 2, "hidden": [32, 16], "beta": None}, "seed": 1}


def without_account(patch: pytest.MonkeyPatch, home: Path) -> None:
    """No key, no settings and no files of the user who runs the tests."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            patch.delenv(name)
    patch.setenv("HOME", str(home))
    patch.setenv("NETRC", str(home / "netrc"))


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path_factory):
    without_account(monkeypatch, tmp_path_factory.mktemp("home"))


def runs_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/*run-*"))


class Tiny(pl.LightningModule):
    """A training whose validation is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        loss = (self.weight * batch).square().mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/elbo", VAL_ELBO[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> SimpleNamespace:
    """A run from the config to its end, with `mode=auto` and no account."""
    folder, home = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("home")
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    ours = logging.getLogger("svae.loggers.wandb")
    with pytest.MonkeyPatch.context() as patch:
        without_account(patch, home)
        patch.setattr(ours, "level", logging.INFO)
        ours.addHandler(handler)
        before = dict(os.environ), sys.exit, sys.excepthook
        started = monotonic()
        logger = WandbLogger(str(folder), group="a sweep", tags=["digits"], notes="a remark")
        logger.log_hyperparams(CONFIG)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=3,
            logger=[logger],
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
        data = DataLoader(torch.ones(4, 1), 2)
        trainer.fit(Tiny(), data, data)

        frames = [Image.new("L", (12, 8), 20 * i) for i in range(4)]
        frames[0].save(folder / "manifold.png")
        frames[0].save(folder / "sweep.gif", save_all=True, append_images=frames[1:])
        logger.log_figure("manifold", folder / "manifold.png")
        logger.log_figure("sweep", folder / "sweep.gif")
        columns = {
            "index": np.arange(5),
            "label": np.array(list("abcde")),
            "z0": np.linspace(-1, 1, 5, dtype=np.float32),
        }
        logger.log_latents(columns, torch.rand(5, 1, 200, 100))

        (folder / "config.yaml").write_text("seed: 1\n")
        (folder / "checkpoints").mkdir()
        for name in ("best", "last"):
            (folder / "checkpoints" / f"{name}.ckpt").write_text(name)
        paths = {n: folder / "checkpoints" / f"{n}.ckpt" for n in ("best", "last")}
        logger.log_checkpoints(paths)
        logger.log_summary({"test/elbo": -12.5})
        logger.close()
        ours.removeHandler(handler)
        assert monotonic() - started < 30
        assert before == (dict(os.environ), sys.exit, sys.excepthook)
    (run,) = runs_in(folder)
    return SimpleNamespace(run=read_run(run), lines=lines, folder=folder, home=home, logger=logger)


def test_it_goes_offline_and_says_how_to_send_the_run(finished):
    assert isinstance(finished.logger, Dashboard)
    assert finished.run.folder.name.startswith("offline-run-")
    assert "no API key" in finished.lines[0]
    assert finished.lines[-1].endswith(f"wandb sync {finished.run.folder}")
    assert len(finished.lines) == 2


def test_the_run_has_what_the_training_logged(finished):
    run: OfflineRun = finished.run
    assert run.column("val/elbo") == VAL_ELBO
    assert len(run.column("train/loss")) == 3
    steps = [row["trainer/global_step"] for row in run.rows if "val/elbo" in row]
    assert steps == [1, 3, 5]


def test_the_summary_has_the_best(finished):
    assert finished.run.summary["val/elbo"] == max(VAL_ELBO)
    assert finished.run.summary["test/elbo"] == -12.5


def test_the_config_stays_nested(finished):
    assert finished.run.config["model"] == CONFIG["model"]
    assert finished.run.config["seed"] == 1


def test_the_run_is_described(finished):
    run = finished.run.run
    assert (run.project, run.run_group, run.job_type) == ("svae", "a sweep", "train")
    assert (run.display_name, list(run.tags), run.notes) == (
        finished.folder.name,
        ["digits"],
        "a remark",
    )
    assert finished.run.exit_code == 0


def test_figures_are_media(finished):
    run: OfflineRun = finished.run
    (row,) = [row for row in run.rows if "figures/manifold/path" in row]
    still = run.folder / "files" / row["figures/manifold/path"]
    assert still.read_bytes() == (finished.folder / "manifold.png").read_bytes()
    assert row["trainer/global_step"] == 5
    (row,) = [row for row in run.rows if "figures/sweep/path" in row]
    moving = run.folder / "files" / row["figures/sweep/path"]
    assert moving.read_bytes() == (finished.folder / "sweep.gif").read_bytes()


def test_latents_are_a_table_with_thumbnails(finished):
    run: OfflineRun = finished.run
    (row,) = [row for row in run.rows if "latents/path" in row]
    assert row["latents/nrows"] == 5
    (artifact,) = [a for a in run.artifacts if a.type == "run_table"]
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    table = json.loads(files.pop("latents.table.json").read_text())
    assert table["columns"] == ["image", "index", "label", "z0"]
    assert [line[1:3] for line in table["data"]] == [[i, c] for i, c in enumerate("abcde")]
    shown = [line[0]["path"] for line in table["data"]]
    assert len(set(shown)) == 5
    for path in shown:
        with Image.open(files[path]) as picture:
            assert (picture.size, picture.mode) == ((48, 96), "L")
    # All of it lies with the run, where `wandb sync` finds it.
    assert all(path.is_relative_to(finished.folder) for path in files.values())
    assert not (finished.home / ".local").exists()


def test_checkpoints_are_versions_of_one_artifact(finished):
    models = [a for a in finished.run.artifacts if a.type == "model"]
    assert {a.name for a in models} == {f"model-{finished.run.run.run_id}"}
    for artifact, alias in zip(models, ["best", "last"], strict=True):
        assert set(artifact.aliases) == {alias, "latest"}
        paths = {entry.path for entry in artifact.manifest.contents}
        assert paths == {"config.yaml", f"checkpoints/{alias}.ckpt"}


def offline(folder: Path, **options: object) -> WandbLogger:
    return WandbLogger(str(folder), mode="offline", **options)  # type: ignore[arg-type]


def test_equal_checkpoints_are_one_version_with_both_aliases(tmp_path):
    paths = {name: tmp_path / f"{name}.ckpt" for name in ("best", "last")}
    for path in paths.values():
        path.write_text("the same")
    logger = offline(tmp_path)
    logger.log_checkpoints(paths)
    logger.close()
    (artifact,) = read_run(*runs_in(tmp_path)).artifacts
    assert set(artifact.aliases) == {"best", "last", "latest"}


def test_checkpoints_may_stay_here(tmp_path):
    (tmp_path / "best.ckpt").write_text("weights")
    logger = offline(tmp_path, log_checkpoints=False)
    logger.log_checkpoints({"best": tmp_path / "best.ckpt"})
    logger.close(exit_code=1)
    run = read_run(*runs_in(tmp_path))
    assert not run.artifacts
    assert run.exit_code == 1


def test_colour_images_in_the_table(tmp_path):
    logger = offline(tmp_path)
    images = torch.zeros(1, 3, 4, 6)
    images[:, 0] = 1
    logger.log_latents({"index": [0]}, images)
    logger.close()
    (artifact,) = read_run(*runs_in(tmp_path)).artifacts
    (path,) = [e.local_path for e in artifact.manifest.contents if e.path.endswith(".png")]
    with Image.open(path) as picture:
        assert (picture.size, picture.getpixel((0, 0))) == ((6, 4), (255, 0, 0))


def test_two_jobs_of_one_process_are_two_runs(tmp_path):
    for value in (1.0, 2.0):
        logger = offline(tmp_path)
        logger.log_metrics({"val/elbo": value}, 1)
        logger.close()
        logger.log_metrics({"val/elbo": 100.0}, 2)  # nothing comes after the end
    runs = [read_run(folder) for folder in runs_in(tmp_path)]
    assert sorted(value for run in runs for value in run.column("val/elbo")) == [1.0, 2.0]
    assert len({run.run.run_id for run in runs}) == 2


@pytest.mark.parametrize(("key", "id"), [(KEY, None), (KEY, "earlier"), ("too short", None)])
def test_a_service_that_cannot_be_reached(key, id, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", key)
    caplog.set_level(logging.INFO)
    started = monotonic()
    logger = WandbLogger(str(tmp_path), timeout_s=2, id=id)
    logger.log_metrics({"val/elbo": 1.0}, 1)
    logger.close()
    assert monotonic() - started < 15
    assert "is kept offline" in caplog.text
    # Of the run that was tried first, nothing is left.
    (folder,) = runs_in(tmp_path)
    assert read_run(folder).column("val/elbo") == [1.0]
    assert folder.name.startswith("offline-run-")


def run_script(folder: Path, script: str, **environment: str) -> list[str]:
    """The lines that a script, given a folder, has logged in the end."""
    head = "import logging, os, sys, time\nfrom svae.loggers import WandbLogger\n"
    head += "logging.basicConfig(level=logging.INFO)\n"
    ended = subprocess.run(
        [sys.executable, "-c", head + script, folder],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    return ended.stderr.splitlines()


def test_a_service_that_never_answers_holds_up_neither_the_run_nor_the_exit(tmp_path):
    script = """
logger = WandbLogger(sys.argv[1], timeout_s=2)
logger.log_metrics({"val/elbo": 1.0}, 1)
logger.close()
"""
    started = monotonic()
    with service(answers=False) as silent:
        lines = run_script(tmp_path, script, WANDB_BASE_URL=silent.url, WANDB_API_KEY=KEY)
    assert monotonic() - started < 20
    assert [line.split(":")[0] for line in lines] == ["WARNING", "INFO"]
    assert len(runs_in(tmp_path)) == 1


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process in /proc")
def test_a_library_whose_process_dies(tmp_path):
    script = """
from pathlib import Path
logger = WandbLogger(sys.argv[1], mode="offline")
logger.log_metrics({"val/elbo": 1.0}, 1)
for status in Path("/proc").glob("[0-9]*/stat"):
    pid, name, _, parent = status.read_text().split()[:4]
    if int(parent) == os.getpid() and name.startswith("(wandb-core"):
        os.kill(int(pid), 9)
for step in range(2, 10):
    time.sleep(0.1)
    logger.log_metrics({"val/elbo": 1.0}, step)
logger.close()
second = WandbLogger(sys.argv[1], mode="offline")
second.log_metrics({"val/elbo": 3.0}, 1)
second.close()
"""
    lines = run_script(tmp_path, script)
    assert [line.split(":")[0] for line in lines] == ["WARNING", "WARNING", "INFO"]
    assert "log_metrics failed" in lines[0]
    assert "wandb sync" in lines[1]
    assert [3.0] in [read_run(folder).column("val/elbo") for folder in runs_in(tmp_path)]


def test_a_service_that_falls_silent(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with service(answers=True) as online:
        monkeypatch.setenv("WANDB_BASE_URL", online.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        logger = WandbLogger(str(tmp_path), timeout_s=4)
        logger.log_metrics({"val/elbo": 1.0}, 1)
        assert logger.version in online.runs
        assert f"{online.url}/me/svae/runs/{logger.version}" in caplog.text
        online.answers.clear()
        logger.log_metrics({"val/elbo": 2.0}, 2)
        started = monotonic()
        logger.close()
        assert monotonic() - started < 15
    (folder,) = runs_in(tmp_path)
    assert f"wandb sync {folder}" in caplog.text
    assert read_run(folder).column("val/elbo") == [1.0, 2.0]
    assert "WANDB_SERVICE" not in os.environ


def test_a_training_that_goes_on_in_its_folder_is_one_run(monkeypatch, tmp_path):
    def logged(folder: Path, value: float, **options: object) -> WandbLogger:
        logger = WandbLogger(str(folder), timeout_s=4, **options)
        logger.log_metrics({"val/elbo": value}, 1)
        return logger

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with service(answers=True) as online:
        monkeypatch.setenv("WANDB_BASE_URL", online.url)
        first = logged(tmp_path / "a", -3.0)
        id = first.version
        first.close()
        apart = logged(tmp_path / "a", 0.0, mode="offline")
        assert apart.version not in (id, None)
        apart.close()
        online.runs[id]["val/elbo"] = -3.0
        second = logged(tmp_path / "a", -4.0)
        assert second.version == id
        assert online.resumed == [id]
        # What was best stays it.
        assert second.experiment.summary["val/elbo"] == -3
        second.close()
        other = logged(tmp_path / "b", -5.0)
        assert other.experiment.summary["val/elbo"] == -5
        other.close()
        assert len(online.runs) == 2


def test_what_cannot_be_shown_does_not_end_the_training(tmp_path, caplog):
    logger = offline(tmp_path)
    logger.log_figure("gone", tmp_path / "gone.png")
    assert "log_figure failed" in caplog.text
    logger.close()


def test_the_environment_decides_where_the_config_does_not(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    for mode, runs in (("disabled", 0), ("offline", 1)):
        monkeypatch.setenv("WANDB_MODE", mode)
        started = monotonic()
        logger = WandbLogger(str(tmp_path), timeout_s=20)
        logger.log_metrics({"val/elbo": 1.0}, 1)
        logger.close()
        assert monotonic() - started < 10  # the service was not asked
        assert len(runs_in(tmp_path)) == runs


def test_disabled_leaves_nothing(tmp_path):
    logger = WandbLogger(str(tmp_path), mode="disabled")
    logger.log_metrics({"val/elbo": 1.0}, 1)
    logger.log_checkpoints({"best": tmp_path / "best.ckpt"})
    logger.close()
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_process_logs(monkeypatch, tmp_path):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = offline(tmp_path)
    logger.log_metrics({"val/elbo": 1.0}, 1)
    logger.log_hyperparams(CONFIG)
    logger.close()
    assert list(tmp_path.iterdir()) == []


def test_making_one_imports_and_writes_nothing(tmp_path):
    code = (
        "import sys, svae.loggers, svae.train\n"
        "svae.loggers.WandbLogger(sys.argv[1])\n"
        "assert not {'wandb', 'tensorboard'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"mode": "on"}, "mode: expected one of auto, online, offline, disabled, got 'on'"),
        ({"timeout_s": 0}, "timeout_s: expected a number above 0"),
        ({"tags": "digits"}, r"logger\.wandb\.tags: expected list or tuple, got 'digits'"),
        ({"projects": "x"}, r"logger\.wandb\.projects: .* takes no such argument"),
    ],
)
def test_mistakes(option, message, tmp_path):
    node = {"_target_": "svae.loggers.WandbLogger", "save_dir": str(tmp_path), **option}
    with pytest.raises(ValueError, match=message):
        instantiate(OmegaConf.create({"wandb": node}), "logger")


# ---- configs


def run_command(monkeypatch, *overrides: str) -> None:
    """A command that logs one number to the loggers of its config."""

    def task(cfg):
        loggers = instantiate(cfg.logger, "logger")
        for logger in loggers.values():
            logger.log_metrics({"val/elbo": float(cfg.seed)}, 1)
            logger.close()

    monkeypatch.setattr(sys, "argv", ["svae", *overrides, "logger=wandb"])
    command("train")(task)()


def test_the_jobs_of_a_sweep_form_a_group(monkeypatch, tmp_path):
    sweep = tmp_path / "a-sweep"
    run_command(monkeypatch, "-m", f"hydra.sweep.dir={sweep}", "seed=1,2", "model.z_dim=3")
    runs = [read_run(*runs_in(sweep / job)) for job in ("seed-1", "seed-2")]
    assert [run.run.run_group for run in runs] == ["a-sweep"] * 2
    assert [run.run.display_name for run in runs] == ["seed-1", "seed-2"]
    assert [run.column("val/elbo") for run in runs] == [[1.0], [2.0]]


def test_a_single_run_has_the_name_of_its_folder(monkeypatch, tmp_path):
    run_command(monkeypatch, f"hydra.run.dir={tmp_path / 'single'}", "seed=3")
    run = read_run(*runs_in(tmp_path / "single")).run
    assert (run.run_group, run.display_name) == ("", "single")


def test_the_config_resolves_without_a_command(tmp_path):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("train", ["logger=wandb", f"output_dir={tmp_path}"])
    (logger,) = instantiate(config.logger, "logger").values()
    assert logger.save_dir == str(tmp_path)
    assert config.logger.wandb.group is None
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        assert compose("train").logger == {}
