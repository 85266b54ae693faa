"""Sweeps: the names of their jobs, jobs that fail alone, and starting them again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from tests.helpers import run_command

import svae.train
from svae import multirun
from svae.command import command
from svae.directories import OwnDirectory, _make_new, lock, release
from svae.errors import UserError
from svae.multirun import OneGPUEach, fixed, folder_name, line_to_go_on
from svae.paths import conf_dir
from svae.status import Status, read_status, write_status

TINY = [
    "dataset.train_copies=1",
    "dataset.eval_copies=1",
    "dataset.batch_size=400",
    "model.pixels_per_image=20",
    "model.encoder.hidden=8",
    "model.generator.hidden=8",
    "evaluation.iwae_samples=0",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
    "~callbacks.figures",
]


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Run a sweep of some function in the place of a training; returns the status it ends with."""
    monkeypatch.chdir(tmp_path)

    def run(task, *overrides: str) -> int:
        try:
            run_command(command("train")(task), "-m", "hydra.sweep.dir=sweep", *overrides)
        except SystemExit as error:
            return error.code
        return 0

    return run


def jobs() -> set[str]:
    return {path.name for path in Path("sweep").iterdir() if (path / ".hydra").is_dir()}


def finishes(cfg) -> float:
    """What a training does at its end, and if it is started again."""
    status = read_status(cfg.output_dir)
    if status is None or not status.ended:
        status = Status("finished", "", float(cfg.seed))
        write_status(cfg.output_dir, status)
    return status.objective


# ---- names


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"model.z_dim": "2", "prior": "uniform", "seed": "1"}, "z_dim-2_prior-uniform_seed-1"),
        ({"prior.theta.std_deg": "22.5"}, "std_deg-22.5"),
        ({"optimizer.lr": "1e-05", "model.beta": "-1"}, "lr-1e-05_beta--1"),
        ({"experiment": "table2_mnist_u_p4_z2"}, "experiment-table2_mnist_u_p4_z2"),
        ({"model/encoder": "cnn"}, "encoder-cnn"),
        (
            {"model.encoder.hidden": "8", "model.generator.hidden": "16"},
            "encoder.hidden-8_generator.hidden-16",
        ),
        ({"prior": "a", "model.prior": "b"}, "prior-a_model.prior-b"),
        ({}, "job"),
    ],
)
def test_a_folder_s_name_says_what_is_swept(values, name):
    assert folder_name(values) == name


def test_what_a_name_cannot_say_is_in_a_hash():
    names = [folder_name({"dataset.path": path}) for path in ("a/b", "a:b", "a b", "a-b")]
    assert names[-1] == "path-a-b"
    assert all(name.startswith("path-a-b_") for name in names[:-1])
    assert len(set(names)) == 4
    long = [folder_name({"dataset.path": "x" * 200 + end}) for end in "ab"]
    assert [len(name) for name in long] == [100, 100]
    assert len(set(long)) == 2


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (
            ["model.z_dim=2,3", "prior=gaussian,uniform", "seed=1", "+trainer.x={a:1,b:[2,3]}"],
            {f"z_dim-{z}_prior-{p}" for z in (2, 3) for p in ("gaussian", "uniform")},
        ),
        (["prior.theta.std_deg=22.5,45,180"], {f"std_deg-{s}" for s in ("22.5", "45", "180")}),
        (["seed=range(1,4)"], {"seed-1", "seed-2", "seed-3"}),
        (["prior=glob(*a*,exclude=t*)"], {"prior-gaussian"}),
        (["seed=7"], {"seed-7"}),
        (["search=own"], {"seed-1", "seed-2"}),
        (["seed=1,2", "hydra.sweep.subdir=mine-${seed}"], {"mine-1", "mine-2"}),
        (["~callbacks.figures", "seed=1,2"], {"seed-1", "seed-2"}),
    ],
)
def test_jobs_are_named_by_what_is_swept(sweep, overrides, names):
    own = {"hydra": {"sweeper": {"params": {"seed": "1,2", "model.z_dim": "3"}}}}
    Path("own/search").mkdir(parents=True)
    Path("own/search/own.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(own)}")
    assert sweep(finishes, *overrides, f"hydra.searchpath=[{Path('own').absolute()}]") == 0
    assert jobs() == names


def test_jobs_lie_in_the_folder_that_their_sweep_has_claimed(tmp_path, monkeypatch):
    """Also where another sweep has taken its name in the same moment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(OwnDirectory, "_open_named", lambda self, path, kind: _make_new(path))
    for _ in range(2):
        run_command(command("train")(finishes), "-m", "seed=1,2", 'hydra.sweep.dir="it\'s"')
    for name in ("it's", "it's-1"):
        assert (tmp_path / name / "seed-2" / "status.json").is_file()
    assert not (tmp_path / "it's-1-1").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-m", "seed=1,2"], "-m seed=1,2 hydra.sweep.dir=x"),
        (["seed=1,2", "prior=uniform", "-m"], "seed=1,2 hydra.sweep.dir=x prior=uniform -m"),
        (["--config-dir", "own", "-m"], "--config-dir own -m hydra.sweep.dir=x"),
        (
            ["-m", "hydra.sweep.dir=y", "a.b='1 2','3'"],
            "-m 'a.b='\"'\"'1 2'\"'\"','\"'\"'3'\"'\"'",
        ),
    ],
)
def test_the_line_to_go_on_can_be_typed(arguments, expected):
    """Hydra does not take overrides on both sides of an option."""
    line = line_to_go_on(Path("x"), arguments)
    assert expected in line
    assert line.count("hydra.sweep.dir=") == 1


# ---- jobs that fail


def fails(cfg) -> float:
    """Each kind of failure, by seed."""
    if cfg.seed == 2:
        raise UserError("no such thing")
    if cfg.seed == 3:
        raise ZeroDivisionError("two\nlines")
    if cfg.seed == 4:
        sys.exit("enough")
    if cfg.seed == 5:
        write_status(cfg.output_dir, Status("failed", "not finite"))
        raise UserError("not finite")
    return finishes(cfg)


def test_the_others_go_on_and_the_end_tells(sweep, capfd):
    assert sweep(fails, "seed=1,2,3,4,5,6") == 1
    printed = capfd.readouterr().out
    assert "sweep: 6 jobs (4 failed, 2 finished)" in printed
    messages = [
        "no such thing",
        "ZeroDivisionError: two; lines",
        "the job ended itself, with status enough",
        "not finite",
    ]
    for seed, message in enumerate(messages, start=2):
        folder = Path(f"sweep/seed-{seed}")
        assert f"failed: {folder.absolute()}: {message}\n" in printed
        assert read_status(folder) == Status("failed", message)
    assert "to go on: " in printed
    assert "-m seed=1,2,3,4,5,6 hydra.sweep.dir=sweep\n" in printed
    assert printed.count("Traceback") == 1  # of what is nobody's mistake
    assert read_status("sweep/seed-6").state == "finished"


def test_a_sweep_of_nothing_is_a_mistake(sweep, capfd):
    assert "no job" in sweep(finishes, "experiment=glob(nosuch*)")


def test_an_interruption_between_two_jobs_is_not_lost(sweep, monkeypatch):
    """What a signal raises while objects are being deleted, Python ignores."""

    class Interrupts:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)

    def leaves(cfg):
        if cfg.seed == 1:
            circle = Interrupts()
            circle.itself = circle
        return finishes(cfg)

    # Of what a shell starts in the background, it may be ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert sweep(leaves, "seed=1,2") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert jobs() == {"seed-1"}


def test_all_batches_of_a_sweep_are_done(sweep):
    assert sweep(fails, "seed=2,1,6", "hydra.sweeper.max_batch_size=1") == 1
    assert read_status("sweep/seed-6").state == "finished"


def test_another_run_s_result_is_not_written_into(sweep):
    """Two jobs with one folder, and a folder with files of nobody knows whom."""

    def writes(cfg):
        Path(cfg.output_dir, "metrics.json").write_text(str(cfg.seed))

    assert sweep(writes, "seed=1,2", "hydra.sweep.subdir=same") == 1
    assert Path("sweep/same/metrics.json").read_text() == "1"


@pytest.mark.parametrize("how", [KeyboardInterrupt(), SystemExit(130), SystemExit(143)])
def test_an_interruption_ends_the_sweep(sweep, capfd, how):
    def interrupted(cfg):
        if cfg.seed == 2:
            raise how
        return finishes(cfg)

    assert sweep(interrupted, "seed=1,2,3") == 130
    printed = capfd.readouterr().out
    assert "sweep: 2 jobs (1 finished, 1 interrupted)" in printed
    assert f"interrupted: {Path('sweep/seed-2').absolute()}\n" in printed
    assert "to go on: " in printed
    assert jobs() == {"seed-1", "seed-2"}
    assert lock("sweep")
    release()


def test_a_mistake_in_one_job_s_config_is_told_before_the_first(sweep):
    ran = []
    told = sweep(ran.append, "model=spatial_vae,spatial_vea")
    assert "spatial_vea" in str(told)
    assert ran == []


def test_what_is_swept_of_other_commands_fails_alone_as_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def evaluates(cfg):
        if cfg.run == "a":
            raise UserError("no")
        Path(cfg.output_dir, "metrics.json").write_text("{}")

    with pytest.raises(SystemExit) as stopped:
        run_command(command("evaluate")(evaluates), "-m", "run=a,b", "hydra.sweep.dir=sweep")
    assert stopped.value.code == 1
    assert Path("sweep/run-b/metrics.json").is_file()
    with pytest.raises(SystemExit, match="is not empty"):  # it would write over its results
        run_command(command("evaluate")(evaluates), "-m", "run=a,b", "hydra.sweep.dir=sweep")


# ---- started again


def test_started_again_and_extended(sweep, capfd):
    assert sweep(fails, "seed=1,2,6") == 1
    before = {p: p.read_bytes() for p in Path("sweep/seed-1/.hydra").iterdir()}
    capfd.readouterr()
    assert sweep(finishes, "seed=1,2,3,6", "test=false") == 0
    assert "sweep: 4 jobs (2 finished, 2 skipped)" in capfd.readouterr().out
    assert jobs() == {f"seed-{seed}" for seed in (1, 2, 3, 6)}
    assert {p: p.read_bytes() for p in Path("sweep/seed-1/.hydra").iterdir()} == before
    assert "test=false" in Path("sweep/seed-2/.hydra/overrides.yaml").read_text().lower()


def test_jobs_of_an_earlier_start_do_not_count(sweep, capfd):
    assert sweep(fails, "seed=1,2") == 1
    assert sweep(fails, "seed=1,6") == 0
    assert "sweep: 2 jobs (1 finished, 1 skipped)" in capfd.readouterr().out


def test_a_killed_job_is_told_from_one_that_runs(tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    (tmp_path / ".jobs").mkdir()
    content = {"start": "now", "folder": str(folder), "state": "running", "message": ""}
    (tmp_path / ".jobs/job.json").write_text(json.dumps(content))
    sweep = multirun.Sweep("now", tmp_path, OmegaConf.create())
    assert lock(folder)
    assert [one.state for one in sweep.outcomes()] == ["running"]
    release()
    assert [one.state for one in sweep.outcomes()] == ["killed"]
    release()


def test_two_cannot_do_the_same_sweep_at_once(sweep):
    sweep(finishes, "seed=1,2")
    assert lock("sweep")
    assert "is in use by another process" in sweep(finishes, "seed=1,2")
    release()


def metrics(folder: Path) -> dict[str, float]:
    values = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in values.items() if "second" not in name}


@pytest.mark.slow
def test_a_sweep_that_was_killed_ends_as_one_that_was_not(tmp_path):
    """By SIGKILL, in the second epoch of the second job of three."""
    (tmp_path / "killing.py").write_text(
        "import os, signal\n"
        "from pytorch_lightning.callbacks import Callback\n"
        "class Kill(Callback):\n"
        "    def on_train_epoch_end(self, trainer, pl_module):\n"
        "        now = pl_module.seed, trainer.current_epoch\n"
        "        if os.environ.get('KILL') and now == (2, 1):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths, "SVAE_TRUSTED_TARGETS": "killing"}
    environment |= {"KILL": "1", "OMP_NUM_THREADS": "1"}
    kill = "+callbacks.kill={_target_: killing.Kill}"
    line = ["-m", "seed=1,2,3", f"hydra.sweep.dir={tmp_path / 'killed'}", kill, *TINY]
    done = subprocess.run(
        [sys.executable, "-m", "svae.train", *line],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    states = [read_status(tmp_path / f"killed/seed-{seed}") for seed in (1, 2, 3)]
    assert [one and one.state for one in states] == ["finished", "running", None]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        patch.setenv("SVAE_TRUSTED_TARGETS", "killing")
        run_command(svae.train.main, *line)
        line[2] = f"hydra.sweep.dir={tmp_path / 'whole'}"
        run_command(svae.train.main, *line)
    for seed in (1, 2, 3):
        killed, whole = (tmp_path / name / f"seed-{seed}" for name in ("killed", "whole"))
        assert metrics(killed) == metrics(whole)
        assert read_status(killed) == read_status(whole)
    log = (tmp_path / "killed/seed-1/train.log").read_text()
    assert "test/elbo" in log  # of the first time
    assert "already finished" in log
    assert "going on with" in (tmp_path / "killed/seed-2/train.log").read_text()


# ---- launchers and sweepers


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_of_several_processes(launcher, tmp_path):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    n_jobs = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    words = ["-m", "model.z_dim=-1,1", f"hydra/launcher={launcher}", *n_jobs, *TINY]
    done = subprocess.run(
        [sys.executable, "-m", "svae.train", *words, f"hydra.sweep.dir={tmp_path / 'sweep'}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1, done.stderr
    assert "2 jobs (1 failed, 1 finished)" in done.stdout
    message = "dims: expected a whole number of at least 0, got -1 (in model.prior.z)"
    assert f"failed: {tmp_path}/sweep/z_dim--1: {message}\n" in done.stdout
    assert (tmp_path / "sweep/z_dim-1/metrics.json").is_file()


@pytest.mark.parametrize(
    ("choice", "extra"),
    [("search=optuna", "optuna"), ("hydra/launcher=slurm", "sweep"), ("prior=optuna", None)],
)
def test_what_is_not_installed_is_named(sweep, monkeypatch, choice, extra):
    Plugins.instance()  # finds them
    stored = ConfigStore.instance().repo
    for group in ("launcher", "sweeper"):
        known = {
            name: node
            for name, node in stored["hydra"][group].items()
            if name in ("basic.yaml", "sampler")
        }
        monkeypatch.setitem(stored["hydra"], group, known)
    told = sweep(finishes, choice)
    assert ("pip install 'svae[" in told) == (extra is not None)
    assert extra is None or told.endswith(f"pip install 'svae[{extra}]'")


@pytest.fixture
def search(sweep):
    pytest.importorskip("optuna")

    def run(task, *overrides: str) -> int:
        return sweep(task, "search=optuna", "hydra.sweeper.n_trials=6", *overrides)

    return run


def rates(cfg) -> float:
    """The larger the learning rate the better, with failures."""
    lr = cfg.optimizer.lr
    if lr < 0.001:
        raise ZeroDivisionError("small")
    if lr > 0.006:
        return float("nan")
    write_status(cfg.output_dir, Status("finished", "", lr))
    return lr


def test_a_search_goes_on_after_trials_that_failed(search, capfd):
    assert search(rates) == 1
    printed = capfd.readouterr().out
    found = yaml.safe_load(Path("sweep/optimization_results.yaml").read_text())
    states = {p.stem: json.loads(p.read_text())["state"] for p in Path("sweep/.jobs").iterdir()}
    rate = {name: float(name.split("_")[0].removeprefix("lr-")) for name in states}
    good = {name for name, lr in rate.items() if 0.001 <= lr <= 0.006}
    assert 0 < len(good) < 6
    assert found["best_value"] == max(rate[name] for name in good)
    assert {name for name, state in states.items() if state == "finished"} == good
    assert f"sweep: 6 jobs ({6 - len(good)} failed, {len(good)} finished)" in printed
    assert all(name.startswith("lr-0.00") and "_z_dim-" in name for name in states)


def test_a_search_that_is_started_again_repeats_its_trials(search, capfd):
    """With the same seed, and what they gave, so that no database is needed."""
    assert search(finishes, "hydra.sweeper.n_trials=3") == 0
    first = jobs()
    assert search(finishes, "hydra.sweeper.n_trials=5") == 0
    assert "5 jobs (2 finished, 3 skipped)" in capfd.readouterr().out
    assert first < jobs()


def test_a_search_without_any_result_is_told_in_a_line(search, capfd):
    def never(cfg):
        raise UserError("never")

    assert search(never, "hydra.sweeper.n_trials=2") == 1
    printed = capfd.readouterr()
    assert "2 jobs (2 failed)" in printed.out
    assert "No trials are completed yet" in printed.out
    assert "Traceback" not in printed.out + printed.err


def test_each_process_of_joblib_has_a_gpu(tmp_path, monkeypatch):
    """Four GPUs, two of them visible; one is taken by another process."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    monkeypatch.setattr(multirun, "_gpu", [])
    name = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
    hydra = {"launcher": {"_target_": name}, "sweep": {"dir": str(tmp_path)}}
    config = OmegaConf.create({"hydra": hydra})
    (tmp_path / ".gpus/0").mkdir(parents=True)
    assert lock(tmp_path / ".gpus/0")
    callback = OneGPUEach()
    callback.on_multirun_start(config)
    for _ in range(2):  # it stays the same for the next job of this process
        callback.on_job_start(config)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    release()


@pytest.mark.parametrize(
    ("visible", "launcher"), [("1,3", "BasicLauncher"), ("2", "JoblibLauncher")]
)
def test_else_a_job_sees_all_gpus(tmp_path, monkeypatch, visible, launcher):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(multirun, "_gpu", [])
    hydra = {"launcher": {"_target_": f"x.{launcher}"}, "sweep": {"dir": str(tmp_path)}}
    config = OmegaConf.create({"hydra": hydra})
    callback = OneGPUEach()
    callback.on_multirun_start(config)
    callback.on_job_start(config)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_slurm_jobs_are_put_back_into_the_queue(monkeypatch):
    """Two things could ask for that, Lightning at SIGUSR1 and submitit at SIGUSR2."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("train", ["hydra/launcher=slurm"], return_hydra_config=True)
    launcher = config.hydra.launcher
    assert launcher.max_num_timeout > 0
    assert launcher.signal_delay_s > 0
    assert launcher._target_.endswith(".SlurmLauncher")
    from submitit.core.job_environment import JobEnvironment

    assert JobEnvironment._usr_sig() == signal.SIGUSR2


def test_a_job_that_submitit_puts_back_is_no_failure(sweep, monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    ends = []

    def preempted(cfg):
        ends.append(SimpleNamespace(seed=cfg.seed))
        sys.exit(-1)

    assert sweep(preempted, "seed=1,2") == 130
    assert len(ends) == 1  # in SLURM, each job is a process of its own
    assert read_status("sweep/seed-1") == Status("interrupted", "put back into the queue")


def test_processes_of_a_job_are_not_submitit_s(sweep):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    options = ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"]
    assert "tasks_per_node: expected 1" in sweep(finishes, "seed=1,2", *options)


def test_what_all_jobs_share_may_name_what_is_not_there_yet():
    """The folder of a job, in a setting: it is of each job and no value of the sweep's."""
    typed = ["callbacks.figures.folder=${output_dir}/pictures", "seed=1,2"]
    hydra = {"sweeper": {"params": None}, "overrides": {"task": typed}}
    config = OmegaConf.create({"output_dir": "${hydra:runtime.output_dir}", "hydra": hydra})
    assert fixed(config) == ["callbacks.figures.folder"]
