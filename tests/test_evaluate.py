"""Testing again: several runs, their mean and spread."""

import csv
import json
import logging
import math
import shutil
import statistics
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from tests.helpers import run_command

import svae.evaluate
import svae.train
from svae.evaluate import runs_of, summary

QUICK = [
    "debug=quick",
    "dataset.train_copies=1",
    "dataset.eval_copies=1",
    "model.encoder.hidden=8",
    "model.generator.hidden=8",
    "evaluation.iwae_samples=2",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.enable_progress_bar=false",
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """The runs of two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    options = [*QUICK, "~callbacks.figures"]
    run_command(svae.train.main, "-m", "seed=1,2", f"hydra.sweep.dir={folder}", *options)
    return folder


def evaluate(folder: Path, *overrides: str) -> Path:
    options = ["trainer=cpu", "trainer.enable_progress_bar=false", f"hydra.run.dir={folder}"]
    run_command(svae.evaluate.main, *overrides, *options)
    return folder


def metrics_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def evaluated(sweep, tmp_path_factory) -> Path:
    return evaluate(tmp_path_factory.mktemp("evaluated") / "all", f"run={sweep}/*")


def test_each_run_is_tested_as_by_itself(sweep, evaluated, tmp_path):
    for number in range(2):
        trained = metrics_of(sweep / f"seed-{number + 1}")
        tested = metrics_of(evaluated / str(number))
        expected = {k: v for k, v in trained.items() if k.startswith("test/")}
        assert tested == pytest.approx(expected, rel=1e-5)
    alone = evaluate(tmp_path / "alone", f"run=[{sweep}/seed-2]")
    assert metrics_of(alone) == metrics_of(evaluated / "1")
    assert not (alone / "runs.csv").exists()

    def names(folder: Path) -> set[str]:
        return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix != ".log"}

    assert names(alone) == names(evaluated / "1")


def test_mean_and_spread_of_the_runs(evaluated):
    each = [metrics_of(evaluated / str(number)) for number in range(2)]
    metrics = metrics_of(evaluated)
    assert metrics.keys() == {f"{name}{end}" for name in each[0] for end in ("", "_std")}
    for name in each[0]:
        values = [one[name] for one in each]
        assert metrics[name] == pytest.approx(statistics.mean(values)), name
        assert metrics[f"{name}_std"] == pytest.approx(statistics.stdev(values)), name
    assert metrics["test/elbo_std"] > 0


def test_a_row_for_each_run(sweep, evaluated):
    with (evaluated / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["folder"] for row in rows] == ["0", "1"]
    assert [row["run"] for row in rows] == [f"{sweep}/seed-{seed}" for seed in (1, 2)]
    assert [row["seed"] for row in rows] == ["1", "2"]
    for number, row in enumerate(rows):
        expected = metrics_of(evaluated / str(number))
        assert {k: float(v) for k, v in row.items() if "/" in k} == pytest.approx(expected)


def test_the_log_ends_with_mean_and_spread(evaluated):
    log = (evaluated / "evaluate.log").read_text()
    end = log[log.index("mean ± sample standard deviation of 2 runs") :]
    metrics = metrics_of(evaluated)
    mean, std = metrics["test/elbo"], metrics["test/elbo_std"]
    assert f"{mean:.6g} ± {std:.2g}" in end
    assert end.count("±") == 1 + len(metrics) // 2
    assert str(evaluated) in end.splitlines()[-1]


def test_a_folder_tells_how_to_repeat_its_own_test(sweep, evaluated):
    overrides = yaml.safe_load((evaluated / "1/.hydra/overrides.yaml").read_text())
    assert overrides[0] == f"run={sweep}/seed-2"
    assert "trainer=cpu" in overrides
    assert sum(override.startswith("run=") for override in overrides) == 1
    html = (evaluated / "1/report.html").read_text()
    assert f"evaluate of {sweep}/seed-2" in html
    assert "There is no" not in html
    assert not (evaluated / "report.html").exists()


def test_refinement_changes_what_is_inferred_and_no_bound(sweep, evaluated, tmp_path, capfd):
    before = metrics_of(evaluated / "0")
    refined = metrics_of(
        evaluate(tmp_path / "a", f"run={sweep}/seed-1", "model.refinement_steps=1")
    )
    for name in ("test/elbo", "test/iwae_bound", "test/log_likelihood"):
        assert refined[name] == before[name]
    for name in ("test/theta_error_deg", "test/centre_rmse_px", "test/theta_relative_error_deg"):
        assert refined.get(name) != before.get(name, 0)
    for value in ("-1", "some"):
        with pytest.raises(SystemExit):
            evaluate(tmp_path / value, f"run={sweep}/seed-1", f"model.refinement_steps={value}")
        told = capfd.readouterr().out.strip().splitlines()
        assert "refinement_steps: expected" in told[-1]
        assert f"got '{value}'" in told[-1] or f"got {value}" in told[-1]


def test_a_later_mistake_is_found_before_the_first_test(sweep, tmp_path, capfd):
    copy = tmp_path / "copy"
    shutil.copytree(sweep / "seed-1", copy)
    (copy / "checkpoints/best.ckpt").unlink()
    with pytest.raises(SystemExit):
        evaluate(tmp_path / "out", f"run=[{sweep}/seed-2,{copy}]")
    assert "best.ckpt does not exist; there is last" in capfd.readouterr().out
    assert not (tmp_path / "out" / "0").exists()
    with pytest.raises(SystemExit):
        evaluate(
            tmp_path / "several", f"run={sweep}/*", "trainer.devices=2", "+trainer.strategy=ddp"
        )
    assert "expected one run with trainer.strategy=ddp, got 2" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("seed", 7, []),
        ("dataset.seed", 7, []),
        ("dataset.eval_batch_size", 7, []),
        ("trainer.accelerator", "gpu", []),
        ("model.z_dim", 7, ["model.z_dim"]),
        ("trainer.max_epochs", 7, ["trainer.max_epochs"]),
        ("trainer.gradient_clip_val", 0.1, ["trainer.gradient_clip_val"]),
        ("max_gradient_spike", 7, ["max_gradient_spike"]),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_told(
    sweep, tmp_path, caplog, setting, value, told
):
    for name, run in (("a", "seed-1"), ("b", "seed-2")):
        (tmp_path / name).mkdir()
        config = OmegaConf.load(sweep / run / "config.yaml")
        OmegaConf.update(config, "model.z_dim", 2)
        if name == "b":
            OmegaConf.update(config, setting, value)
        OmegaConf.save(config, tmp_path / name / "config.yaml")
    with caplog.at_level(logging.WARNING):
        runs, names = svae.evaluate.what_differs([str(tmp_path / "b"), str(tmp_path / "a")])
    assert [Path(run.folder).name for run in runs] == ["b", "a"]
    assert names == told
    assert bool(caplog.messages) == bool(told)
    assert all(f"different settings ({name})" in caplog.text for name in told)


def test_what_was_swept_is_told_apart(sweep, tmp_path):
    folder = tmp_path / "more"
    shutil.copytree(sweep, folder)
    options = [*QUICK, "~callbacks.figures", "seed=1", "model.z_dim=3"]
    run_command(svae.train.main, f"hydra.run.dir={folder}/wider", *options)
    out = evaluate(tmp_path / "out", f"run={folder}/*")
    with (out / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model.z_dim"], row["seed"]) for row in rows] == [
        *(("2", "1"), ("2", "2"), ("3", "1"))
    ]
    with (out / "table.csv").open() as file:
        narrow, wide = csv.DictReader(file)
    assert (narrow["model.z_dim"], narrow["runs"]) == ("2", "2")
    assert (wide["model.z_dim"], wide["runs"]) == ("3", "1")
    found = [float(row["test/elbo"]) for row in rows]
    assert float(narrow["test/elbo"]) == pytest.approx(statistics.mean(found[:2]))
    assert float(narrow["test/elbo_std"]) == pytest.approx(statistics.stdev(found[:2]))
    assert (float(wide["test/elbo"]), wide["test/elbo_std"]) == (found[2], "")
    log = (out / "evaluate.log").read_text()
    assert "run: different settings (model.z_dim), so that" in log
    heading, *table = log[log.index("by model.z_dim:\n") :].splitlines()[1:4]
    assert heading.split()[:3] == ["model.z_dim", "runs", "test/elbo"]
    assert [line.split()[:2] for line in table] == [["2", "2"], ["3", "1"]]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Folders a/0, a/2, a/10 with a run, a/3 without, and what a sweep leaves beside them."""
    monkeypatch.chdir(tmp_path)
    for name in ("a/0", "a/2", "a/10", "b[1]/0"):
        Path(name).mkdir(parents=True)
        Path(name, "config.yaml").touch()
    Path("a/3").mkdir()
    Path("a/multirun.yaml").touch()


def given(text: str) -> object:
    return OmegaConf.create(f"run: {text}").run


def test_which_runs_a_name_stands_for(runs, caplog):
    assert runs_of(given("a/0")) == ["a/0"]
    assert runs_of(given("[a/10, a/0]")) == ["a/10", "a/0"]
    assert not caplog.messages
    assert runs_of(given("a/*")) == ["a/0", "a/2", "a/10"]
    assert "a/3 is left out: it has no config.yaml" in caplog.text
    assert "multirun.yaml" not in caplog.text
    assert runs_of(given("['a/1*', a/0]")) == ["a/10", "a/0"]
    assert runs_of(given("b[1]/0")) == ["b[1]/0"]  # a folder of that name, not a pattern


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("a/3", FileNotFoundError, "a/3 is not a run directory"),
        ("[a/0, nowhere]", FileNotFoundError, "nowhere is not a run directory"),
        ("nowhere/*", FileNotFoundError, r"nowhere/\* matches no run directory"),
        ("a/3*", FileNotFoundError, r"a/3\* matches no run directory"),
        ("[a/0, a/2, b/../a/0/]", ValueError, "expected different runs, got b/../a/0/ twice"),
        ("[a/2, 'a/*']", ValueError, "expected different runs, got a/2 twice"),
        ("[]", ValueError, r"expected a run directory or a list of them, got \[\]"),
        ("null", ValueError, "expected a run directory or a list of them, got None"),
        ("[[a/0], a/2]", ValueError, "expected a run directory or a list of them"),
    ],
)
def test_names_of_no_runs(runs, text, error, message):
    Path("b").mkdir()
    with pytest.raises(error, match=f"run: {message}"):
        runs_of(given(text))


def test_a_mean_is_of_what_every_run_has():
    found = summary(
        [{"a": 1.0, "b": math.nan, "c": math.inf}, {"a": 3.0, "b": 1.0, "c": 1.0, "d": 5.0}]
    )
    assert found.keys() == {"a", "a_std", "b", "b_std", "c", "c_std"}
    assert (found["a"], found["a_std"]) == (2, pytest.approx(math.sqrt(2)))
    assert math.isnan(found["b"])
    assert math.isinf(found["c"])
