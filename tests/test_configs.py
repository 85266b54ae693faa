"""Every file in `conf/` composes, and every choice that runs here runs a batch."""

import re
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tests.helpers import write_mnist

import svae.evaluate
import svae.train
from svae.paths import conf_dir

CONF = Path(conf_dir())
QUICK = [
    "debug=quick",
    "trainer.enable_progress_bar=false",
    "dataset.batch_size=10",
    "dataset.eval_batch_size=20",
    "dataset.train_copies=1",
    "dataset.eval_copies=1",
]


@pytest.fixture(autouse=True)
def no_account(monkeypatch):
    """Whoever runs the tests may have one."""
    monkeypatch.setenv("WANDB_MODE", "offline")


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def compose_train(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


GROUPS = [
    *("dataset", "model", "prior", "optimizer", "scheduler", "trainer", "callbacks"),
    *("logger", "experiment", "debug", "model/encoder", "model/generator", "model/likelihood"),
    *("model/posterior", "model/posterior/sampling", "search", "hydra/launcher"),
]
EVERY = [f"{group}={name}" for group in GROUPS for name in choices(group)]
#: What another choice has to come with.
WITH = {
    "model/posterior=attention": ["model/encoder=group_conv"],
    "model/encoder=group_conv": ["model/posterior=attention"],
} | {c: ["model=target_vae"] for c in EVERY if c.startswith("model/posterior/sampling=")}


def test_no_group_was_forgotten():
    groups = {str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")} - {"."}
    assert groups == {*GROUPS, "results"}  # those of another command: test_results has them


@pytest.mark.parametrize("choice", EVERY)
def test_it_composes(choice):
    config = compose_train(choice, *WITH.get(choice, []))
    assert "_target_" in config.model


# MNIST's own files may not be here, several GPUs are not, a pixel MLP has no pose, and a search or
# a launcher needs a sweep.
NOT_ALONE = ("dataset=", "trainer=", "experiment=", "search=", "hydra/launcher=")
RUNS = [c for c in EVERY if not c.startswith(NOT_ALONE)]
RUNS = [c for c in RUNS if c != "model/generator=pixel_mlp"]


HERE = ["experiment=demo", "dataset=rot_digits", "trainer=auto", "trainer=cpu"]


#: Choices that no figure depends on.
NOT_DRAWN = ("optimizer=", "scheduler=", "trainer=")


def small_networks(*overrides: str) -> list[str]:
    """What makes the networks of a config narrow, where they have a width."""
    model = compose_train(*overrides).model
    parts = ("encoder", "generator")
    return [f"model.{part}.hidden=32" for part in parts if "hidden" in model[part]]


@pytest.mark.parametrize("choice", [*RUNS, *HERE])
def test_it_runs_a_batch(choice, monkeypatch, tmp_path):
    chosen = [choice, *WITH.get(choice, [])]
    more = small_networks(*chosen)
    if choice.startswith(NOT_DRAWN):
        more.append("~callbacks.figures")
    argv = ["svae", f"hydra.run.dir={tmp_path}", *chosen, *more, *QUICK]
    monkeypatch.setattr(sys, "argv", argv)
    svae.train.main()
    assert (tmp_path / "metrics.json").is_file()


#: What makes small ones of data sets that have other numbers than copies; mnist_u is mnist_n with
#: one setting more.
SMALL = {
    name: ["dataset.val_images=10", "dataset.image_size=28"]
    for name in choices("dataset")
    if "mnist" in name and name != "mnist_n"
}
SMALL["hinge"] = [f"dataset.{split}_images=20" for split in ("train", "val", "test")]
SMALL["sprites"] = SMALL["hinge"] + ["dataset.image_size=16", "dataset.shift_max_px=4"]


@pytest.mark.parametrize("name", SMALL)
def test_a_data_set_runs_a_batch_and_evaluates(name, monkeypatch, tmp_path):
    """MNIST from files of its form."""
    write_mnist(tmp_path / "data")
    monkeypatch.setenv("SVAE_DATA_DIR", str(tmp_path / "data"))
    options = [f"dataset={name}", *SMALL[name], "trainer.enable_progress_bar=false"]
    options += small_networks()
    argv = ["svae", f"hydra.run.dir={tmp_path / 'run'}", "debug=quick", *options]
    monkeypatch.setattr(sys, "argv", argv)
    svae.train.main()
    argv = ["svae", f"hydra.run.dir={tmp_path / 'test'}", f"run={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", [*argv, "trainer.enable_progress_bar=false"])
    svae.evaluate.main()
    assert (tmp_path / "test" / "metrics.json").is_file()


PAPER = ["paper_mnist", "paper_rot_mnist", "paper_rot_trans_mnist"]
#: One of each network; the others differ in a number.
TARGET = ["paper_target_vae", "target_vae_laptop", "table2_mnist_n_p4_z2", "table2_mnist_u_vae"]
TARGET += ["paper_target_vae_mnist_n", "table2_mnist_u_spatial_vae"]


@pytest.mark.parametrize("name", TARGET)
def test_target_vaes_experiments_run_a_batch(name, monkeypatch, tmp_path):
    """On small digits in the place of MNIST on 50x50 pixels, with few filters."""
    digits = ["dataset=rot_digits", "dataset.image_size=28", *QUICK]
    small = ["model.encoder.channels=4", "model.encoder.padding=4", "model.encoder.stride=2"]
    small += ["model.pose_candidates=2"]
    argv = ["svae", f"hydra.run.dir={tmp_path}", f"experiment={name}", *digits]
    attends = "channels" in compose_train(f"experiment={name}").model.encoder
    monkeypatch.setattr(sys, "argv", argv + small * attends)
    svae.train.main()
    assert (tmp_path / "metrics.json").is_file()


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_training_runs_a_batch(name, monkeypatch, tmp_path):
    """With the paper's numbers, on digits in the place of MNIST."""
    digits = ["dataset=rot_digits", "dataset.image_size=28"]
    argv = ["svae", f"hydra.run.dir={tmp_path}", f"experiment={name}", *digits, *QUICK]
    monkeypatch.setattr(sys, "argv", argv)
    svae.train.main()
    config = OmegaConf.load(tmp_path / "config.yaml")
    assert config.optimizer.lr == 1e-4


def test_experiments_have_the_papers_numbers():
    """An experiment's values win over those of the groups that it chooses."""
    plain, rotated, translated = (
        compose_train(f"experiment=paper_{name}")
        for name in ("mnist", "rot_mnist", "rot_trans_mnist")
    )
    for config in (plain, rotated, translated):
        assert config.optimizer.lr == 1e-4
        assert config.dataset.batch_size == 100
        assert config.model.pixels_per_image is None
        assert config.model.generator.activation == config.model.encoder.activation == "tanh"
        assert config.prior.shift.std_px == 1.4
        assert config.scheduler._target_ == "svae.schedules.constant"
    assert [c.prior.theta.std_deg for c in (plain, rotated, translated)] == [22.5, 45, 45]
    assert [c.dataset.theta_std_deg for c in (plain, rotated, translated)] == [0, 45, 45]
    assert [c.dataset.shift_std_px for c in (plain, rotated, translated)] == [0, 1.4, 14]


def test_the_baselines_differ_in_their_parts_alone():
    """One class; the paper's baselines are other parts of it."""
    targets = {compose_train(f"model={name}").model._target_ for name in choices("model")}
    assert targets == {"svae.model.SpatialVAE"}
    assert compose_train("model=beta_vae").model.beta > 1


def test_every_target_exists():
    for path in CONF.rglob("*.yaml"):
        for name in re.findall(r"_target_: (\S+)", path.read_text()):
            module, _, attribute = name.rpartition(".")
            __import__(module)
            assert hasattr(sys.modules[module], attribute), f"{path}: {name}"
