"""What a user gets who installs `svae`: the wheel, its configs, and their own configs on top."""

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from svae.paths import conf_dir, data_dir

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unzipped wheel of this checkout."""
    if find_spec("build") is None or find_spec("hatchling") is None:
        pytest.skip("build and hatchling are in the extra `dev`")

    made, unzipped = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("unzipped")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", made, ROOT]
    subprocess.run(command, check=True, capture_output=True)

    (archive,) = made.glob("svae-*.whl")
    with zipfile.ZipFile(archive) as contents:
        contents.extractall(unzipped)
    return unzipped


def run_wheel(wheel: Path, where: Path, *arguments: str) -> str:
    """What `python <arguments>` prints in the folder `where` when svae is the wheel's."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=where,
        env=os.environ | {"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_every_config_and_both_commands(wheel: Path):
    expected = {path.relative_to(ROOT) for path in (ROOT / "conf").rglob("*.yaml")}
    found = {path.relative_to(wheel / "svae") for path in (wheel / "svae/conf").rglob("*.yaml")}
    assert expected
    assert found == expected

    (metadata,) = wheel.glob("svae-*.dist-info")
    assert (metadata / "licenses/LICENSE").is_file()
    commands = (metadata / "entry_points.txt").read_text()
    assert "svae-train = svae.train:main" in commands
    assert "svae-evaluate = svae.evaluate:main" in commands


def test_wheel_composes_from_any_folder(wheel: Path, tmp_path: Path):
    config = yaml.safe_load(run_wheel(wheel, tmp_path, "-m", "svae.train", "--cfg", "job"))

    assert isinstance(config["seed"], int)
    assert {"dataset", "model", "trainer"} <= config.keys()
    assert not list(tmp_path.iterdir()), "asking for the config must not make a run directory"


def test_wheel_takes_a_users_own_experiment(wheel: Path, tmp_path: Path):
    own = tmp_path / "configs" / "experiment" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nseed: 20261121\n")

    options = ["--config-dir", "configs", "experiment=mine", "--cfg", "all"]
    config = yaml.safe_load(run_wheel(wheel, tmp_path, "-m", "svae.train", *options))

    assert config["seed"] == 20261121
    assert "model" in config
    sources = {source["path"] for source in config["hydra"]["runtime"]["config_sources"]}
    assert {str(wheel / "svae/conf"), str(tmp_path / "configs")} <= sources


def test_conf_dir_of_a_checkout():
    assert Path(conf_dir()) == ROOT / "conf"


def test_data_dir_is_the_one_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SVAE_DATA_DIR", "~/images")
    assert data_dir() == tmp_path / "images"


@pytest.mark.parametrize("unset", [None, ""])
def test_data_dir_is_else_in_the_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unset: str | None
):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SVAE_DATA_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
        if unset is not None:
            monkeypatch.setenv(name, unset)
    assert data_dir() == tmp_path / ".cache" / "svae"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_dir() == tmp_path / "cache" / "svae"
