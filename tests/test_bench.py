"""`python -m svae.bench`: a tiny workload measured from beginning to end, and its parts."""

import contextlib
import io
import json
import os
import re
import runpy
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import sleep
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tests.figures.pictures import check_page, shown_title, texts_of

import svae.bench.command
from svae.bench.alone import Failure, alone, peak_memory
from svae.bench.growth import AXES, grown, growth_figure
from svae.bench.measure import (
    Training,
    Work,
    durations,
    measure_reference,
    operations,
    outside_kernels,
)
from svae.paths import conf_dir

SIDE, WIDTH, BATCH, REFERENCE = 10, 32, 6, 3
SMALL = [f"model.{part}.hidden={WIDTH}" for part in ("encoder", "generator")]
OVERRIDES = ["experiment=paper_rot_mnist", *SMALL]
WORK = Work(tuple(OVERRIDES), (1, SIDE, SIDE), BATCH, "cpu", "32-true")
PRODUCT = (64, 32, 16)


def added(name, **settings):
    """A workload as the command line adds it."""
    node = {
        "image_shape": [1, SIDE, SIDE],
        "batch_size": BATCH,
        "reference_images": REFERENCE,
        "overrides": OVERRIDES,
    } | settings
    texts = (f"{key}: {json.dumps(value)}" for key, value in node.items() if value is not None)
    return f"+workloads.{name}={{{', '.join(texts)}}}"


def run(monkeypatch, folder, *overrides):
    """What the command prints, its exit status, and `bench.json`."""
    path = folder / "bench.json"
    monkeypatch.setattr(sys, "argv", ["svae", f"hydra.run.dir={folder}", *overrides])
    printed, status = io.StringIO(), 0
    with contextlib.redirect_stdout(printed):
        try:
            svae.bench.main()
        except SystemExit as stopped:
            status = stopped.code
    return printed.getvalue(), status, json.loads(path.read_text()) if path.is_file() else None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A workload that is measured and one that fails."""
    folder = tmp_path_factory.mktemp("bench") / "run"
    workloads = [added("broken", overrides=["model.zdim=3"]), added("tiny")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svae.bench.command, "PRODUCTS", (PRODUCT,))
        patch.setattr(svae.bench.command, "SECONDS_PER_PRODUCT", 0.01)
        names = ["names=[tiny,broken]", "seconds=0.05", "accelerator=cpu", "precision=32-true"]
        return run(patch, folder, *workloads, *names)


def test_the_numbers_belong_together(tiny):
    row = tiny[2]["workloads"][1]
    assert row["workload"] == "tiny"
    assert row["precision"] == "32-true"
    assert row["batch_size"] == BATCH
    seconds = row["seconds_per_step"]
    assert 0 < seconds < 1
    assert row["images_per_second"] == pytest.approx(BATCH / seconds)
    assert row["reference_ratio"] == pytest.approx(row["reference_seconds_per_step"] / seconds)
    assert row["reference_images"] == REFERENCE
    rate = tiny[2]["rates"]["tflop_per_second"]
    share = row["operations_per_step"] / (1e12 * rate) / seconds
    assert row["limit_percent"] == pytest.approx(100 * share)
    assert 0 < row["outside_kernels_percent"] < 100
    assert 50 < row["libraries_memory_mb"] <= row["peak_memory_mb"] < 10_000


def test_operations_are_those_of_the_layers(tiny):
    forward = 2 * WIDTH * WIDTH + 2 * WIDTH * 10  # of the encoder, for 2 + 1 + 2 means and spreads
    encoder = 3 * forward + 2 * (2 * SIDE**2 * WIDTH)  # the image has no gradient
    decoder = 3 * (SIDE**2 * (2 * 2 * WIDTH + 2 * WIDTH * WIDTH + 2 * WIDTH) + 2 * 2 * WIDTH)
    by_hand = BATCH * (encoder + decoder)
    assert tiny[2]["workloads"][1]["operations_per_step"] == pytest.approx(by_hand, rel=0.01)


def test_settings_machine_and_rate_are_written(tiny):
    found = tiny[2]
    expected = {"accelerator": "cpu", "precision": "32-true", "seconds": 0.05}
    assert found["settings"] == expected | {"threads": torch.get_num_threads()}
    assert found["environment"]["torch"] == torch.__version__.partition("+")[0]
    (name,) = found["rates"]["tflop_per_second_by_shape"]
    assert name == "x".join(map(str, PRODUCT))
    assert "growth" not in found


def test_a_workload_that_fails_has_a_row_and_the_others_go_on(tiny):
    printed, status, found = tiny
    assert status == 1
    broken, row = found["workloads"]
    assert "Could not override 'model.zdim'" in broken["error"]
    assert "error" not in row
    head, *lines = printed.strip().splitlines()[2:5]
    assert [line.split()[0] for line in lines] == ["broken", "tiny"]
    assert f"failed: {broken['error']}" in lines[0]
    assert lines[1].startswith("tiny      32-true ")
    assert len(lines[1]) == len(head)
    assert lines[1].split()[2] == format(row["seconds_per_step"], "#.3g")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["names=[default,fast]"], "names: expected one of default, .*, got 'fast'"),
        (["names=[]"], "names: expected null or some workloads"),
        (["seconds=0"], "seconds: expected a number above 0, got 0"),
        (["seconds=long"], "seconds: expected a number above 0, got 'long'"),
        (["accelerator=tpu"], "accelerator: expected one of auto, cpu, gpu, got 'tpu'"),
        (["accelerator=gpu"], "torch finds no GPU here; use accelerator=cpu"),
        (["precision=16"], "precision: expected one of auto, 32-true, bf16-mixed, got 16"),
        (["growth=maybe"], "growth: expected bool, got 'maybe'"),
        (["workloads.default.batches=3"], "Could not override 'workloads.default.batches'"),
        (["+workloads.default.batches=3"], "workloads.default: expected image_shape, .*batches"),
        (["workloads.default=3"], "workloads.default"),
        ([added("own", overrides=None)], "workloads.own: expected image_shape, .*overrides, got"),
        ([added("own", overrides="debug=quick")], "own.overrides: expected a list of texts"),
        ([added("own", image_shape=28)], "own.image_shape: expected whole numbers, got 28"),
        ([added("own", image_shape=[28, 28])], "workloads.own.image_shape: expected .channels"),
        ([added("own", batch_size=0)], "workloads.own.batch_size: expected .* least 1, got 0"),
        ([added("own", reference_images=0.5)], "own.reference_images: expected .* got 0.5"),
    ],
)
def test_mistakes(overrides, message, monkeypatch, tmp_path):
    monkeypatch.setattr("svae.run.accelerator_at_hand", lambda: "cpu")
    monkeypatch.setattr(svae.bench.command, "alone", lambda *_: pytest.fail("it was measured"))
    printed, status, found = run(monkeypatch, tmp_path / "run", *overrides)
    lines = [printed, str(status)] if isinstance(status, str) else [printed]
    (line,) = [one for text in lines for one in text.splitlines() if one.strip()]
    assert status not in (0, 1)
    assert "Traceback" not in line
    assert re.search(message, line), line
    assert found is None


def stub(function, *arguments):
    """Instead of a measurement; the time grows with the batch."""
    if function is svae.bench.command.measure_products:
        return {"4096x512x512": 1.0, "4096x1024x512": 2.0}
    work = arguments[0]
    if function is svae.bench.command.measure_reference:
        if work.batch_size == 100:
            raise Failure("no memory")
        return {"reference_seconds_per_step": 8.0}
    return {
        "seconds_per_step": work.batch_size / 50,
        "images_per_second": 50.0,
        "peak_memory_mb": 800.0,
        "outside_kernels_percent": 5.0,
        "operations_per_step": 1e12,
    }


def test_growth_is_measured_written_and_drawn(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        svae.bench.command, "alone", lambda *call: asked.append(call[:2]) or stub(*call)
    )
    small = ["workloads.spatial_vae.batch_size=50"]
    printed, status, found = run(monkeypatch, tmp_path / "run", "names=spatial_vae", *small)
    assert status == 0
    (row,) = found["workloads"]
    assert row["limit_percent"] == 50  # 1 TFLOP at the better rate, in a second
    assert row["reference_ratio"] == 8
    assert list(found["growth"]) == ["image_side_px", "width", "batch_size"]
    assert found["growth"]["batch_size"] == [
        {"batch_size": n, "seconds_per_step": n / 50, "peak_memory_mb": 800.0}
        for n in (25, 50, 100, 200)
    ]
    # Images of 28 px and a batch of 50 are those of the workload.
    assert len(asked) == 1 + 2 + 3 * 4 - 2
    assert len(set(asked)) == len(asked)
    assert "batch_size    25   0.500 s/step" in printed
    with Image.open(tmp_path / "run" / "figures" / "growth.png") as picture:
        assert picture.width > 2 * picture.height


def test_what_a_failed_reference_leaves(monkeypatch, tmp_path):
    monkeypatch.setattr(svae.bench.command, "alone", stub)
    printed, status, found = run(monkeypatch, tmp_path / "run", "names=[spatial_vae,default]")
    assert status == 1
    for row in found["workloads"]:
        assert row["error"] == "the float32 reference: no memory"
        assert row["seconds_per_step"] == 2
        assert "reference_ratio" not in row
    assert printed.count("failed: the float32 reference: no memory") == 2
    # The time itself was measured.
    points = [point for rows in found["growth"].values() for point in rows]
    assert not any("error" in point for point in points)


def test_an_interruption_leaves_what_was_measured(monkeypatch, tmp_path):
    def interrupted(function, *arguments):
        if WORK.image_shape in [getattr(one, "image_shape", None) for one in arguments]:
            raise KeyboardInterrupt
        return stub(function, *arguments)

    monkeypatch.setattr(svae.bench.command, "alone", interrupted)
    names = [added("tiny"), "names=[galaxies,tiny]"]
    _, status, found = run(monkeypatch, tmp_path / "run", *names)
    assert status == 130
    assert [row["workload"] for row in found["workloads"]] == ["galaxies"]


def test_the_command_as_a_module(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(sys, "argv", ["svae", f"hydra.run.dir={tmp_path}", "seconds=-1"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("svae.bench", run_name="__main__")
    assert stopped.value.code == 2


def test_every_workload_composes_and_every_option_is_documented():
    config = yaml.safe_load((Path(conf_dir()) / "bench.yaml").read_text())
    text = (Path(__file__).parents[1] / "docs" / "speed.md").read_text()
    for name in [key for key in config if key not in ("defaults", "hydra")] + ["output_dir"]:
        assert f"| `{name}` |" in text, name
    for name, node in config["workloads"].items():
        assert set(node) == {"image_shape", "batch_size", "reference_images", "overrides"}, name
        for key in node:
            assert f"| `{key}` |" in text, key


def trained(training, steps=2):
    for _ in range(steps):
        training.step()
    return torch.cat([p.detach().flatten() for p in training.trained])


def test_the_reference_is_the_same_training_in_one_piece():
    chunked = replace(WORK, overrides=(*OVERRIDES, "model.generator.chunk_pixels=7"))
    sizes = {}
    for plain in (False, True):
        training = Training(chunked, plain)
        seen = sizes[plain] = []
        training.model.generator.to_pixel.register_forward_hook(
            lambda module, given, result, seen=seen: seen.append(result.shape[:2].numel())
        )
        training.step()
        assert max(seen) == (BATCH * SIDE**2 if plain else 7)
    torch.testing.assert_close(
        trained(Training(chunked, plain=False)), trained(Training(chunked, plain=True))
    )


def test_counting_takes_two_images_and_float32():
    half = Training(replace(WORK, precision="bf16-mixed"))
    assert operations(half) == operations(Training(WORK, plain=True))
    assert len(half.image) == 2


def test_precision_images_and_automatic_likelihood():
    training = Training(replace(WORK, overrides=tuple(SMALL), precision="bf16-mixed"))
    assert type(training.model.likelihood).__name__ == "Bernoulli"
    assert training.spikes is not None  # as in `svae.train`
    assert set(training.image.unique().tolist()) == {0.0, 1.0}
    dtypes = []
    training.model.encoder.register_forward_hook(lambda *call: dtypes.append(call[2].dtype))
    training.step()
    assert dtypes == [torch.bfloat16]
    assert training.steps == 1
    assert all(p.grad is None for p in training.trained)


def test_of_the_reference_only_the_passes_are_scaled(monkeypatch):
    monkeypatch.setattr("svae.bench.measure.durations", lambda *_: [2.0, 0.5])
    found = measure_reference(WORK, REFERENCE, 0.1)
    assert found["reference_seconds_per_step"] == 2.0 * BATCH / REFERENCE + 0.5


@pytest.mark.parametrize("idle", [True, False])
def test_share_outside_of_kernels(idle):
    x = torch.ones(500, 500)
    step = partial(sleep, 0.05) if idle else partial(torch.linalg.matrix_power, x, 100)
    share = outside_kernels(SimpleNamespace(device=torch.device("cpu"), step=step))
    assert share > 0.9 if idle else share < 0.5


def test_durations_are_medians_after_a_warm_up(monkeypatch):
    clock = iter([0.0, 1.0, 11.0, 13.0, 33.0, 36.0, 136.0])
    monkeypatch.setattr("svae.bench.measure.perf_counter", lambda: next(clock))
    calls = []
    actions = [lambda: calls.append("a"), lambda: calls.append("b")]
    assert durations(actions, torch.device("cpu"), 0.1) == [2.0, 20.0]
    assert "".join(calls) == "ab" * 4


def test_another_process_knows_nothing_of_this_one():
    held = torch.ones(500_000_000, dtype=torch.uint8)
    here = peak_memory()
    assert here > held.numel()
    assert alone(peak_memory) < here - held.numel() / 2


def test_a_process_that_is_ended_is_a_failure():
    with pytest.raises(Failure, match="ended from outside"):
        alone(os._exit, 1)


def test_growth_changes_one_thing():
    of = {axis.name: grown(WORK, axis, 40) for axis in AXES}
    assert of["image_side_px"] == replace(WORK, image_shape=(1, 40, 40))
    assert of["batch_size"] == replace(WORK, batch_size=40)
    model = Training(of["width"]).model
    assert model.encoder.out_features == model.generator.to_pixel.in_features == 40


def test_the_figure_shows_every_number_and_the_line_ends_at_the_last():
    rows = {
        axis.name: [{axis.name: v, "seconds_per_step": 1e-3 * v**1.5} for v in axis.values]
        for axis in AXES
    }
    rows["width"][1] = {"width": 250, "error": "no memory"}
    figure = growth_figure(rows, title="Growth")
    assert shown_title(figure) == "Growth"
    for axis, axes in zip(AXES, figure.axes, strict=True):
        law, points = axes.lines
        area = axis.name == "image_side_px"
        kept = [v for v in axis.values if (axis.name, v) != ("width", 250)]
        assert list(points.get_xdata()) == [v**2 if area else v for v in kept]
        np.testing.assert_allclose(points.get_ydata(), [1e-3 * v**1.5 for v in kept])
        assert law.get_ydata()[-1] == points.get_ydata()[-1]
        slopes = np.diff(np.log(law.get_ydata())) / np.diff(np.log(law.get_xdata()))
        np.testing.assert_allclose(slopes, 2 if axis.name == "width" else 1)
        assert axes.get_xscale() == axes.get_yscale() == "log"
        low, high = axes.get_ylim()
        assert low < min(law.get_ydata())
        assert max(points.get_ydata()) < high
    check_page(figure)
    assert {"28²", "128²", "1000", "200", "seconds per step"} <= set(texts_of(figure))


def test_a_figure_of_nothing_says_so():
    figure = growth_figure({a.name: [{a.name: 5, "error": "no"}] for a in AXES}, title="Growth")
    assert texts_of(figure).count("nothing measured") == 3
    check_page(figure)
