"""A run never writes into another's folder."""

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from svae.directories import OwnDirectory, release


@pytest.fixture(autouse=True)
def released(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    yield
    release()


def config_of(directory: Path, named: bool, kind: str = "run"):
    overrides = [f"hydra.{kind}.dir={directory}"] if named else []
    node = {kind: {"dir": str(directory)}, "overrides": {"hydra": overrides}}
    return OmegaConf.create({"hydra": node})


def claim(directory: Path, named: bool = False) -> Path:
    config = config_of(directory, named)
    OwnDirectory().on_run_start(config)
    return Path(config.hydra.run.dir)


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


def test_a_named_folder_that_holds_something_is_left_as_it_is(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"is not empty \(it holds metrics\.json\)"):
        claim(tmp_path, named=True)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


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


def test_a_process_of_a_distributed_training_shares_the_folder(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert claim(tmp_path, named=True) == tmp_path
