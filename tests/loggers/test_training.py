"""The dashboards as a training fills them, by the commands themselves."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.helpers import run_command
from tests.loggers.reading import read_run

import svae.train

TINY = [
    "dataset.train_copies=1",
    "dataset.eval_copies=1",
    "dataset.batch_size=400",
    "model.pixels_per_image=20",
    "model.encoder.hidden=16",
    "model.generator.hidden=16",
    "evaluation.iwae_samples=2",
    "callbacks.figures.manifold_side=3",
    "callbacks.figures.every_n_epochs=1",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
]
FIGURES = {
    *("reconstructions", "manifold", "latents", "pose", "worst", "samples", "rotations"),
    *("interpolations", "curves", "found_pose", "aligned", "confusion"),
    *("aligned_spectral", "confusion_spectral"),
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two jobs, logged to W&B without an account."""
    directory = tmp_path_factory.mktemp("wandb") / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        options = ["-m", "seed=1,2", f"hydra.sweep.dir={directory}", "logger=wandb"]
        run_command(svae.train.main, *options, *TINY)
    return directory


def offline_run(job: Path):
    (folder,) = (job / "wandb").glob("offline-run-*")
    return read_run(folder)


def test_the_dashboard_shows_what_the_run_directory_holds(sweep):
    job = sweep / "seed-1"
    run = offline_run(job)
    metrics = json.loads((job / "metrics.json").read_text())
    for name in ("val/elbo", "test/elbo", "test/iwae_bound", "test/theta_error_deg"):
        assert run.summary[name] == pytest.approx(metrics[name], rel=1e-6), name
    assert len(run.column("train/elbo")) == len(run.column("val/elbo")) == 2
    assert run.config["model"]["z_dim"] == 2
    assert run.config["model"]["likelihood"]["_target_"] == "svae.likelihoods.Bernoulli"
    assert run.exit_code == 0
    logged = {name.split("/")[1] for row in run.rows for name in row if "figures/" in name}
    assert logged == FIGURES
    # Twice while it trained and once from the test.
    paths = run.column("figures/reconstructions/path")
    assert len(paths) == 3
    shown = (run.folder / "files" / paths[-1]).read_bytes()
    assert shown == (job / "figures" / "reconstructions.png").read_bytes()
    aliases = {alias for artifact in run.artifacts for alias in artifact.aliases}
    assert {"best", "last"} <= aliases


def test_the_latent_table_has_a_row_and_a_thumbnail_for_every_test_image(sweep):
    run = offline_run(sweep / "seed-1")
    (artifact,) = [a for a in run.artifacts if a.type == "run_table"]
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    table = json.loads(files["latents.table.json"].read_text())
    columns = {"image", "index", "label", "z0", "z1", "theta_deg", "shift_x_px", "shift_y_px"}
    columns |= {"centre_x_px", "centre_y_px"}
    assert columns <= set(table["columns"])
    assert len(table["data"]) == 360
    assert all(row[0]["path"] in files for row in table["data"])


def test_the_jobs_of_a_sweep_form_one_group(sweep):
    runs = [offline_run(sweep / job) for job in ("seed-1", "seed-2")]
    assert {run.run.run_group for run in runs} == {"sweep"}
    assert runs[0].run.run_id != runs[1].run.run_id
    assert runs[0].run.display_name == "seed-1"


def test_tensorboard(tmp_path):
    directory = tmp_path / "run"
    run_command(svae.train.main, f"hydra.run.dir={directory}", "logger=tensorboard", *TINY)
    events = EventAccumulator(str(next(directory.rglob("events.out*")).parent))
    events.Reload()
    assert {"train/elbo", "val/elbo", "test/elbo"} <= set(events.Tags()["scalars"])
    assert {f"figures/{name}" for name in FIGURES} <= set(events.Tags()["images"])
    metrics = json.loads((directory / "metrics.json").read_text())
    (test,) = events.Scalars("test/elbo")
    assert test.value == pytest.approx(metrics["test/elbo"], rel=1e-6)
