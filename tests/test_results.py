"""`python -m svae.results`: a tiny plan from beginning to end; the real one composes."""

import io
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from tests.helpers import run_command

import svae.results
from svae.paths import conf_dir
from svae.results import running
from svae.results.page import MARK, write_page
from svae.results.pictures import LIMIT, small
from svae.results.plan import SIZES, Job, plan_of
from svae.results.ran import Ran, arguments, check, ran

QUICK = [
    *("debug=quick", "dataset.train_copies=1", "dataset.eval_copies=1", "trainer=cpu"),
    *("model.encoder.hidden=8", "model.generator.hidden=8", "evaluation.iwae_samples=0"),
]
TINY: dict[str, Any] = {
    "title": "A tiny result",
    "place": "a paper, table 9",
    "columns": [
        {"metric": "test/elbo", "name": "ELBO", "better": "higher"},
        {"metric": "test/clustering_accuracy", "name": "k-means", "percent": True},
        {"metric": "test/nobody_measures", "name": "nothing"},
    ],
    "rows": {
        "good": {
            "label": "a good row",
            "overrides": QUICK,
            "paper": {"test/elbo": 1e6},
            "why": "It is tiny.",
        },
        "once": {
            "label": "the same in one turn",
            "of": "tiny/good",
            "evaluate": ["model.pose_candidates=1"],
        },
        "broken": {"label": "a broken row", "overrides": ["dataset=images"]},
        "elsewhere": {"label": "a row for others", "needs": ["nobody/has.npy"]},
    },
    "pictures": [{"row": "good", "name": "manifold", "caption": "What it generates"}],
}


class Plan:
    """A plan of one's own, and the command with it."""

    def __init__(self, folder: Path, node: dict[str, Any]) -> None:
        self.folder = folder
        configs = folder / "configs" / "results"
        configs.mkdir(parents=True)
        (configs / "tiny.yaml").write_text(yaml.safe_dump({"tiny": node}, sort_keys=False))
        self.page, self.figures = folder / "R.md", folder / "figures"

    def run(self, *options: str) -> int | str | None:
        """The exit status."""
        places = [f"{name}={self.folder / path}" for name, path in self.places.items()]
        given = [f"--config-dir={self.folder / 'configs'}", "results=[tiny]", *places, *options]
        try:
            run_command(svae.results.main, *given)
        except SystemExit as stopped:
            return stopped.code
        return 0

    @property
    def places(self) -> dict[str, str]:
        return {name: name for name in ("figures", "records")} | {"folder": "runs", "page": "R.md"}

    @property
    def runs(self) -> Path:
        return self.folder / "runs" / "small"

    @property
    def record(self) -> Path:
        return self.folder / "records" / "tiny.json"

    def text(self) -> str:
        return self.page.read_text()


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Plan, int | str | None, str]:
    """The tiny plan, run: a training, its evaluation, and one that crashes."""
    plan = Plan(tmp_path_factory.mktemp("results"), TINY)
    line = running.command_line

    def crashes(job: Job, *more: Any) -> list[str]:
        return (
            [sys.executable, "-S", "-c", "raise SystemExit('boom')"]
            if "broken" in job.name
            else line(job, *more)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "command_line", crashes)
        status = plan.run("jobs=2")
    return plan, status, plan.text()


def row_of(text: str, label: str) -> list[str]:
    """The cells of a row of a table."""
    (line,) = [one for one in text.splitlines() if one.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_failing_run_costs_itself_alone(done):
    plan, status, text = done
    assert status == 1
    assert row_of(text, "a broken row")[1] == "not run"
    assert (plan.runs / "tiny/broken/seed-1.log").read_text() == "boom\n"
    assert (plan.runs / "tiny/good/seed-1/status.json").is_file()


def test_the_page_has_the_numbers_of_the_run_directories(done):
    plan, _, text = done
    for name in ("good", "once"):
        metrics = json.loads((plan.runs / f"tiny/{name}/seed-1/metrics.json").read_text())
        cells = row_of(text, TINY["rows"][name]["label"])
        assert cells[1].strip("*") == f"{metrics['test/elbo']:.4g}"
        assert cells[3] == f"{100 * metrics['test/clustering_accuracy']:.4g} %"
        assert cells[4] == "–"
        assert cells[-2] == "1"
    good = row_of(text, "a good row")
    assert good[1].startswith("**")
    assert good[2] == "1e+06"
    assert "- a good row: ELBO" in text
    assert "It is tiny." in text
    config = yaml.safe_load((plan.runs / "tiny/good/seed-1/config.yaml").read_text())
    machine = config["environment"]
    assert f"Ran on {machine['processor']}, 1 of {machine['cores']} cores" in text
    assert machine["threads"] == "1"


def test_an_evaluation_is_of_the_settings_that_the_row_has(done):
    """The training has four candidates."""
    plan, _, _ = done
    trained, tested = (
        json.loads((plan.runs / f"tiny/{name}/seed-1/metrics.json").read_text())
        for name in ("good", "once")
    )
    assert trained["test/elbo"] != tested["test/elbo"]


def test_what_is_not_there_is_listed_with_its_command(done):
    _, _, text = done
    assert row_of(text, "a row for others")[1] == "not run"
    assert "`tiny/elsewhere/seed-1`: not run (it needs nobody/has.npy" in text
    assert "python -m svae.train dataset=images seed=1" in text


def test_the_page_is_the_same_to_the_byte(done, monkeypatch):
    plan, _, text = done
    picture = plan.figures / "tiny_good_manifold.png"
    before = picture.read_bytes()
    assert "(figures/tiny_good_manifold.png)" in text
    assert plan.run("run=false") == 0
    assert (plan.text(), picture.read_bytes()) == (text, before)


def test_finished_runs_are_not_run_again(done, monkeypatch):
    plan, _, _ = done
    begun: list[Job] = []

    def nothing(job: Job, *more: object) -> list[str]:
        begun.append(job)
        return [sys.executable, "-S", "-c", "raise SystemExit(7)"]

    monkeypatch.setattr(running, "command_line", nothing)
    plan.run()
    assert [job.name for job in begun] == ["tiny/broken/seed-1"]


def copied(done: tuple[Plan, Any, str], folder: Path, node: dict[str, Any]) -> Plan:
    """Another plan over a copy of the same runs."""
    plan = Plan(folder, node)
    shutil.copytree(done[0].folder / "runs", folder / "runs")
    return plan


def changed(**rows: dict[str, Any]) -> dict[str, Any]:
    """The tiny plan with other keys in some rows."""
    return TINY | {"rows": {k: v | rows.get(k, {}) for k, v in TINY["rows"].items()}}


def test_a_run_of_other_settings_is_told_and_left_as_it_is(done, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "command_line", lambda *_: ["false"])
    other = changed(good={"overrides": [*QUICK, "model.z_dim=3"]})
    plan = copied(done, tmp_path, other)
    before = {p: p.stat().st_mtime_ns for p in plan.runs.rglob("*") if "good" in str(p)}
    assert plan.run() == 1
    assert "holds a run with model.z_dim=2, not 3" in capsys.readouterr().out
    assert row_of(plan.text(), "a good row")[1] == "other settings"
    assert {p: p.stat().st_mtime_ns for p in plan.runs.rglob("*") if "good" in str(p)} == before


def test_an_evaluation_with_other_settings_is_not_counted(done, tmp_path):
    plan = copied(done, tmp_path, changed(once={"evaluate": ["model.pose_candidates=2"]}))
    assert plan.run("run=false") == 0
    assert row_of(plan.text(), "the same in one turn")[1] == "other settings"


def test_an_evaluation_is_of_the_training_that_is_there(done, tmp_path):
    plan = copied(done, tmp_path, TINY)
    training, evaluation = (plan.runs / "tiny" / name / "seed-1" for name in ("good", "once"))
    label = "the same in one turn"
    options = "run=false", "recorded=false"
    assert plan.run(*options) == 0
    assert row_of(plan.text(), label)[1] == row_of(done[2], label)[1]
    newer = (evaluation / "metrics.json").stat().st_mtime + 1
    os.utime(training / "metrics.json", (newer, newer))
    assert plan.run(*options) == 0
    assert row_of(plan.text(), label)[1] == "not run"
    os.utime(training / "metrics.json", (newer - 100, newer - 100))
    (training / "status.json").unlink()
    assert plan.run(*options) == 0
    assert row_of(plan.text(), label)[1] == "not run"


def cloned(done: tuple[Plan, Any, str], folder: Path, node: dict[str, Any]) -> Plan:
    """Another plan, with what is committed after that one: no run directories."""
    plan = Plan(folder, node)
    for name in ("records", "figures"):
        shutil.copytree(done[0].folder / name, folder / name)
    return plan


@pytest.fixture
def begun(monkeypatch) -> list[str]:
    """The names of the runs that begin; all of them fail."""
    names: list[str] = []

    def fails(job: Job, *more: object) -> list[str]:
        names.append(job.name)
        return ["false"]

    monkeypatch.setattr(running, "command_line", fails)
    return names


def test_a_fresh_clone_has_the_same_page_and_runs_nothing_again(done, tmp_path, begun, capsys):
    plan = cloned(done, tmp_path, TINY)
    picture = plan.figures / "tiny_good_manifold.png"
    before = {path: path.read_bytes() for path in (plan.record, picture)}
    stamp = plan.record.stat().st_mtime_ns
    assert plan.run() == 1
    assert begun == ["tiny/broken/seed-1"]
    assert (
        "4 runs: 2 finished (2 by their records alone: recorded=false" in capsys.readouterr().out
    )
    assert plan.text() == done[2].replace(str(done[0].folder), str(tmp_path))
    assert before == {path: path.read_bytes() for path in before}
    assert plan.record.stat().st_mtime_ns == stamp
    picture.unlink()
    assert plan.run("run=false") == 0
    assert "manifold" not in plan.text()
    assert row_of(plan.text(), "a good row") == row_of(done[2], "a good row")


def test_what_is_recorded_is_run_here_where_that_is_asked(done, tmp_path, begun):
    plan = cloned(done, tmp_path, TINY)
    record = plan.record.read_bytes()
    assert plan.run("recorded=false") == 1
    assert begun == ["tiny/good/seed-1", "tiny/broken/seed-1"]  # the evaluation fails without it
    assert row_of(plan.text(), "a good row")[1] == "not run"
    assert "records" not in plan.text()
    assert plan.record.read_bytes() == record


def test_the_first_seed_of_everything_comes_first(tmp_path, begun):
    rows = {name: {"label": name, "overrides": QUICK} for name in ("one", "two")}
    node = TINY | {"rows": rows, "pictures": [], "seeds": [1, 2]}
    assert Plan(tmp_path, node).run() == 1
    assert begun == [f"tiny/{row}/seed-{seed}" for seed in (1, 2) for row in ("one", "two")]


def test_a_record_of_other_settings_is_told_and_the_run_begun(done, tmp_path, begun, capsys):
    """An evaluation's, too; and what it needs is trained here, although that is recorded."""
    other = changed(once={"evaluate": ["model.pose_candidates=2"]})
    plan = cloned(done, tmp_path / "evaluation", other)
    assert plan.run() == 1
    assert begun == ["tiny/good/seed-1", "tiny/broken/seed-1"]
    why = "its record was evaluated with model.pose_candidates=1"
    assert f"({why})" in capsys.readouterr().out
    assert f"not run ({why})" in plan.text()
    assert row_of(plan.text(), "a good row") == row_of(done[2], "a good row")
    plan = cloned(
        done, tmp_path / "training", changed(good={"overrides": [*QUICK, "model.z_dim=3"]})
    )
    assert plan.run("run=false") == 0
    assert "not run (its record has model.z_dim=2, not 3)" in plan.text()
    assert "not run (its training tiny/good/seed-1 is not finished)" in plan.text()


def test_a_trial_with_a_page_of_its_own_leaves_the_records_alone(done, tmp_path, monkeypatch):
    plan = copied(done, tmp_path, TINY)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    assert plan.run("run=false", "records=null") == 0
    assert (tmp_path / "R" / "small" / "tiny.json").read_bytes() == done[0].record.read_bytes()
    assert not list((tmp_path / "project").iterdir())


def test_a_run_directory_wins_over_its_record_and_renews_it(done, tmp_path, capsys):
    """Of an evaluation, the training is then another."""
    plan = cloned(done, tmp_path, TINY)
    place = plan.runs / "tiny/good/seed-1"
    shutil.copytree(done[0].runs / "tiny/good/seed-1", place)
    metrics = json.loads((place / "metrics.json").read_text())
    (place / "metrics.json").write_text(json.dumps(metrics | {"test/elbo": -1.5}))
    before = json.loads(plan.record.read_text())["runs"]
    assert plan.run("run=false") == 0
    assert row_of(plan.text(), "a good row")[1] == "**-1.5**"
    assert (
        "not run (its record is of another training than tiny/good/seed-1 is now)" in plan.text()
    )
    after = json.loads(plan.record.read_text())["runs"]
    assert after["tiny/good/seed-1"]["metrics"]["test/elbo"] == -1.5
    assert after["tiny/once/seed-1"] == before["tiny/once/seed-1"]


def test_records_are_written_also_when_it_was_interrupted(done, tmp_path, monkeypatch):
    plan = copied(done, tmp_path, TINY)

    def interrupted(*_: object) -> dict[Job, str]:
        signal.raise_signal(signal.SIGINT)
        return {}

    monkeypatch.setattr(svae.results, "work_off", interrupted)
    assert plan.run() == 130
    assert plan.record.read_bytes() == done[0].record.read_bytes()


def test_a_damaged_record_is_told_before_anything_runs(done, tmp_path, begun, capfd):
    plan = cloned(done, tmp_path, TINY)
    text = plan.record.read_text()
    for damage in (text[:-20], f"<<<<<<< HEAD\n{text}", text.replace('"date"', '"data"')):
        plan.record.write_text(damage)
        status = plan.run()
        printed = "".join(capfd.readouterr()) + str(status)
        assert f"{plan.record}: expected records of runs as svae.results writes them" in printed
        assert plan.record.read_text() == damage
    assert not begun


#: A run that notes that it began, goes on until it is asked to end, and is then interrupted.
ENDLESS = """
import json, pathlib, signal, sys, time
place = pathlib.Path(sys.argv[1])
place.mkdir(parents=True, exist_ok=True)
signal.signal(signal.SIGINT, lambda *_: sys.exit((place / "asked").touch() or 130))
(place / "begun").touch()
time.sleep(30)
"""


def test_ctrl_c_ends_what_runs_and_the_same_line_goes_on(done, tmp_path, monkeypatch, capsys):
    """The child is in a session of its own: only the command tells it to end."""
    node = changed()
    node["rows"] = {k: node["rows"][k] for k in ("good", "once")}
    plan = Plan(tmp_path, node)
    begun = plan.runs / "tiny/good/seed-1/begun"

    def endless(job: Job, folder: Path, machine: object) -> list[str]:
        return [sys.executable, "-S", "-c", ENDLESS, str(folder / job.name)]

    def interrupt() -> None:
        while not begun.exists():
            waited.wait(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    waited = threading.Event()
    monkeypatch.setattr(running, "command_line", endless)
    thread = threading.Thread(target=interrupt)
    thread.start()
    assert plan.run() == 130
    thread.join()
    assert begun.with_name("asked").exists()
    assert "interrupted; the same command goes on" in capsys.readouterr().out
    assert row_of(plan.text(), "a good row")[1] == "not run"

    def finishes(job: Job, folder: Path, machine: object) -> list[str]:
        return ["cp", "-r", f"{done[0].runs / job.name}/.", str(folder / job.name)]

    monkeypatch.setattr(running, "command_line", finishes)
    (plan.runs / "tiny/once/seed-1").mkdir(parents=True)
    assert plan.run() == 0
    assert row_of(plan.text(), "the same in one turn")[1] != "not run"


def test_an_unfinished_run_is_begun_with_the_same_line(done, tmp_path, monkeypatch):
    """What a kill leaves: `svae.train` goes on where it is given the same folder."""
    plan = copied(done, tmp_path, TINY)
    place = plan.runs / "tiny/good/seed-1"
    status = json.loads((place / "status.json").read_text()) | {"state": "running"}
    (place / "status.json").write_text(json.dumps(status))
    begun: list[list[str]] = []
    line = running.command_line

    def note(*given: Any) -> list[str]:
        begun.append(line(*given))
        return ["false"]

    monkeypatch.setattr(running, "command_line", note)
    assert plan.run("only=tiny") == 1
    first = begun[0]
    assert first[1:3] == ["-m", "svae.train"]
    assert f"hydra.run.dir={place}" in first
    assert set(QUICK) < set(first)
    assert row_of(plan.text(), "a good row")[1] == "not finished"


def test_a_broken_off_evaluation_is_done_anew(tmp_path):
    """Its folder would be refused: it holds figures."""
    place = tmp_path / "tiny"
    (place / "figures").mkdir(parents=True)
    (place / "figures" / "manifold.png").touch()
    running._clear(place)
    assert not (place / "figures").exists()
    (place / "metrics.json").touch()
    running._clear(place)
    assert not list(place.iterdir())


def test_somebody_elses_page_is_not_overwritten(done, tmp_path, capsys):
    plan = Plan(tmp_path, TINY)
    plan.page.write_text("# Mine\n")
    assert plan.run("run=false") == 2
    assert "was not written by svae.results" in capsys.readouterr().out
    assert plan.text() == "# Mine\n"


MISTAKES = {
    "only=nobody": "only: expected one of tiny, got 'nobody'",
    "size=huge": "size: expected one of small, full, got 'huge'",
    "jobs=0": "jobs: expected a whole number of at least 1, got 0",
    "run=1": "run: expected true or false, got 1",
    "recorded=1": "recorded: expected true or false, got 1",
    "+results.tiny.colour=red": "results.tiny.colour: no such key",
    "+results.tiny.rows.good.colour=red": "results.tiny.rows.good.colour: no such key",
    "+results.tiny.full.rows={}": "results.tiny.full.rows: no such key",
    "results.tiny.rows.once.of=tiny/nobody": "rows.once.of: expected one of good, once",
    "results.tiny.rows.once.of=tiny/once": "results.tiny.rows.once.of: refers to itself",
    "+results.tiny.rows.good.values=[1]": "results.tiny.rows.good.values: expected a sweep",
    "+results.tiny.curves=[test/elbo]": "results.tiny.curves: expected a sweep",
    "results.tiny.columns.0.better=more": "results.tiny.columns.0.better: expected one of higher",
    "results.tiny.pictures.0.row=nobody": "results.tiny.pictures.0.row: expected one of good",
    "results.tiny.rows.good.overrides=['model.zdim=3']": "Could not override 'model.zdim'",
    "results.tiny.rows.once.evaluate=['model.zdim=3']": "Could not override 'model.zdim'",
}


def test_a_mistake_is_told_in_one_line_and_nothing_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(running, "command_line", lambda *_: pytest.fail("something ran"))
    plan = Plan(tmp_path, TINY)
    for mistake, message in MISTAKES.items():
        status = plan.run(mistake)
        printed = "".join(capfd.readouterr()) + (status if isinstance(status, str) else "")
        assert status not in (0, None), mistake
        (line,) = [one for one in printed.splitlines() if one.strip()]
        assert message in line, mistake
    assert not plan.runs.exists() or not any(plan.runs.iterdir())


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        found: Any = OmegaConf.to_container(compose("results").results, resolve=True)
    return found


def test_the_plan_has_every_result_of_the_folder(real):
    assert set(real) == {path.stem for path in Path(conf_dir(), "results").glob("*.yaml")}


def test_every_run_of_the_real_plan_composes(real):
    """Of both sizes; one seed and one value of what is swept, since others change nothing."""
    jobs = {
        row.jobs[0][0].overrides[: -1 - (result.sweep is not None)]: row.jobs[0][0]
        for size in SIZES
        for result in plan_of(real, size).values()
        for row in result.rows.values()
    }
    assert len(jobs) > 50
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        for job in jobs.values():
            check(job)


def test_the_small_plan_takes_a_night_of_two_cores(real):
    plan = plan_of(real, "small")
    jobs = dict.fromkeys(job for one in plan.values() for job in one.jobs if not job.skip)
    # Of unknown length is what has no data in most places.
    minutes = [job.minutes for job in jobs if job.minutes is not None]
    assert len(minutes) > 100
    assert sum(minutes) / 2 < 10 * 60


def test_the_papers_baselines_can_be_built(real):
    """A vanilla VAE has no Fourier features, which the paper's experiment sets to 0."""
    row = plan_of(real, "full")["figure_2"].rows["rot_vanilla"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("train", arguments(row.jobs[0][0], Path("runs")))
    assert config.model.generator._target_ == "svae.generators.PixelMLP"
    assert "fourier_features" not in config.model.generator
    assert config.optimizer.lr == 1e-4
    assert config.model.z_dim == 2


def test_a_large_figure_becomes_small():
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (500, 500, 3), dtype=np.uint8))
    content = io.BytesIO()
    image.save(content, "PNG")
    assert content.tell() > LIMIT
    made = small(content.getvalue())
    assert len(made) < LIMIT
    assert small(content.getvalue()) == made
    assert small(made) is made


SWEPT: dict[str, Any] = {
    "title": "Swept",
    "columns": [{"metric": "test/elbo", "name": "ELBO", "better": "higher"}],
    "sweep": {"setting": "model.z_dim", "values": [2, 3]},
    "curves": ["test/elbo"],
    "seeds": [1, 2],
    "overrides": ["trainer.max_epochs=5"],
    "full": {"seeds": [7], "overrides": ["trainer.max_epochs=100"]},
    "rows": {
        "spatial": {"label": "spatial-VAE", "group": "digits", "minutes": [1, 2]},
        "plus": {"label": "with three more", "group": "digits", "values": [5, 6]},
    },
}


def test_a_sweep_has_its_values_across_and_a_curve(tmp_path):
    plan = plan_of({"swept": SWEPT}, "small")
    jobs = list(plan["swept"].jobs)
    assert [job.name for job in jobs[:2]] == [f"swept/spatial/z_dim-2_seed-{i}" for i in (1, 2)]
    assert jobs[4].overrides == ("trainer.max_epochs=5", "model.z_dim=5", "seed=1")
    assert [job.minutes for job in jobs] == [1.0] * 2 + [2.0] * 2 + [None] * 4
    found = {
        job: Ran("finished", metrics={"test/elbo": -100.0 - number})
        for number, job in enumerate(jobs)
    }
    options = {"size": "small", "folder": Path("runs"), "figures": tmp_path / "figures"}
    write_page(tmp_path / "R.md", plan, found, **options)  # type: ignore[arg-type]
    text = (tmp_path / "R.md").read_text()
    assert text.startswith(MARK)
    assert "| model.z_dim |  | 2 | 3 | seeds | training |" in text
    assert "| digits | spatial-VAE | -100.50 ± 0.71 | -102.50 ± 0.71 | 2 | – |" in text
    assert "python -m svae.train -m trainer.max_epochs=5 model.z_dim=5,6 seed=1,2" in text
    assert (tmp_path / "figures/swept_test_elbo.png").is_file()


def test_a_size_adds_to_overrides_and_sets_the_rest():
    (first, *_) = plan_of({"swept": SWEPT}, "full")["swept"].jobs
    assert first.seed == 7
    assert first.overrides == ("trainer.max_epochs=100", "model.z_dim=2", "seed=7")


def test_damaged_runs_are_told(tmp_path):
    job = Job("tiny/a/seed-1", 1, ("seed=1",))
    place = tmp_path / job.name
    place.mkdir(parents=True)
    assert ran(job, tmp_path).state == "not run"
    (place / "status.json").write_text("{")
    assert ran(job, tmp_path).state == "failed"
