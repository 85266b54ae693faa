"""Event files of TensorBoard, read back."""

import importlib.util
import io
import logging
import warnings

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from svae.instantiate import instantiate
from svae.loggers import Dashboard, TensorBoardLogger

CONFIG = {"model": {"z_dim": 2, "hidden": [32, 16]}, "seed": 1}
COLUMNS = {
    "index": np.arange(5),
    "label": np.array(["a\tb", "b", "c", "d", "e"]),
    "z0": np.linspace(-1, 1, 5),
    "z1": np.zeros(5),
}


def test_without_the_package_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    node = {"_target_": "svae.loggers.TensorBoardLogger", "save_dir": str(tmp_path)}
    with pytest.raises(ValueError, match=r"pip install 'svae\[tensorboard\]'"):
        instantiate(OmegaConf.create({"tensorboard": node}), "logger")


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A folder with everything that a run logs, and the events in it."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path_factory.mktemp("tensorboard")
    frames = [Image.new("L", (12, 8), 20 * i) for i in range(4)]
    frames[0].save(folder / "manifold.png")
    frames[0].save(folder / "sweep.gif", save_all=True, append_images=frames[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logger = TensorBoardLogger(str(folder / "events"))
        assert isinstance(logger, Dashboard)
        assert not (folder / "events").exists()
        logger.log_hyperparams(CONFIG)
        for step, value in enumerate([-3.0, -1.0, -2.0]):
            logger.log_metrics({"val/elbo": value}, step)
        logger.log_figure("manifold", folder / "manifold.png")
        logger.log_figure("sweep", folder / "sweep.gif")
        logger.log_latents(COLUMNS, torch.rand(5, 1, 4, 6))
        logger.log_checkpoints({"best": folder / "best.ckpt"})
        logger.log_summary({"val/elbo": -1.0})
        logger.finalize("success")
        logger.close()
    events = EventAccumulator(str(folder / "events"), {"images": 0, "tensors": 0}).Reload()
    return folder, events


def test_scalars(logged):
    _, events = logged
    points = [(event.step, event.value) for event in events.Scalars("val/elbo")]
    assert points == [(0, -3.0), (1, -1.0), (2, -2.0)]
    assert [event.value for event in events.Scalars("summary/val/elbo")] == [-1.0]


def test_figures_are_the_files(logged):
    folder, events = logged
    for name, file in (("manifold", "manifold.png"), ("sweep", "sweep.gif")):
        (event,) = events.Images(f"figures/{name}")
        assert event.encoded_image_string == (folder / file).read_bytes()
        assert (event.step, event.width, event.height) == (2, 12, 8)


def test_the_config_is_text_and_parameters(logged):
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    _, events = logged
    (event,) = events.Tensors("config/text_summary")
    assert "z_dim: 2" in event.tensor_proto.string_val[0].decode()
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    parameters = HParamsPluginData.FromString(content).session_start_info.hparams
    assert parameters["model.z_dim"].number_value == 2
    assert parameters["model.hidden"].string_value == "[32, 16]"


def test_latents_are_in_the_projector(logged):
    folder, _ = logged
    events = folder / "events"
    assert "latents" in (events / "projector_config.pbtxt").read_text()
    (tensors,) = events.rglob("tensors.tsv")
    assert np.loadtxt(tensors).tolist() == [[z, 0.0] for z in COLUMNS["z0"]]
    lines = tensors.with_name("metadata.tsv").read_text().splitlines()
    assert lines[:2] == ["index\tlabel", "0\ta b"]
    with Image.open(io.BytesIO(tensors.with_name("sprite.png").read_bytes())) as sprite:
        assert sprite.size == (18, 18)  # 3 by 3 thumbnails, square ones
        assert sprite.getpixel((0, 0)) == (0, 0, 0)  # what makes them square
        assert sprite.getpixel((0, 1)) != (0, 0, 0)


def test_latents_without_content_or_images(tmp_path):
    pytest.importorskip("tensorboard")
    logger = TensorBoardLogger(str(tmp_path))
    logger.log_latents({"index": [0, 1], "theta_deg": [1.0, 2.0]}, None)
    assert not list(tmp_path.rglob("*.tsv"))
    logger.log_latents({"index": [7, 8], "z0": [1.0, 2.0]}, None)
    logger.close()
    (metadata,) = tmp_path.rglob("metadata.tsv")
    assert metadata.read_text().split() == ["7", "8"]


def test_it_says_how_to_look_at_it(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    caplog.set_level(logging.INFO)
    logger = TensorBoardLogger(str(tmp_path))
    logger.close()
    assert not caplog.records  # nothing was logged
    logger.log_metrics({"val/elbo": 1.0}, 1)
    logger.close()
    assert caplog.messages == [f"TensorBoard: tensorboard --logdir {tmp_path}"]
