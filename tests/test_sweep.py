"""What a sweep came to: its runs, what was swept, tables and figures."""

import copy
import csv
import json
import logging
import math
import os
import re
import shlex
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from tests.helpers import run_command

import svae.sweep
import svae.train
from svae.figures import Curve, Point, learning_figure, sweep_figure, sweep_map_figure
from svae.figures.style import LINE_COLOURS
from svae.status import Status
from svae.sweep import as_overrides, collect
from svae.sweep.groups import Spread, grouped, markdown, plain
from svae.sweep.layout import curves_figure, laid_out, metric_figure
from svae.sweep.runs import Run, decides, find_runs, read_runs
from svae.sweep.swept import swept

QUICK = [
    "debug=quick",
    "dataset.train_copies=1",
    "dataset.eval_copies=1",
    "model.encoder.hidden=8",
    "model.generator.hidden=8",
    "evaluation.iwae_samples=0",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "~callbacks.figures",
]


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """A sweep of four jobs that were trained."""
    folder = tmp_path_factory.mktemp("real") / "a sweep=1"
    swept = ["-m", "prior=gaussian,uniform", "seed=1,2"]
    run_command(svae.train.main, *swept, f"hydra.sweep.dir='{folder}'", *QUICK)
    return folder


@pytest.fixture
def make(real, tmp_path) -> Callable[..., Path]:
    """Makes a run directory of a sweep, like a real one but for what is said."""
    first = min(path.parent for path in real.glob("*/config.yaml"))
    config = yaml.safe_load((first / "config.yaml").read_text())
    hydra = yaml.safe_load((first / ".hydra/hydra.yaml").read_text())

    def make(
        name: str,
        *,
        choices: dict[str, str] | None = None,
        metrics: dict[str, float] | None = None,
        curve: list[float] | None = None,
        status: Status | None = None,
        typed: list[str] | None = None,
        **settings: Any,
    ) -> Path:
        """Settings have `__` for the dot; `typed` is what the command line named."""
        folder = tmp_path / name
        (folder / ".hydra").mkdir(parents=True)
        own, record = copy.deepcopy(config), copy.deepcopy(hydra)
        values = {key.replace("__", "."): value for key, value in settings.items()}
        for key, value in values.items():
            *path, last = key.split(".")
            node = own
            for part in path:
                node = node[part]
            node[last] = value
        if choices:
            record["hydra"]["runtime"]["choices"] |= choices
        named = [*(choices or {}), *values] if typed is None else typed
        record["hydra"]["overrides"]["task"] = [f"{name}=x" for name in named]
        record["hydra"]["job"]["num"] = len(list(folder.parent.iterdir()))
        for file, content in (("config.yaml", own), (".hydra/hydra.yaml", record)):
            (folder / file).write_text(yaml.dump(content, Dumper=yaml.CSafeDumper))
        if curve is not None:
            rows = [f"{epoch},{elbo},{elbo + 1}\n" for epoch, elbo in enumerate(curve)]
            (folder / "metrics.csv").write_text("epoch,val/elbo,train/elbo\n" + "".join(rows))
        if metrics is not None:
            (folder / "metrics.json").write_text(json.dumps(metrics))
        if status is not None:
            (folder / "status.json").write_text(json.dumps(status._asdict() | {"objective": None}))
        return folder

    return make


def runs_in(folder: Path) -> list[Run]:
    runs, damaged = read_runs(find_runs([str(folder)]))
    assert not damaged
    return runs


def a_run(number: int = 0, elbo: float | None = -1.0, state: str = "finished", **config) -> Run:
    """Without a folder; settings have `__` for the dot, choices have no dot and are text."""
    settings = {key.replace("__", "."): value for key, value in config.items()}
    choices = {k: v for k, v in settings.items() if "." not in k and isinstance(v, str)}
    return Run(
        folder=f"runs/{number}",
        status=Status(state),  # type: ignore[arg-type]
        config={k: v for k, v in settings.items() if k not in choices},
        resolved=True,
        choices=choices,
        overrides=list(settings),
        metrics={} if elbo is None else {"val/elbo": elbo},
        curve=([0.0, 1.0], [-9.0, -1.0 if elbo is None else elbo]),
    )


def command(output: Path, *arguments: str) -> Path:
    run_command(svae.sweep.main, *arguments, f"hydra.run.dir={output}")
    return output


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files_in(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in folder.rglob("*")}


# ---- the command


def test_a_trained_sweep_becomes_tables_and_figures(real, tmp_path, capfd):
    before = files_in(real)
    out = command(tmp_path / "out", str(real), "metric=[val/elbo,test/elbo]")
    printed = capfd.readouterr().out
    assert files_in(real) == before
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    tables = {"runs.csv", "table.csv", "table.md", "sweep.log"}
    assert tables <= names
    assert {f"figures/{n}.png" for n in ("val_elbo", "test_elbo", "learning_curves")} <= names

    rows = rows_of(out / "runs.csv")
    assert [(row["prior"], row["seed"]) for row in rows] == [
        ("gaussian", "1"),
        ("gaussian", "2"),
        ("uniform", "1"),
        ("uniform", "2"),
    ]
    assert list(rows[0])[:7] == [
        "folder",
        "state",
        "message",
        "epochs",
        "prior",
        "seed",
        "seconds",
    ]
    for row in rows:
        assert (row["state"], row["epochs"]) == ("finished", "1")
        metrics = json.loads(Path(row["folder"], "metrics.json").read_text())
        found = {name: float(cell) for name, cell in row.items() if "/" in name and cell}
        assert found == pytest.approx(metrics)
        assert float(row["seconds"]) == metrics["train/total_seconds"]

    table = rows_of(out / "table.csv")
    assert [row["prior"] for row in table] == ["gaussian", "uniform"]
    for number, row in enumerate(table):
        for metric in ("val/elbo", "test/elbo"):
            values = [float(one[metric]) for one in rows[2 * number : 2 * number + 2]]
            assert float(row[metric]) == pytest.approx(statistics.mean(values))
            assert float(row[f"{metric}_std"]) == pytest.approx(statistics.stdev(values))
            assert row[f"{metric}_n"] == row["runs"] == "2"
    assert (out / "table.md").read_text().splitlines()[0] == (
        "| prior | runs | val/elbo | test/elbo |"
    )
    assert re.search(r"^gaussian +2 +-[\d.]+ ± \d", printed, re.MULTILINE)
    assert "4 runs: 4 finished" in printed
    assert "sample standard deviation over: seed" in printed


def test_the_line_to_test_the_best_run_again_is_understood(real, tmp_path, capfd):
    """Its folder has a blank and an equals sign."""
    command(tmp_path / "out", str(real))
    printed = capfd.readouterr().out
    (line,) = re.findall(r"python -m svae\.evaluate .*", printed)
    (override,) = shlex.split(line)[3:]
    best = max(collect(real), key=lambda row: row["val/elbo"])
    parsed = OverridesParser.create().parse_override(override)
    assert (parsed.key_or_group, parsed.value()) == ("run", best["folder"])
    assert f"{best['folder']}, prior={best['prior']}, seed={best['seed']}" in printed


def test_the_best_run_is_chosen_by_validation(make, tmp_path, capfd):
    make("s/a", seed=1, metrics={"val/elbo": -5.0, "test/elbo": -1.0})
    make("s/b", seed=2, metrics={"val/elbo": -4.0, "test/elbo": -9.0})
    make("s/c", seed=3, metrics={"val/elbo": -1.0}, status=Status("failed", "no room"))
    make("s/d", seed=4, metrics={"val/elbo": math.nan})
    command(tmp_path / "out", str(tmp_path / "s"), "metric=test/elbo")
    printed = capfd.readouterr().out
    assert "the best run is chosen by val/elbo" in printed
    assert f"run={tmp_path}/s/b" in printed
    assert printed.count("python -m svae.evaluate") == 1
    assert f"failed: {tmp_path}/s/c (no room)" in printed
    table = rows_of(tmp_path / "out/table.csv")
    assert [row["test/elbo_n"] for row in table] == ["2"]  # what failed is in no mean


def test_each_data_set_has_a_best_run(make, tmp_path, capfd):
    for number, (data, elbo) in enumerate(
        [("mnist", -100.0), ("mnist", -90.0), ("other", -300.0)]
    ):
        make(f"s/{number}", choices={"dataset": data}, seed=number, metrics={"val/elbo": elbo})
    command(tmp_path / "out", str(tmp_path / "s"))
    printed = capfd.readouterr().out
    assert re.search(r"best run of dataset=mnist by .*s/1,", printed)
    assert re.search(r"best run of dataset=other by .*s/2,", printed)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("dataset.image_size", (20, 28)),
        ("dataset.path", ("A", "B")),
        ("model.likelihood._target_", ("Bernoulli", "Gaussian")),
    ],
)
def test_bounds_that_do_not_compare_are_not_ranked(make, tmp_path, capfd, name, values):
    for number, value in enumerate(values):
        for seed in (1, 2):
            metrics = {"val/elbo": -100.0 * number - seed}
            make(f"s/{number}-{seed}", seed=seed, metrics=metrics, **{name: value})
    command(tmp_path / "out", str(tmp_path / "s"))
    printed = capfd.readouterr().out
    for number, value in enumerate(values):
        assert re.search(rf"best run of {name}={value} by .*s/{number}-1,", printed)


def test_bounds_of_the_same_images_are_ranked(make, tmp_path, capfd):
    for number, size in enumerate((50, 100)):
        make(f"s/{number}", dataset__batch_size=size, seed=1, metrics={"val/elbo": -size})
    command(tmp_path / "out", str(tmp_path / "s"))
    printed = capfd.readouterr().out
    assert re.search(r"best run by .*s/0,", printed)
    assert printed.count("best run") == 1


def test_an_unfinished_sweep_is_shown_as_far_as_it_is(make, tmp_path, capfd):
    make("s/done", seed=1, metrics={"val/elbo": -5.0, "test/elbo": -6.0}, curve=[-9.0, -5.0])
    make("s/going", seed=2, curve=[-9.0, -7.0, -8.0], status=Status("running"))
    make("s/begun", seed=3, status=Status("running"))
    make("s/stopped", seed=4, curve=[-8.0], status=Status("pruned"))
    (tmp_path / "s/stray").mkdir()
    (tmp_path / "s/multirun.yaml").touch()
    out = command(tmp_path / "out", str(tmp_path / "s"))
    rows = {Path(row["folder"]).name: row for row in rows_of(out / "runs.csv")}
    assert {name: row["state"] for name, row in rows.items()} == {
        "done": "finished",
        "going": "running",
        "begun": "running",
        "stopped": "pruned",
    }
    assert [rows[n]["val/elbo"] for n in ("done", "going", "begun")] == ["-5.0", "-8.0", ""]
    assert [rows[n]["test/elbo"] for n in ("done", "going")] == ["-6.0", ""]
    assert [rows[n]["epochs"] for n in ("done", "going", "begun")] == ["2", "3", "0"]
    (row,) = rows_of(out / "table.csv")
    assert (row["runs"], row["unfinished"], row["val/elbo_n"]) == ("4", "3", "3")
    assert "| 4 (3 unfinished) |" in (out / "table.md").read_text()
    assert "4 runs: 2 running, 1 finished, 1 pruned" in capfd.readouterr().out


def test_runs_with_the_same_settings_and_seed_count_once(make, tmp_path, capfd):
    make("s/first", seed=1, metrics={"val/elbo": -5.0}, curve=[-5.0], status=Status("running"))
    make("s/again", seed=1, metrics={"val/elbo": -4.0}, curve=[-4.0], status=Status("finished"))
    make("s/other", seed=2, metrics={"val/elbo": -6.0}, curve=[-6.0], status=Status("finished"))
    out = command(tmp_path / "out", str(tmp_path / "s"))
    (row,) = rows_of(out / "table.csv")
    assert (row["runs"], row["val/elbo"], row["val/elbo_n"]) == ("2", "-5.0", "2")
    assert len(rows_of(out / "runs.csv")) == 3
    assert "s/first is" in (printed := capfd.readouterr().out)
    assert "s/again again, and only one is counted" in printed


def test_a_sweep_that_has_just_begun(make, tmp_path, capfd):
    make("s/0", seed=1, status=Status("running"))
    out = command(tmp_path / "out", str(tmp_path / "s"))
    assert "no best run" in capfd.readouterr().out
    assert len(rows_of(out / "runs.csv")) == 1
    assert not (out / "figures").exists()


def test_what_is_damaged_is_told_once_and_left_out(make, tmp_path, capfd):
    for number in range(6):
        elbo = -5.0 - number
        make(f"s/{number}", seed=number, metrics={"val/elbo": elbo}, curve=[elbo])
    (tmp_path / "s/0/metrics.json").write_text('{"val/elbo": -5')
    (tmp_path / "s/1/metrics.csv").write_bytes(b"\xff\x00\xfe,,")
    (tmp_path / "s/2/status.json").write_text("{}")
    (tmp_path / "s/3/config.yaml").write_text("a: [")
    (tmp_path / "s/4/.hydra/hydra.yaml").write_text("5")
    out = command(tmp_path / "out", str(tmp_path / "s"))
    (warning,) = re.findall(r"WARNING.*", capfd.readouterr().out)
    for name in ("0/metrics.json", "1/metrics.csv", "2/status.json", "3/config.yaml"):
        assert name in warning
    assert warning.endswith("and 1 more")  # the fifth is s/3, whose settings nobody knows
    rows = {Path(row["folder"]).name: row for row in rows_of(out / "runs.csv")}
    assert {name: row["val/elbo"] for name, row in rows.items()} == {
        name: str(-5.0 - int(name)) for name in "01245"
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/nowhere"], "sweep: .*nowhere does not exist"),
        (["{}/no*"], r"sweep: .*no\* matches nothing"),
        (["{}/empty"], "sweep: .*empty holds no run"),
        (["{}/s", "metric=val/elb"], "metric: no run has val/elb; near it are val/elbo"),
        (["{}/s", "x=model.width"], "x: model.width was not swept; swept: model.z_dim, seed"),
        (["{}/s", "by=[seed,prior]"], "by: prior was not swept; swept: model.z_dim, seed"),
        (["{}/s", "x=[seed]"], "x: expected a name, got"),
        (["{}/s", "metric=[]"], "metric: expected a name or a list of names, got"),
    ],
)
def test_mistakes_are_told_in_one_line(make, tmp_path, capfd, arguments, message):
    make("s/0", model__z_dim=2, seed=1, metrics={"val/elbo": -1.0})
    make("s/1", model__z_dim=3, seed=2, metrics={"val/elbo": -1.0})
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as error:
        command(tmp_path / "out", *(argument.format(tmp_path) for argument in arguments))
    assert error.value.code == 2
    (line,) = capfd.readouterr().out.splitlines()
    assert re.search(f"ERROR. - {message}", line)
    assert not (tmp_path / "out/runs.csv").exists()


PATHS = ["outputs/multirun/a", "/x/lr=1,z=2", "a b", "it's", r"back\slash", r"end\'", "outputs/*"]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_what_the_command_gets(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (override, other) = as_overrides([path, "metric=a/b"])
    assert other == "metric=a/b"
    assert OverridesParser.create().parse_override(override).value() == path


def test_which_words_are_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    several = as_overrides([*PATHS, "x=seed"])
    assert OverridesParser.create().parse_override(several[0]).value() == PATHS
    assert several[1:] == ["x=seed"]
    for word in ("sweep=a/b", "x=seed", "--help", "hydra/job_logging=none", "+a=1", "~by", ""):
        assert as_overrides([word, "a"]) == [word, "a"]
    Path("x=seed").mkdir()
    assert as_overrides(["x=seed"]) == ["sweep='x=seed'"]
    assert as_overrides([]) == []


# ---- the runs


def test_runs_are_found_by_folder_pattern_or_name(make, tmp_path, monkeypatch):
    for name in ("s/z-2", "s/z-10", "t/z-1"):
        make(name, seed=1)
    monkeypatch.chdir(tmp_path)
    assert find_runs(["s"]) == ["s/z-2", "s/z-10"]
    assert find_runs(["s/z-10"]) == ["s/z-10"]
    assert find_runs(["?"]) == ["s/z-2", "s/z-10", "t/z-1"]
    assert find_runs(["t", "s/z-1*", "./s/z-10/"]) == ["t/z-1", "s/z-10"]
    (tmp_path / "s/multirun.yaml").touch()
    assert find_runs(["s/multirun.yaml", "s/z-2"]) == ["s/z-2"]  # what a shell makes of s/*


def test_what_hydra_recorded_is_no_run(make, tmp_path):
    """Of an evaluation, its folder has `.hydra/config.yaml` and no config of a training."""
    record = make("evaluation", seed=1) / "config.yaml"
    record.rename(record.parent / ".hydra/config.yaml")
    with pytest.raises(FileNotFoundError, match="evaluation holds no run"):
        find_runs([str(tmp_path / "evaluation")])


def test_a_table_beside_the_runs_is_no_run(make, tmp_path):
    make("s/0", seed=1, metrics={"val/elbo": -1.0})
    command(tmp_path / "s/table", str(tmp_path / "s"))
    assert find_runs([str(tmp_path / "s")]) == [str(tmp_path / "s/0")]


def test_runs_are_in_the_order_of_their_jobs(make, tmp_path):
    for name in ("b", "c", "a"):
        make(f"s/{name}", seed=1)
    assert [Path(run.folder).name for run in runs_in(tmp_path / "s")] == ["b", "c", "a"]


def test_metrics_of_before_a_run_was_taken_up_again_are_not_its_own(make, tmp_path):
    folder = make(
        "s/0", metrics={"val/elbo": -5.0}, curve=[-5.0, -4.0], status=Status("running"), seed=1
    )
    os.utime(folder / "metrics.json", (1, 1))
    assert runs_in(tmp_path / "s")[0].metrics["val/elbo"] == -4
    (folder / "status.json").unlink()  # an old run
    assert runs_in(tmp_path / "s")[0].metrics["val/elbo"] == -5


def test_each_column_has_its_last_number(make, tmp_path):
    folder = make("s/0", seed=1)
    lines = ["epoch,step,train/a,val/elbo", "0,7,1,2", "1,14,3,", "2,2"]
    (folder / "metrics.csv").write_text("\n".join(lines))
    (run,) = runs_in(tmp_path / "s")
    assert run.metrics == {"train/a": 3, "val/elbo": 2}
    assert run.curve == ([0], [2])
    assert run.epochs == 2


def test_a_row_for_each_run_in_a_notebook(real):
    rows = collect(real)
    assert len(rows) == 4
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert [row["seed"] for row in rows] == [1, 2, 1, 2]
    one = next(path.parent for path in sorted(real.glob("*/config.yaml")))
    assert [row["folder"] for row in collect(one)] == [str(one)]


def test_many_runs_are_read_fast(make, tmp_path):
    """A thousand take two seconds of a slow core; with another way of reading YAML, twenty."""
    make("one", seed=1, metrics={"val/elbo": -1.0}, curve=[-1.0] * 50)
    (tmp_path / "s").mkdir()
    for number in range(100):
        (tmp_path / "s" / str(number)).symlink_to(tmp_path / "one")
    folders = [str(tmp_path / "s" / str(number)) for number in range(100)]
    start = time.process_time()
    runs, _ = read_runs(folders)
    assert len(runs) == 100
    assert time.process_time() - start < 0.8


# ---- what was swept


def test_what_command_lines_name_and_differs_was_swept(make, tmp_path):
    number = 0
    for prior, angle in (("gaussian", "GaussianAngle"), ("uniform", "UniformAngle")):
        for z_dim in (2, 3):
            for seed in (1, 2):
                make(
                    f"s/{number}",
                    typed=["+trainer.max_epochs", "prior", "++model.z_dim", "seed"],
                    choices={"prior": prior},
                    prior__theta___target_=f"svae.priors.{angle}",
                    model__z_dim=z_dim,
                    prior__z__dims=z_dim,
                    seed=seed,
                    dataset__seed=seed,
                    output_dir=str(number),
                )
                number += 1
    runs = runs_in(tmp_path / "s")
    assert swept(runs) == ["prior", "model.z_dim", "seed"]
    assert [run.value("prior") for run in runs] == ["gaussian"] * 4 + ["uniform"] * 4
    for run in runs:
        run.overrides = []
    assert sorted(swept(runs)) == ["model.z_dim", "prior", "seed"]
    for run in runs:  # not even the choices are known
        run.choices = {}
    assert sorted(swept(runs)) == ["model.z_dim", "prior.theta._target_", "seed"]


def test_an_experiment_stands_for_what_it_sets():
    runs = [
        a_run(i, experiment=name, model__z_dim=z, model="b" if z else "a", seed=seed)
        for i, (name, z, seed) in enumerate([("p", 2, 1), ("q", 3, 1), ("p", 2, 2), ("q", 3, 2)])
    ]
    for run in runs:
        run.overrides = ["experiment", "seed"]
    assert swept(runs) == ["experiment", "seed"]


def test_runs_of_equal_command_lines_may_differ_all_the_same():
    """The config's files were edited between."""
    runs = [
        a_run(0, optimizer__lr=0.1, model__z_dim=2),
        a_run(1, optimizer__lr=0.2, model__z_dim=2),
    ]
    for run in runs:
        run.overrides = ["model.z_dim"]
    assert swept(runs) == ["optimizer.lr"]


def test_settings_of_the_machine_were_swept_only_if_all_runs_name_them(make, tmp_path):
    make("s/0", typed=["trainer", "logger"], choices={"trainer": "cpu", "logger": "csv"}, seed=1)
    make("s/1", typed=[], choices={"trainer": "auto"}, seed=1)
    runs = runs_in(tmp_path / "s")
    assert swept(runs) == []
    for run in runs:
        run.overrides = ["trainer", "output_dir", "ckpt_path"]
    assert swept(runs) == ["trainer"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("trainer.gradient_clip_val", (None, 0.01)),
        ("trainer.precision", ("32-true", "bf16-mixed")),
        ("trainer.accumulate_grad_batches", (1, 2)),
        ("callbacks.early_stopping.patience", (5, 20)),
        ("compile", (False, True)),
    ],
)
def test_what_a_command_line_sets_was_swept_whatever_its_section(make, tmp_path, name, values):
    for number, (value, seed) in enumerate([(v, s) for v in values for s in (1, 2)]):
        # One of the values is that of the configs, and not every command line names it.
        typed = [name, "seed"] if value == values[1] else ["seed"]
        make(f"s/{number}", typed=typed, metrics={"val/elbo": -number}, seed=seed, **{name: value})
    runs = runs_in(tmp_path / "s")
    layout = laid_out(runs, name, None)
    assert sorted(layout.swept) == sorted([name, "seed"])
    assert svae.sweep.once(runs, layout) == runs
    assert [len(group.runs) for group in grouped(runs, layout.groups)] == [2, 2]
    for run in runs:
        run.overrides = ["seed"]
    # Where it does not decide what is done it differs by the machine, as trainer.precision=auto.
    assert swept(runs) == (["seed", name] if decides(name) else ["seed"])
    assert decides(name) == name.endswith(("clip_val", "grad_batches"))


def test_what_changes_no_number_was_not_swept(make, tmp_path):
    for number, word in enumerate("ab"):
        make(
            f"s/{number}",
            choices={"logger": word},
            output_dir=word,
            ckpt_path=word,
            test=word,
            trainer__devices=word,
            trainer__accelerator=word,
            trainer__enable_progress_bar=word,
            callbacks__figures={"_target_": word},
            dataset__eval_batch_size=word,
            dataset__workers=word,
            dataset__in_memory=word,
            dataset__data_dir=word,
            seed=number,
        )
    assert swept(runs_in(tmp_path / "s")) == ["seed"]


def test_what_a_command_line_names_as_a_whole_differs_in_its_parts(make, tmp_path):
    with_it = make("s/0", typed=["seed"], seed=1)
    without = make("s/1", typed=["callbacks.early_stopping", "seed"], seed=2)  # with ~
    config = yaml.safe_load((without / "config.yaml").read_text())
    del config["callbacks"]["early_stopping"]
    (without / "config.yaml").write_text(yaml.safe_dump(config))
    assert swept(runs_in(tmp_path / "s")) == ["seed", "callbacks.early_stopping._target_"]
    # A choice tells its parts, and not where they write.
    for folder, choice in ((with_it, "standard"), (without, "pruned")):
        record = yaml.safe_load((folder / ".hydra/hydra.yaml").read_text())
        record["hydra"]["overrides"]["task"] = [f"callbacks={choice}", "seed=1"]
        record["hydra"]["runtime"]["choices"]["callbacks"] = choice
        (folder / ".hydra/hydra.yaml").write_text(yaml.safe_dump(record))
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["output_dir"] = str(folder)
        config["callbacks"]["best"]["dirpath"] = f"{folder}/checkpoints"
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert swept(runs_in(tmp_path / "s")) == ["callbacks", "seed"]


def test_a_seed_explains_its_copies_and_nothing_else(make, tmp_path):
    """A config's file was edited between two seeds: they are no repetitions."""
    for seed, copies in ((1, 3), (2, 9)):
        make(
            f"s/{seed}",
            typed=["seed"],
            metrics={"val/elbo": -seed},
            dataset__train_copies=copies,
            dataset__seed=seed,
            seed=seed,
        )
    runs = runs_in(tmp_path / "s")
    assert swept(runs) == ["seed", "dataset.train_copies"]
    assert laid_out(runs, None, None).groups == ["dataset.train_copies"]


def test_what_is_found_from_the_images_of_a_seed_is_its_own(make, tmp_path):
    """And so are settings that runs of before did not tell."""
    for seed, found in ((1, {"dataset__contents": "an older run has none"}), (2, {})):
        make(
            f"s/{seed}",
            typed=["seed"],
            dataset__offset=seed / 10,
            dataset__scale=seed / 10,
            dataset__mean=seed / 10,
            dataset__std=seed / 10,
            seed=seed,
            **found,
        )
    config = yaml.safe_load((tmp_path / "s/2/config.yaml").read_text())
    assert config["model"].pop("augment_mirror") is False
    (tmp_path / "s/2/config.yaml").write_text(yaml.safe_dump(config))
    runs = runs_in(tmp_path / "s")
    assert swept(runs) == ["seed"]
    assert laid_out(runs, None, None).kinds == []
    for run in runs:  # nor where no command line names the seed
        run.overrides = []
    assert swept(runs) == ["seed"]
    make("s/3", typed=["dataset.scale"], dataset__scale=0.1, seed=1)
    assert "dataset.scale" in swept(runs_in(tmp_path / "s"))


@pytest.mark.parametrize("choice", ["auto", "gaussian"])
def test_the_first_width_of_a_likelihood_is_its_seeds_where_it_was_found(make, tmp_path, choice):
    for z_dim in (2, 3):
        for seed in (1, 2):
            make(
                f"s/{z_dim}-{seed}",
                typed=["model.z_dim", "seed"],
                choices={"model/likelihood": choice},
                metrics={"val/elbo": -seed},
                model__z_dim=z_dim,
                model__likelihood__std=0.1 * seed,
                seed=seed,
            )
    runs = runs_in(tmp_path / "s")
    layout = laid_out(runs, None, None)
    width = [] if choice == "auto" else ["model.likelihood.std"]
    assert layout.swept == ["model.z_dim", "seed", *width]
    assert layout.kinds == width
    assert layout.groups == ["model.z_dim", *width]


def test_a_run_that_failed_early_has_the_settings_it_was_given(make, tmp_path):
    named = {"typed": ["model.z_dim", "model.image_shape"]}
    make("s/0", model__z_dim=2, **named)
    for number, z_dim in ((1, -1), (2, 2)):
        status = Status("failed", "dims: expected")
        folder = make(f"s/{number}", model__z_dim=z_dim, status=status, **named)
        composed = yaml.safe_load((folder / "config.yaml").read_text())
        composed["model"] |= {"image_shape": "???", "prior": "${prior}", "beta": "${model.z_dim}"}
        composed["prior"]["shift"]["image_shape"] = "${model.image_shape}"
        composed["output_dir"] = "${hydra:runtime.output_dir}"
        (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(composed))
        (folder / "config.yaml").unlink()
    runs = runs_in(tmp_path / "s")
    assert [run.value("model.z_dim") for run in runs] == [2, -1, 2]
    assert runs[1].value("model.beta") == -1
    assert "model.image_shape" not in runs[1].config
    assert runs[1].status.message == "dims: expected"
    # What those two had not decided yet was not swept.
    assert swept(runs) == ["model.z_dim"]


def test_values_are_told_as_yaml_tells_them(make, tmp_path):
    beta = {"z": 4.0}
    for number, values in enumerate([(None, 1.0, [1, 2]), (98, beta, [1])]):
        pixels, beta_, shape = values
        make(
            f"s/{number}",
            model__pixels_per_image=pixels,
            model__beta=beta_,
            model__image_shape=shape,
        )
    runs = runs_in(tmp_path / "s")
    assert [run.value("model.pixels_per_image") for run in runs] == ["null", 98]
    assert [run.value("model.beta") for run in runs] == [1.0, '{"z": 4.0}']
    assert [run.value("model.image_shape") for run in runs] == ["[1, 2]", "[1]"]
    assert runs[0].value("model.encoder") is None  # an object has too many settings


# ---- tables


def test_a_mean_has_the_digits_that_its_deviation_leaves():
    assert str(Spread(3, -184.6123, 1.934)) == "-184.6 ± 1.9"
    assert str(Spread(3, 0.123456, 0.00123)) == "0.1235 ± 0.0012"
    assert str(Spread(3, -184.6123, 25.3)) == "-185 ± 25"
    assert str(Spread(2, -103.96757, 0.00039)) == "-103.97 ± 0.0004"
    assert str(Spread(2, -153.9604, 0.0283)) == "-153.96 ± 0.03"
    assert str(Spread(2, 1e-9, 0.00123)) == "0.0000 ± 0.0012"
    assert str(Spread(2, 0.0, 0.00123)) == "0.0000 ± 0.0012"
    assert str(Spread(1, -184.6123, math.nan)) == "-184.61"
    assert str(Spread(2, -184.6123, 0.0)) == "-184.61"
    assert str(Spread(0, math.nan, math.nan)) == ""


def test_groups_have_what_their_runs_have():
    runs = [
        a_run(i, elbo, model__z_dim=z, seed=i)
        for i, (z, elbo) in enumerate(
            [(10, -4.0), (2, -1.0), (10, -6.0), (2, math.nan), (10, None), (3, None)]
        )
    ]
    groups = grouped(runs, ["model.z_dim"])
    assert [group.values for group in groups] == [[2], [3], [10]]
    assert groups[0].spread("val/elbo")[:2] == (1, -1)
    assert groups[2].spread("val/elbo") == (2, -5, pytest.approx(math.sqrt(2)))
    names = ["model.z_dim"], ["val/elbo"]
    assert [line.split() for line in plain(groups, *names)[1:]] == [
        ["2", "2", "-1", "(1)"],
        ["3", "1"],
        ["10", "3", "-5.0", "±", "1.4", "(2)"],
    ]
    assert markdown(groups, *names).splitlines() == [
        "| model.z_dim | runs | val/elbo |",
        "| --- | --- | --- |",
        "| 2 | 2 | -1 (1) |",
        "| 3 | 1 |  |",
        "| 10 | 3 | -5.0 ± 1.4 (2) |",
    ]


# ---- which setting goes where


def grid(**values: list) -> list[Run]:
    """A run for each combination of settings."""
    cases: list[dict] = [{}]
    for name, options in values.items():
        cases = [case | {name: option} for case in cases for option in options]
    return [a_run(i, -float(i + 1), **case) for i, case in enumerate(cases)]


def test_the_usual_layout():
    runs = grid(optimizer__lr=[0.1, 0.2], model=["a", "b"], model__z_dim=[2, 3], seed=[1, 2])
    layout = laid_out(runs, None, None)
    assert layout.x == "model.z_dim"
    assert layout.lines == ["optimizer.lr", "model"]
    assert layout.groups == ["optimizer.lr", "model", "model.z_dim"]
    assert layout.over == ["seed"]
    assert not layout.is_map
    other = laid_out(runs, "optimizer.lr", ["model"])
    assert (other.lines, other.groups) == (["model"], ["model", "optimizer.lr"])
    assert other.over == ["model.z_dim", "seed"]
    assert laid_out(runs, "seed", None).lines == ["optimizer.lr", "model", "model.z_dim"]
    assert laid_out(runs, None, []).groups == ["model.z_dim"]
    assert laid_out(runs, None, ["model.z_dim"]).x == "optimizer.lr"


def test_the_first_number_else_the_first_name_lies_along_the_axis():
    assert laid_out(grid(model=["a", "b"], optimizer__lr=[1, 2]), None, None).x == "optimizer.lr"
    assert laid_out(grid(model=["a", "b"], prior=["c", "d"]), None, None).x == "model"
    seeds = laid_out(grid(seed=[1, 2]), None, None)
    assert (seeds.x, seeds.lines, seeds.groups, seeds.over) == (None, [], [], ["seed"])


def test_two_numbers_make_a_map_unless_something_else_is_asked_for():
    runs = grid(optimizer__lr=[0.1, 0.2], model__z_dim=[2, 3], seed=[1, 2])
    assert laid_out(runs, None, None).is_map
    assert not laid_out(runs, "model.z_dim", None).is_map
    assert not laid_out(runs, None, ["optimizer.lr"]).is_map
    figure = metric_figure(runs, laid_out(runs, None, None), "val/elbo")
    assert figure is not None
    shown = figure.axes[0].images[0].get_array()
    assert shown.tolist() == [[-1.5, -3.5], [-5.5, -7.5]]  # a row for each learning rate
    assert figure.axes[0].get_xlabel() == "model.z_dim"


def test_data_sets_have_panels():
    runs = grid(dataset=["m", "r"], model=["a", "b"], model__z_dim=[2, 3])
    layout = laid_out(runs, None, None)
    assert (layout.panel, layout.lines) == ("dataset", ["model"])
    assert layout.groups == ["dataset", "model", "model.z_dim"]
    for figure in (metric_figure(runs, layout, "val/elbo"), curves_figure(runs, layout)):
        assert figure is not None
        assert len(figure.axes) == 2
        assert figure.axes[0].get_ylim() != figure.axes[1].get_ylim()


def test_bounds_that_do_not_compare_have_panels():
    """Where they can, which are no map and do not lie along one axis."""
    layout = laid_out(grid(dataset__image_size=[20, 28], optimizer__lr=[1, 2]), None, None)
    assert (layout.x, layout.panel, layout.is_map) == ("optimizer.lr", "dataset.image_size", False)
    runs = grid(dataset__image_size=[20, 28], seed=[1, 2])
    layout = laid_out(runs, None, None)
    assert (layout.x, layout.panel) == ("dataset.image_size", None)
    figure = curves_figure(runs, layout)
    assert figure is not None
    assert len({axes.get_ylim() for axes in figure.axes}) == 2


def test_too_many_lines_become_dots():
    runs = grid(model=["a", "b"], optimizer__lr=list(range(1, 21)), model__z_dim=[2, 3])
    layout = laid_out(runs, None, None)
    assert (layout.lines, layout.pooled) == (["model"], ["optimizer.lr"])
    assert layout.groups == ["model", "optimizer.lr", "model.z_dim"]
    figure = metric_figure(runs, layout, "val/elbo")
    assert figure is not None
    assert not figure.axes[0].lines
    dots = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    assert sum(len(c.get_offsets()) for c in dots) == len(runs)


# ---- figures


def lines_figure(points: list[Point], **options: Any):
    known = list(dict.fromkeys(point.line for point in points))
    settings = {"x": "model.z_dim", "metric": "val/elbo", "lines": ["model"], "known": known}
    return sweep_figure(points, **(settings | {"title": "t"} | options))


def test_a_line_goes_through_the_means():
    points = [Point(2, ("a",), -4.0), Point(2, ("a",), -6.0), Point(4, ("a",), -1.0)]
    figure = lines_figure(points)
    (axes,) = figure.axes
    line = axes.containers[0].lines[0]
    assert line.get_xdata().tolist() == [2, 4]
    assert line.get_ydata().tolist() == [-5, -1]
    bars = axes.containers[0].lines[2][0].get_segments()
    assert bars[0][:, 1].tolist() == pytest.approx([-5 - math.sqrt(2), -5 + math.sqrt(2)])
    assert not len(bars[1])  # one run has no deviation
    assert axes.get_ylabel() == "val/elbo (nats per image)"
    low, high = axes.get_ylim()
    assert low < -5 - math.sqrt(2) < -1 < high


def test_lines_are_beside_each_other_and_nearer_than_the_next_value():
    names = [(str(i),) for i in range(6)]
    figure = lines_figure([Point(x, name, -1.0) for x in (2, 3, 50) for name in names])
    places = np.array([c.lines[0].get_xdata() for c in figure.axes[0].containers], float)
    assert (np.diff(places, axis=0) > 0).all()
    assert np.ptp(places, axis=0).max() < 0.5
    np.testing.assert_allclose(places.mean(0), [2, 3, 50])


@pytest.mark.parametrize(
    ("values", "scale"), [([2, 60], "linear"), ([2, 70], "log"), ([0, 9], "linear")]
)
def test_wide_ranges_are_logarithmic(values, scale):
    figure = lines_figure([Point(x, ("a",), -1.0) for x in values])
    assert figure.axes[0].get_xscale() == scale
    assert figure.axes[0].get_xticks().tolist() == values


def test_two_names_are_colour_and_dash():
    lines = [(model, prior) for model in "abc" for prior in "uv"]
    figure = lines_figure([Point(2, line, -1.0) for line in lines], lines=["model", "prior"])
    drawn = [c.lines[0] for c in figure.axes[0].containers]
    assert [to_hex(line.get_color()).upper() for line in drawn] == [
        LINE_COLOURS[i] for i in (0, 0, 1, 1, 2, 2)
    ]
    assert [line.get_linestyle() for line in drawn] == ["-", "--"] * 3
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [", ".join(line) for line in lines]
    assert legend.get_title().get_text() == "model, prior"


def test_colours_do_not_depend_on_what_is_there_yet():
    figure = lines_figure([Point(2, ("b",), -1.0)], known=[("a",), ("b",)])
    (container,) = figure.axes[0].containers
    assert to_hex(container.lines[0].get_color()).upper() == LINE_COLOURS[1]


def test_both_figures_have_the_same_colours():
    """Also where all runs of a line failed, which has learning curves only."""
    runs = grid(model=["a", "b"], model__z_dim=[2, 3])
    layout = laid_out(runs, None, None)
    figures = metric_figure(runs[2:], layout, "val/elbo"), curves_figure(runs, layout)
    assert all(figures)
    metric, curves = ([h.get_color() for h in f.legends[0].legend_handles] for f in figures if f)
    assert metric == curves[1:]


def test_runs_that_have_not_finished_are_hollow():
    points = [Point(2, ("a",), -1.0, ended=True), Point(2, ("a",), -2.0, ended=False)]
    figure = lines_figure(points)
    hollow = [
        c.get_offsets()[:, 1].tolist()
        for c in figure.axes[0].collections
        if isinstance(c, PathCollection) and to_hex(c.get_facecolor()[0]) == "#ffffff"
    ]
    assert [values for values in hollow if values] == [[-2.0]]
    assert "not finished" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_names_lie_below_each_other():
    points = [
        Point(name, ("u",), value) for name, value in zip("aab", (-1.0, -3.0, -4.0), strict=True)
    ]
    figure = lines_figure(points, x="model", lines=["prior"])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    means = [c.lines[0].get_xydata()[0].tolist() for c in axes.containers]
    assert means == [[-2, 0], [-4, 1]]
    assert axes.get_ylim() == (1.5, -0.5)
    assert axes.get_xlabel() == "val/elbo (nats per image)"


def test_a_run_that_blew_up_does_not_own_the_axis():
    points = [Point(x, ("a",), -100.0 - x) for x in range(1, 20)] + [Point(20, ("a",), -1e9)]
    figure = lines_figure(points)
    assert figure.axes[0].get_ylim()[0] > -300
    assert figure.axes[0].get_title(loc="right") == "1 of 20 runs outside"


def test_random_values_are_dots_in_a_map():
    random = np.random.default_rng(0)
    points = [(10 ** random.uniform(-5, -2), random.uniform(1, 4), float(i)) for i in range(30)]
    figure = sweep_map_figure(points, x="optimizer.lr", y="model.beta", metric="m", title="t")
    assert not figure.axes[0].images
    (dots,) = figure.axes[0].collections
    assert len(dots.get_offsets()) == 30
    assert figure.axes[0].get_xscale() == "log"
    assert figure.axes[0].get_yscale() == "linear"


def test_curves_end_as_their_runs_did():
    values = [-900.0, -30.0, -20.0, -12.0, -11.0, -10.0, -10.0, -10.0]
    curves = [
        Curve(("a",), range(8), values, "2", state)
        for state in ("finished", "running", "pruned", "failed")
    ]
    figure = learning_figure(
        curves,
        metric="val/elbo",
        lines=["model"],
        known=[("a",)],
        panels="model.z_dim",
        shared=True,
        title="t",
    )
    (axes,) = figure.axes
    ends = [line.get_marker() for line in axes.lines if len(line.get_xdata()) == 1]
    assert ends == ["o", "o", "x"]
    # The first epochs do not decide which part is seen.
    assert -100 < axes.get_ylim()[0] < -20


def test_panels_of_one_data_set_share_their_range():
    runs = grid(model__z_dim=[2, 3, 5, 10, 20], seed=[1, 2])
    figure = curves_figure(runs, laid_out(runs, None, None))
    assert figure is not None
    assert len(figure.axes) == 5
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert figure.axes[3].get_title(loc="left") == "model.z_dim 10"


def test_what_has_no_value_has_no_figure():
    runs = [a_run(0, None, seed=1), a_run(1, math.nan, seed=2)]
    layout = laid_out(runs, None, None)
    assert metric_figure(runs, layout, "val/elbo") is None
    for run in runs:
        run.curve = ([], [])
    assert curves_figure(runs, layout) is None


def test_strange_names_are_drawn(tmp_path, caplog):
    """Dollars are no formulas, long names have room, letters without a glyph are boxes."""
    runs = grid(model=["$a_$", "语" * 40, "x" * 300], model__z_dim=[2, 3])
    layout = laid_out(runs, None, None)
    with caplog.at_level(logging.WARNING):
        for number, figure in enumerate(
            (metric_figure(runs, layout, "val/elbo"), curves_figure(runs, layout))
        ):
            assert figure is not None
            figure.savefig(tmp_path / f"{number}.png")
            assert figure.get_size_inches()[0] < 12
    names = laid_out(runs, "model", None)
    figure = metric_figure(runs, names, "val/elbo")
    assert figure is not None
    figure.savefig(tmp_path / "names.png")
    assert not caplog.messages
