"""Paths as a shell has them, on the command line of Hydra."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from tests.helpers import run_command, write_pictures

import svae.encode
import svae.train
from svae.run import read_config
from svae.typed import with_paths

NAMES = [
    "Zürich/Zellen",
    "cells&co",
    "run#2",
    "My cells (1)",
    "it's",
    "a=b",
    "50%",
    "día\\1",
    "plain",
]


@pytest.mark.parametrize("name", NAMES)
def test_hydra_reads_a_path_as_it_was_typed(name):
    (argument,) = with_paths([f"+dataset.path=/data/{name}"])
    assert OverridesParser.create().parse_override(argument).value() == f"/data/{name}"


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann bee")
    assert with_paths(["run=~/a", "hydra.run.dir=~/b (1)"]) == [
        "run=/home/ann bee/a",
        "hydra.run.dir='/home/ann bee/b (1)'",
    ]


def test_a_comma_is_a_sweep_unless_there_is_such_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert with_paths(["dataset.path=day1,2"]) == ["dataset.path=day1,2"]
    (tmp_path / "day1,2").mkdir()
    assert with_paths(["dataset.path=day1,2"]) == ["dataset.path='day1,2'"]


@pytest.mark.parametrize(
    "argument",
    [
        *("-m", "--cfg", "job", "dataset=images", "model.z_dim=1,2", "~callbacks.figures"),
        *("dataset.path=", "run=[a,b]", "run=[a,(]", "run='a b'", "output_dir=${x:1}/b"),
        "model.generator.activation=~tanh",
    ],
)
def test_all_else_is_left_to_hydra(argument):
    assert with_paths([argument]) == [argument]


def test_a_folder_of_any_name_is_trained_on_and_encoded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_pictures(tmp_path / "Zürich" / "My cells (1)")
    small = ["model.encoder.hidden=8", "model.generator.hidden=8", "~callbacks.figures"]
    quick = ["debug=quick", "trainer=cpu", "trainer.enable_progress_bar=false"]
    data = ["dataset=images", "dataset.path=~/Zürich/My cells (1)"]
    run = tmp_path / "läufe" / "run #1"
    run_command(svae.train.main, *data, *small, *quick, f"hydra.run.dir={run}")
    assert read_config(run).dataset.path == str(tmp_path / "Zürich" / "My cells (1)")
    encoded = tmp_path / "läufe" / "run #1, encoded"
    run_command(svae.encode.main, f"run={run}", f"hydra.run.dir={encoded}", "progress_bar=false")
    assert (encoded / "latents.csv").is_file()
