"""Sizes from the command line: trained, tested, encoded, decoded."""

import csv
import json

import numpy as np
import pytest
import torch
from tests.helpers import run_command

import svae
import svae.decode
import svae.encode
import svae.train
from svae.geometry import remove_pose
from svae.latents import Latents
from svae.run import prepared_data, read_config

TINY = [
    "dataset.scale_std=0.3",
    "dataset.train_copies=1",
    "dataset.eval_copies=1",
    "dataset.digit_size=16",
    "model.infer_scale=true",
    "model.encoder.hidden=16",
    "model.generator.hidden=16",
    "model.beta={scale: 0.5}",
    "evaluation.iwae_samples=2",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=5",
    "trainer.enable_progress_bar=false",
    "callbacks.figures.examples=3",
    "callbacks.figures.manifold_side=3",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes") / "run"
    run_command(svae.train.main, f"hydra.run.dir={folder}", *TINY)
    return folder


def test_a_training_reports_sizes(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"train/kl_scale", "val/kl_scale", "test/kl_scale"} <= metrics.keys()
    assert -1 <= metrics["test/scale_correlation"] <= 1
    assert "Size correlation" in (run / "report.html").read_text()


def test_what_is_encoded_is_decoded(run, tmp_path):
    options = [f"run={run}", "precision=32-true", "progress_bar=false"]
    run_command(svae.encode.main, f"hydra.run.dir={tmp_path}", *options)
    model, images = svae.load(run), prepared_data(read_config(run)).everything()
    latents = model.encode(images[:]["image"])
    with np.load(tmp_path / "latents.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    np.testing.assert_allclose(arrays["scale"], latents.log_scale.exp(), rtol=1e-4)
    assert (arrays["scale_std"] > 0).all()
    assert arrays["scale"].std() > 1e-4
    with (tmp_path / "latents.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    written = torch.tensor([float(row["scale"]) for row in rows])
    some = slice(5)
    again = Latents(latents.z, latents.theta, latents.shift, written.log())
    torch.testing.assert_close(
        model.decode(again[some]), model.decode(latents[some]), atol=1e-4, rtol=0
    )
    larger = Latents(latents.z, latents.theta, latents.shift, written.log() + 0.4)
    assert not torch.allclose(model.decode(larger[some]), model.decode(latents[some]), atol=1e-4)


def test_a_removed_pose_is_one_without_size(run, tmp_path):
    options = ["what=pose_removed", "images=[0,5,9]"]
    run_command(svae.decode.main, f"hydra.run.dir={tmp_path}", f"run={run}", *options)
    with np.load(tmp_path / "pose_removed.npz", allow_pickle=False) as archive:
        inputs, aligned = (torch.from_numpy(archive[name]) for name in ("inputs", "aligned"))
    latents = svae.load(run).encode(inputs)
    torch.testing.assert_close(aligned, remove_pose(inputs, *latents.pose), atol=1e-4, rtol=0)
