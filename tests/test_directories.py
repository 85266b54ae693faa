"""A run never writes into another's folder."""

import fcntl
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from svae.directories import JOBS, OwnDirectory, lock, locked, release
from svae.status import Status, write_status


@pytest.fixture(autouse=True)
def released():
    yield
    release()


def config_of(directory: Path, named: bool, kind: str = "run"):
    overrides = [f"hydra.{kind}.dir={directory}"] if named else []
    node = {kind: {"dir": str(directory)}, "overrides": {"hydra": overrides, "task": []}}
    return OmegaConf.create({"hydra": node, "output_dir": "${hydra:runtime.output_dir}"})


def with_output_dir(config, directory):
    config.output_dir = directory
    config.hydra.overrides.task.append(f"output_dir={directory}")
    return config


def claim(directory: Path, named: bool = False, resumes: bool = False, kind: str = "run") -> Path:
    config = config_of(directory, named, kind)
    owner = OwnDirectory(resumes)
    start = owner.on_run_start if kind == "run" else owner.on_multirun_start
    start(config)
    return Path(config.hydra[kind].dir)


def test_runs_that_start_in_the_same_microsecond_get_folders_of_their_own(tmp_path):
    stamp = tmp_path / "train" / "2026-11-21_10-00-00-000000"
    with ThreadPoolExecutor(16) as pool:
        claimed = list(pool.map(lambda _: claim(stamp), range(32)))
    assert len(set(claimed)) == 32
    assert stamp in claimed
    assert all(path.is_dir() for path in claimed)


def test_sweeps_as_well(tmp_path):
    names = []
    for _ in range(2):
        config = config_of(tmp_path / "stamp", named=False, kind="sweep")
        OwnDirectory().on_multirun_start(config)
        names.append(config.hydra.sweep.dir)
    assert names == [str(tmp_path / "stamp"), str(tmp_path / "stamp-1")]


def test_a_sweep_s_jobs_are_told_its_folder(tmp_path):
    """Their configs are composed again, with the time in it that was asked for."""
    for expected in ([], ["hydra.sweep.dir='{}'"]):
        config = config_of(tmp_path / "it's", named=False, kind="sweep")
        OwnDirectory().on_multirun_start(config)
        folder = str(tmp_path / "it\\'s-1")
        assert config.hydra.overrides.hydra == [text.format(folder) for text in expected]


def test_a_named_folder_that_holds_something_is_left_as_it_is(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"is not empty \(it holds metrics\.json\)"):
        claim(tmp_path, named=True)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_output_dir_names_the_folder_of_a_run(tmp_path):
    stamp, named = tmp_path / "2026-11-21", tmp_path / "mine"
    config = config_of(stamp, named=False)
    config.hydra.overrides.task.append("callbacks.x.folder=${output_dir}/x")
    config = with_output_dir(config, str(named))
    OwnDirectory().on_run_start(config)
    assert config.hydra.run.dir == str(named)
    assert named.is_dir()
    assert not stamp.exists()
    # Hydra's folder, made absolute; not what was typed.
    raw = OmegaConf.to_container(config, resolve=False)
    assert raw["output_dir"] == "${hydra:runtime.output_dir}"
    release()
    (named / "metrics.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"is not empty \(it holds metrics\.json\)"):
        OwnDirectory().on_run_start(with_output_dir(config_of(stamp, named=False), str(named)))


@pytest.mark.parametrize(
    ("kind", "named", "chosen", "message"),
    [
        ("sweep", False, "mine", "output_dir: expected none in a sweep"),
        ("run", True, "mine", "output_dir: expected that of hydra.run.dir"),
        ("run", False, 3, "output_dir: expected a folder, got 3"),
        ("run", False, None, "output_dir: expected a folder, got None"),
    ],
)
def test_output_dir_that_names_no_folder_of_a_run(tmp_path, kind, named, chosen, message):
    config = with_output_dir(config_of(tmp_path / "stamp", named, kind), chosen)
    owner = OwnDirectory()
    with pytest.raises(SystemExit, match=message):
        (owner.on_run_start if kind == "run" else owner.on_multirun_start)(config)
    assert not list(tmp_path.iterdir())


def test_a_named_folder_is_taken_again_after_a_start_that_failed(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "train.log").write_text("z_dim: expected int")
    assert claim(tmp_path, named=True) == tmp_path


def test_a_named_folder_that_another_process_uses(tmp_path):
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        with pytest.raises(SystemExit, match="in use by another process"):
            claim(tmp_path, named=True)
    finally:
        os.close(other)
    assert claim(tmp_path, named=True) == tmp_path


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_that_cannot_be_made(named, tmp_path, monkeypatch):
    def read_only(self, *args, **kwargs):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(SystemExit, match="cannot be made: Read-only file system"):
        claim(tmp_path / "run", named)


@pytest.mark.parametrize("state", ["running", "interrupted", "failed", "finished"])
def test_a_run_with_a_status_can_go_on_in_its_folder(state, tmp_path):
    (tmp_path / "config.yaml").touch()
    write_status(tmp_path, Status(state))
    assert claim(tmp_path, named=True, resumes=True) == tmp_path
    release()
    with pytest.raises(SystemExit, match="is not empty"):  # by evaluate, for one
        claim(tmp_path, named=True)


def test_a_status_that_is_none_is_told(tmp_path):
    (tmp_path / "status.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"status\.json: expected the status of a run"):
        claim(tmp_path, named=True, resumes=True)


def test_a_sweep_can_go_on_in_its_folder(tmp_path):
    (tmp_path / JOBS).mkdir()
    (tmp_path / "multirun.yaml").touch()
    for name in ("seed-1", "seed-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
        write_status(tmp_path / name, Status("finished"))
    assert claim(tmp_path, named=True, resumes=True, kind="sweep") == tmp_path
    release()
    with pytest.raises(SystemExit, match="is not empty"):
        claim(tmp_path, named=True, kind="sweep")
    (tmp_path / "seed-2" / "status.json").unlink()
    with pytest.raises(SystemExit, match="is not empty"):
        claim(tmp_path, named=True, resumes=True, kind="sweep")


def test_a_new_folder_is_its_own_as_well(tmp_path):
    """Whoever names it, to go on with it, has to wait."""
    folder = claim(tmp_path / "stamp")
    write_status(folder, Status("running"))
    with pytest.raises(SystemExit, match="is in use by another process"):
        claim(folder, named=True, resumes=True)


def test_a_locked_folder_is_waited_for(tmp_path, caplog):
    caplog.set_level("INFO")
    order = []

    def hold(name: str) -> None:
        with locked(tmp_path):
            order.append(f"{name} begins")
            time.sleep(0.2)
            order.append(f"{name} ends")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(hold, "ab"))
    names = [line[0] for line in order]
    assert names in (["a", "a", "b", "b"], ["b", "b", "a", "a"])
    assert "waiting for its end" in caplog.text
    assert lock(tmp_path)
