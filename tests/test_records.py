"""Records of finished runs: what a machine without the run directories knows of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import initialize_config_dir

from svae.paths import conf_dir, data_dir
from svae.results import _to_do
from svae.results.page import write_page
from svae.results.plan import Job, plan_of
from svae.results.ran import Ran, difference
from svae.results.records import read_records, with_records, write_records

TRAINING = Job("tiny/good/seed-1", 1, ("dataset=rot_digits", "seed=1"))
OTHER = Job("tiny/good/seed-2", 2, ("dataset=rot_digits", "seed=2"))
TESTED = Job("again/once/seed-1", 1, ("model.pose_candidates=1",), TRAINING)
TWICE = Job("again/twice/seed-1", 1, ("model.pose_candidates=2",), TRAINING)
NEW = {"model.second_look": "null"}  # without it, a run would be one of before it was there
PICTURES = "$SVAE_DATA_DIR/galaxies/all.npz"


@pytest.fixture(autouse=True)
def configs():
    """The settings of the plan are composed."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        yield


def finished() -> dict[Job, Ran]:
    """What became of all runs on the machine that has their directories."""
    settings = {"model.z_dim": 2, "optimizer.lr": 4e-3, "model.likelihood": "null"} | NEW
    one = Ran("finished", "", {"test/elbo": -1 / 3, "train/total_seconds": 7.0}, "a machine", "d")
    return {
        TRAINING: replace(one, settings=settings | {"seed": 1}),
        TESTED: Ran("finished", metrics={"test/elbo": -0.1}, date="e"),
        TWICE: Ran("finished", metrics={"test/elbo": -0.2}, date="e"),
        OTHER: replace(one, metrics={"test/elbo": float("nan")}, settings=settings | {"seed": 2}),
    }


def nothing() -> dict[Job, Ran]:
    return dict.fromkeys(finished(), Ran("not run"))


def test_records_say_of_runs_what_their_directories_did(tmp_path):
    found = finished()
    found[OTHER] = replace(found[OTHER], metrics={"test/elbo": float("-inf")})
    written = write_records(tmp_path, found)
    read = read_records(tmp_path, ["tiny", "again", "nobody"])
    assert read == written
    recorded = {job: replace(one, recorded=True) for job, one in found.items()}
    assert with_records(nothing(), read) == recorded


def test_what_all_trainings_have_in_common_stands_once(tmp_path):
    write_records(tmp_path, finished())
    text = (tmp_path / "tiny.json").read_text()
    content = json.loads(text)
    assert content["settings"]["model.z_dim"] == 2
    assert [run["settings"] for run in content["runs"].values()] == [{"seed": 1}, {"seed": 2}]
    assert text == json.dumps(content, indent=1, sort_keys=True) + "\n"
    evaluation = json.loads((tmp_path / "again.json").read_text())["runs"][TESTED.name]
    assert evaluation["of"] == TRAINING.name
    assert "settings" not in evaluation


def test_a_file_is_touched_only_where_something_changes(tmp_path):
    write_records(tmp_path, finished())
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_records(tmp_path, finished())
    write_records(tmp_path, nothing())
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_what_is_not_in_the_plan_or_not_here_is_kept(tmp_path):
    write_records(tmp_path, finished())
    renewed = replace(finished()[OTHER], metrics={"test/elbo": -9.0}, date="f")
    known = write_records(tmp_path, {OTHER: renewed})
    assert set(known) == {TRAINING.name, OTHER.name}
    read = read_records(tmp_path, ["tiny", "again"])
    assert len(read) == 4
    assert read[OTHER.name].metrics == {"test/elbo": -9.0}
    assert read[TRAINING.name].metrics["test/elbo"] == -1 / 3


def test_the_folder_of_the_data_sets_may_be_another(tmp_path, monkeypatch):
    monkeypatch.setenv("SVAE_DATA_DIR", "/mnt/data")
    job = Job("tiny/a/seed-1", 1, ("dataset=images", f"dataset.path={PICTURES}", "seed=1"))
    settings = {"dataset.path": "/mnt/data/galaxies/all.npz", "dataset.mask": "/mnt/data2/x"} | NEW
    write_records(tmp_path, {job: Ran("finished", date="d", settings=settings)})
    text = (tmp_path / "tiny.json").read_text()
    assert f'"{PICTURES}"' in text
    assert '"/mnt/data2/x"' in text
    monkeypatch.setenv("SVAE_DATA_DIR", "/home/me/svae")
    read = read_records(tmp_path, ["tiny"])
    known = with_records({job: Ran("left out", "it needs something")}, read)[job]
    assert known.state == "finished"
    assert known.settings["dataset.path"] == f"{data_dir()}/galaxies/all.npz"
    other = replace(job, overrides=(*job.overrides[:1], "dataset.path=$SVAE_DATA_DIR/b", "seed=1"))
    known = with_records({other: Ran("left out", "it needs something")}, read)[other]
    assert known.state == "left out"
    assert known.message == (
        f"it needs something; its record has dataset.path='{PICTURES}', not '$SVAE_DATA_DIR/b'"
    )


def test_a_record_counts_for_a_plan_that_asks_for_the_same(tmp_path):
    write_records(tmp_path, finished())
    read = read_records(tmp_path, ["tiny"])
    changed = replace(TRAINING, overrides=(*TRAINING.overrides, "model.z_dim=3"))
    wrong = replace(TRAINING, overrides=("model.zdim=3",))
    known = with_records(dict.fromkeys((changed, wrong), Ran("not run")), read)
    assert known[changed] == Ran("not run", "its record has model.z_dim=2, not 3")
    assert "Could not override 'model.zdim'" in known[wrong].message


@pytest.mark.parametrize("state", ["unfinished", "failed", "other"])
def test_what_is_begun_is_to_be_finished_and_the_page_has_its_record(tmp_path, state):
    write_records(tmp_path, finished())
    here = nothing() | {TRAINING: Ran(state, "why")}
    records = read_records(tmp_path, ["tiny", "again"])
    known = with_records(here, records, to_run=True)
    assert known[TRAINING] == Ran(state, "why")
    assert known[TESTED].state == "not run"
    assert known[OTHER].recorded
    shown = with_records(here, records)
    broken_off = state != "other"
    assert shown[TRAINING].recorded == shown[TESTED].recorded == broken_off


def test_what_came_before_a_setting_is_not_what_its_default_is_now():
    """But on a lattice, where nothing starts so, `start_deg` tells nothing."""
    default = Job("tiny/good/seed-1", 1, ("dataset=rot_digits", "seed=1"))
    assert difference(default, {"seed": 1}).startswith("model.second_look=")
    overrides = "dataset=rot_digits", "prior=uniform", "model.second_look=false", "seed=1"
    job = Job("tiny/good/seed-1", 1, overrides)
    assert difference(job, {"seed": 1}).startswith("prior.theta.start_deg='null', not 17")
    assert not difference(job, {"seed": 1, "prior.theta.start_deg": 17.0})
    overrides = *overrides, "model=target_vae"
    lattice = Job("tiny/good/seed-1", 1, overrides)
    assert difference(lattice, {"seed": 1}).startswith("model.posterior.shift_offsets='false'")
    lattice = Job("tiny/good/seed-1", 1, (*overrides, "model.posterior.shift_offsets=false"))
    assert not difference(lattice, {"seed": 1})
    # The test of two looks had no third one then.
    two_looks = "dataset=rot_digits", "model=target_vae", "seed=1"
    looked_twice = Job("tiny/good/seed-1", 1, two_looks)
    seen = {"seed": 1, "model.second_look": "null", "model.posterior.shift_offsets": "true"}
    assert difference(looked_twice, seen).startswith("model.third_look='false', not")
    assert not difference(looked_twice, seen | {"model.third_look": "null"})


def test_a_record_that_is_replaced_by_one_of_other_settings_is_told(tmp_path, caplog):
    found = finished()
    write_records(tmp_path, found)
    write_records(tmp_path, found)
    assert "replaced by one" not in caplog.text
    other = replace(found[TRAINING], settings={**found[TRAINING].settings, "model.z_dim": 99})
    write_records(tmp_path, found | {TRAINING: other})
    assert "tiny/good/seed-1 is replaced by one with model.z_dim=99, not" in caplog.text


def test_an_evaluation_is_of_the_training_that_is_known(tmp_path):
    found = finished()
    write_records(tmp_path, found)
    read = read_records(tmp_path, ["tiny", "again"])
    copied = nothing() | {TRAINING: found[TRAINING]}  # its directory is here, and nothing else
    assert with_records(copied, read)[TESTED].recorded
    slower = {"test/elbo": -1 / 3, "train/total_seconds": 8.0}
    again = nothing() | {TRAINING: replace(found[TRAINING], metrics=slower)}
    known = with_records(again, read)[TESTED]
    assert known.state == "not run"
    assert "of another training" in known.message


def test_an_evaluation_takes_a_training_that_is_only_recorded_with_it(tmp_path):
    """And with that the other evaluations, whose records are then of another training."""
    write_records(tmp_path, finished())
    (tmp_path / "again.json").unlink()
    write_records(tmp_path, {job: one for job, one in finished().items() if job != TESTED})
    read = read_records(tmp_path, ["tiny", "again"])
    assert _to_do(with_records(nothing(), read)) == [TRAINING, TESTED, TWICE]
    copied = nothing() | {TRAINING: finished()[TRAINING]}
    assert _to_do(with_records(copied, read)) == [TESTED]


def test_a_section_tells_what_it_has_from_elsewhere(tmp_path):
    node = {
        "columns": [{"metric": "test/elbo", "name": "ELBO"}],
        "seeds": [1, 2],
        "rows": {"good": {"label": "good", "overrides": ["dataset=rot_digits"]}},
    }
    plan = plan_of({"tiny": node}, "small")
    jobs = list(plan["tiny"].jobs)
    found = {job: finished()[TRAINING] for job in jobs}
    found[jobs[0]] = replace(found[jobs[0]], source="a page, four digits")
    write_records(tmp_path / "records", found)
    known = with_records(
        dict.fromkeys(jobs, Ran("not run")), read_records(tmp_path / "records", plan)
    )
    write_page(
        *(tmp_path / "R.md", plan, known | {jobs[1]: found[jobs[1]]}),
        size="small",
        folder=Path("runs"),
        figures=tmp_path,
        records=Path("docs/results"),
    )
    text = (tmp_path / "R.md").read_text()
    assert "whose records are in `docs/results`." in text
    gone = "Of 1 run the directory is gone: recovered from a page, four digits."
    assert f"Ran on a machine (d). {gone}" in text
    write_records(tmp_path / "records", {jobs[0]: finished()[TRAINING]})
    assert not read_records(tmp_path / "records", ["tiny"])[jobs[0].name].source


DAMAGE = {
    "[]": "indices must be integers",
    '{"settings": {}}': "'runs'",
    '{"settings": {"a": null}, "runs": {}}': "a: a text or a number was expected",
    '{"settings": {}, "runs": {"tiny/a": {"date": "d"}}}': "'metrics'",
    '{"settings": {}, "runs": {"tiny/a": {"metrics": {}}}}': "date",
    '{"settings": {}, "runs": {"tiny/a": {"metrics": {"a": "1"}, "date": ""}}}': "a: a number",
    '{"settings": {}, "runs": {"tiny/a": {"metrics": {}, "date": 1}}}': "a text was expected",
    '{"settings": {}, "runs": {"tiny/a": {"who": ""}}}': "who: no such key",
    '{"settings": {}, "runs": {"other/a": {"metrics": {}, "date": ""}}}': "of another result",
}


@pytest.mark.parametrize("text", DAMAGE)
def test_damage_is_told_with_the_file(tmp_path, text):
    path = tmp_path / "tiny.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected records of runs") as told:
        read_records(tmp_path, ["tiny"])
    assert str(told.value).startswith(f"{path}: ")
    assert DAMAGE[text] in str(told.value)
    with pytest.raises(ValueError, match="expected records of runs"):
        write_records(tmp_path, finished())
    assert path.read_text() == text


def test_the_records_of_this_repository_can_be_read():
    folders = list(Path(__file__).parents[1].glob("docs/results/*"))
    assert folders
    for folder in folders:
        assert read_records(folder, [path.stem for path in folder.glob("*.json")])
