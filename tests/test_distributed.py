"""Several processes on the processor: they do the work of one, and end together."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning.callbacks import Callback
from tests.helpers import run_command
from torch.testing import assert_close

import svae.evaluate
import svae.train
from svae.distributed import Line, Place, free_port, leaving_nothing, one_at_a_time
from svae.paths import conf_dir
from svae.signals import Signals
from svae.status import read_status

# What a command does not show either.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*sync_dist=True.* when logging on epoch level"),
    pytest.mark.filterwarnings("ignore:torch.distributed.nn.functional.all_gather"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # the compiler's
    pytest.mark.filterwarnings("ignore:Grad strides do not match bucket view strides"),
]

SMALL = [
    "dataset.train_copies=1",
    "dataset.eval_copies=1",
    "dataset.batch_size=300",
    "dataset.eval_batch_size=101",
    "model.pixels_per_image=null",
    "model.generator.hidden=8",
    "evaluation.iwae_samples=2",
    "trainer.precision=32-true",
    "trainer.max_epochs=1",
    "trainer.enable_progress_bar=false",
    "~callbacks.figures",
]
TARGET_VAE = [
    "model=target_vae",
    "model.group_order=4",
    "model.encoder.channels=4",
    "model.encoder.kernel_size=12",
    "model.encoder.padding=2",
    "model.encoder.stride=2",
    "dataset.image_size=16",
    "dataset.digit_size=12",
]


class Recorder(Callback):
    """Keeps the gradients of every step before they are clipped, and the weights after it."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []
        self.weights: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        trained = [p for p in pl_module.parameters() if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        self.gradients.append(torch.cat([grad.flatten() for grad in grads]))

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        flat = [p.detach().flatten() for p in pl_module.parameters()]
        self.weights.append(torch.cat(flat).clone())


def config(folder: Path, *overrides: str) -> Any:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose("train", overrides=[*overrides, f"output_dir={folder}"])


def in_processes(count: int, work: Callable[[], Any], folder: Path) -> list[Any]:
    """The results of some work that forked processes do as a group."""
    port = free_port()

    def one(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        try:
            with leaving_nothing():
                torch.save(work(), folder / f"{rank}.pt")
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("fork")  # what is imported need not be again
    forked = [context.Process(target=one, args=(rank,)) for rank in range(count)]
    for process in forked:
        process.start()
    for process in forked:
        process.join(60)
    assert [process.exitcode for process in forked] == [0] * count
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def trained(folder: Path, processes: int, *overrides: str, test: bool = False) -> list[dict]:
    """What each process recorded of a training, and of its test."""
    trainer = "ddp_cpu" if processes > 1 else "cpu"

    def work() -> dict:
        cfg = config(folder, *SMALL, *overrides, f"trainer={trainer}")
        job = svae.train.prepare(cfg, svae.train.completed(cfg), Signals())
        recorder = Recorder()
        job.trainer.callbacks.append(recorder)
        job.trainer.fit(job.module, job.data)
        found = {"gradients": recorder.gradients, "weights": recorder.weights}
        if test:
            job.trainer.test(job.module, job.data, verbose=False)
            assert job.module.inferred is not None
            found["index"] = job.module.inferred.index
        numbers = job.trainer.callback_metrics
        return found | {"metrics": {k: v for k, v in numbers.items() if "second" not in k}}

    return in_processes(processes, work, folder)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """The distance of two vectors in lengths of the second."""
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.max_epochs=1", "model.refinement_steps=2"],
        ["model.pixels_per_image=40", "max_gradient_spike=1.01"],
        ["trainer.accumulate_grad_batches=2"],
        ["model/likelihood=gaussian_per_pixel"],
        ["model.second_look=true"],
        pytest.param(
            ["compile=true"],
            marks=pytest.mark.skipif(not shutil.which("g++"), reason="it needs a compiler"),
        ),
        ["optimizer=muon", "model.generator.fourier_features=64"],
        TARGET_VAE,
    ],
    ids=lambda overrides: overrides[0],
)
def test_two_processes_do_what_one_does(overrides, tmp_path):
    """Batches of 252 and 251 images to train with, of 90 to validate and to test with."""
    # The defaults amplify rounding, Muon's own for one: to bfloat16, where that is fast.
    exact = "optimizer=muon" not in overrides
    if exact:
        simple = ["optimizer=adam", "model.generator.fourier_features=0"]
        overrides = [*simple, "model.second_look=false", *overrides]
    (one,) = trained(tmp_path / "one", 1, *overrides, test=True)
    first, second = trained(tmp_path / "two", 2, *overrides, test=True)
    assert len(one["gradients"]) == len(first["gradients"]) >= 3
    assert relative(first["gradients"][0], one["gradients"][0]) < 1e-6
    for name in ("gradients", "weights"):
        for mine, others, alone in zip(first[name], second[name], one[name], strict=True):
            assert torch.equal(mine, others), name
            # Adam moves a parameter whose gradient is rounding alone as far as any other.
            limit = 1e-5 if name == "gradients" else 2e-3
            # A second look sees images in poses that differ by that.
            limit *= 5 if "model.second_look=true" in overrides else 1
            assert relative(mine, alone) < (limit if exact else 5e-2)
    for two in (first, second):
        assert torch.equal(two["index"], one["index"])
        assert len(two["index"].unique()) == len(two["index"]) > 100
        if exact:
            assert_close(two["metrics"], one["metrics"], rtol=1e-4, atol=1e-4)
        else:
            assert_close(
                two["metrics"]["test/elbo"], one["metrics"]["test/elbo"], rtol=1e-2, atol=0
            )


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=spatial_vae_fixed_pose"],
        ["model=vanilla_vae"],
        ["model=beta_vae"],
        ["model.infer_theta=false"],
        ["model.infer_shift=false"],
        ["model.z_dim=0"],
        ["model.z_delay_epochs=1"],
        ["model.pose_candidates=2"],
        ["model.augment_rotation=true", "model.augment_mirror=true"],
        ["prior=uniform"],
        ["prior=von_mises"],
        ["model/encoder=cnn"],
        ["trainer.precision=bf16-mixed"],
        [*TARGET_VAE, "model=target_vae_no_offsets"],
        [*TARGET_VAE, "model=target_vae_translation"],
        [*TARGET_VAE, "model.z_delay_epochs=1"],
        [*TARGET_VAE, "model/posterior/sampling=soft"],
        [*TARGET_VAE, "model.pose_candidates=2"],
    ],
    ids=lambda overrides: overrides[-1],
)
def test_no_model_leaves_a_process_waiting(overrides, tmp_path):
    """A parameter without a gradient would, in the second step."""
    quick = [
        "trainer.max_epochs=2",
        "trainer.limit_train_batches=2",
        "trainer.limit_val_batches=1",
    ]
    first, second = trained(tmp_path, 2, *quick, *overrides)
    assert len(first["weights"]) == 4
    assert all(map(torch.equal, first["weights"], second["weights"]))


QUICK = [
    *SMALL,
    "trainer=ddp_cpu",
    "trainer.max_epochs=2",
    "model.encoder.hidden=8",
    "evaluation.iwae_samples=0",
]
#: What a group of processes needs in the environment.
GROUP = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
DIE = "+callbacks.die={_target_: tests.helpers.Die, rank: %d, epoch: 1}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory for commands that make objects of the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SVAE_TRUSTED_TARGETS", "tests")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    root = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{root / 'src'}{os.pathsep}{root}")
    monkeypatch.syspath_prepend(str(root))
    return tmp_path


def start(*words: str, **variables: str) -> subprocess.Popen:
    command = [sys.executable, *words]
    # A session of its own, so that a signal to it is not for the tests.
    return subprocess.Popen(command, env=os.environ | variables, start_new_session=True)


def state(run: Path) -> str:
    status = read_status(run)
    assert status is not None
    return status.state


def gone(folder: Path, seconds: float = 20.0) -> bool:
    """Whether the processes that have left their number are gone soon."""
    numbers = {path.read_text() for path in folder.glob("pid*")} - {str(os.getpid())}
    assert numbers
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stats = [Path("/proc", number, "stat") for number in numbers]
        # Somebody else may have to take note of the end of an orphan.
        if all(not s.exists() or s.read_text().split()[2] == "Z" for s in stats):
            return True
        time.sleep(0.1)
    return False


def files(folder: Path) -> set[str]:
    """What lies in a folder, without numbers of processes."""
    return {path.name for path in folder.iterdir() if not path.name.startswith("pid")}


def test_a_process_that_dies_ends_its_job_of_a_sweep_and_no_other(folder, monkeypatch):
    for name in ("PROCID", "LOCALID", "NODEID"):  # in a single task of SLURM
        monkeypatch.setenv(f"SLURM_{name}", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    before = {name: os.environ.get(name) for name in GROUP}, torch.get_num_threads()
    sweep = folder / "sweep"
    with pytest.raises(SystemExit) as ended:
        run_command(
            svae.train.main, "-m", *QUICK, DIE % 7, "callbacks.die.rank=1,7",
            "test=false", f"hydra.sweep.dir={sweep}",
        )  # fmt: skip
    assert ended.value.code == 1
    assert files(folder) == {"sweep"}
    assert {name for name in files(sweep) if "rank" in name} == {"rank-1", "rank-7"}
    assert (state(sweep / "rank-1"), state(sweep / "rank-7")) == ("failed", "finished")
    status = read_status(sweep / "rank-1")
    assert status is not None
    assert status.message.startswith("process 1 (of 0 to 1) was killed by SIGKILL; what was saved")
    assert {"train.log"} == {p.name for p in (sweep / "rank-7").glob("*.log")}
    # Nothing is left for the next job, or for whoever called.
    assert gone(folder)
    assert ({name: os.environ.get(name) for name in GROUP}, torch.get_num_threads()) == before
    assert not torch.distributed.is_initialized()

    # One process goes on where two were.
    alone = [o for o in QUICK if o != "trainer=ddp_cpu"]
    run_command(svae.train.main, *alone, f"hydra.run.dir={sweep / 'rank-1'}", "trainer=cpu")
    broken, whole = (
        json.loads((sweep / name / "metrics.json").read_text()) for name in ("rank-1", "rank-7")
    )
    assert broken["val/elbo"] == pytest.approx(whole["val/elbo"], rel=1e-5)
    assert state(sweep / "rank-1") == "finished"


def test_all_processes_of_a_trial_are_told_the_same_settings(folder):
    pytest.importorskip("optuna")
    run_command(
        svae.train.main, *QUICK, "search=optuna", "hydra.sweeper.n_trials=2",
        "trainer.max_epochs=1", "trainer.limit_train_batches=2",
        "+callbacks.told={_target_: tests.helpers.Told}", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    first, second = (Path(f"told{rank}").read_text().splitlines() for rank in (0, 1))
    assert first == second
    assert len(set(first)) == 2
    trials = [path for path in Path("sweep").iterdir() if (path / "config.yaml").exists()]
    assert {state(trial) for trial in trials} == {"finished"}
    dims = {line.split()[0] for line in first}
    assert all(any(f"z_dim-{z}_" in trial.name for z in dims) for trial in trials)


def test_a_mistake_is_told_once_and_before_others_are_started(folder, capfd):
    with pytest.raises(SystemExit) as ended:
        run_command(svae.train.main, *QUICK, "trainer.num_nodes=4")
    assert ended.value.code == 2
    shown = "".join(capfd.readouterr())
    assert shown.count("4 machines need a program that starts the processes on each") == 1


FOLLOWER = """
import threading, time
from svae import distributed

hear = distributed.Line.hear

def hear_late(line, number):
    message = hear(line, number)
    if threading.current_thread() is not threading.main_thread():
        time.sleep(1)
    return message

distributed.Line.hear = hear_late
assert distributed.follow(lambda cfg: None) == 0
assert threading.active_count() == 1
"""


def test_no_thread_is_left_in_torch_when_python_shuts_down(folder):
    first = Line(Place(0, 2, "127.0.0.1", 0))
    process = start("-c", FOLLOWER, SVAE_PROCESS=f"1/2/{first.port}")
    first.tell({"environment": {}, "log": "", "config": {}})
    first.dismiss()
    assert process.wait(60) == 0


@pytest.mark.slow
def test_torchrun(folder):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    process = start(*command, "svae.train", "-m", *QUICK, "seed=1,2")
    assert process.wait(200) == 0
    (sweep,) = (folder / "outputs/multirun").iterdir()
    for seed in (1, 2):
        run = sweep / f"seed-{seed}"
        assert state(run) == "finished"
        assert {"train.log"} == {path.name for path in run.glob("*.log")}
        assert (run / ".hydra/config.yaml").is_file()
    assert files(folder) == {"outputs"}
    assert files(folder / "outputs") == {"multirun"}


def slurm(*overrides: str) -> list[subprocess.Popen]:
    """Two tasks of SLURM."""
    shared = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "svae",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [
        start("-m", "svae.train", *overrides, SLURM_PROCID=str(r), SLURM_LOCALID=str(r), **shared)
        for r in range(2)
    ]


@pytest.mark.slow
def test_srun(folder):
    assert [process.wait(200) for process in slurm(*QUICK)] == [0, 0]
    (run,) = (folder / "outputs/train").iterdir()
    assert state(run) == "finished"
    assert {"train.log"} == {path.name for path in run.glob("*.log")}


@pytest.mark.slow
def test_srun_with_too_few_tasks(folder):
    assert [process.wait(200) for process in slurm(*QUICK, "trainer.devices=3")] == [2, 0]
    (run,) = (folder / "outputs/train").iterdir()
    assert (
        "expected a product of 2, the processes that srun started, got 3 x 1"
        in (run / "train.log").read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_all_processes_between_two_steps(folder, name, status):
    run = folder / "run"
    process = start(
        "-m", "svae.train", *QUICK, DIE % 7, "trainer.max_epochs=1000", f"hydra.run.dir={run}"
    )
    while not (run / "checkpoints/last.ckpt").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.Signals[name])
    assert process.wait(60) == status
    assert state(run) == "interrupted"
    assert gone(folder)
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] > 0


@pytest.mark.slow
def test_without_the_first_process_the_others_end(folder):
    process = start("-m", "svae.train", *QUICK, DIE % 0, f"hydra.run.dir={folder / 'run'}")
    assert process.wait(200) == -signal.SIGKILL
    assert gone(folder)
    torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)


@pytest.mark.slow
def test_evaluation_by_two_processes_gives_the_metrics_of_one(folder):
    run_command(
        svae.train.main, *SMALL, "model.encoder.hidden=8", "trainer=cpu", "hydra.run.dir=run"
    )
    options = ["run=run", "trainer=ddp_cpu", "hydra.run.dir=evaluated"]
    run_command(svae.evaluate.main, *options)
    expected = json.loads(Path("run/metrics.json").read_text())
    found = json.loads(Path("evaluated/metrics.json").read_text())
    assert found == pytest.approx({k: expected[k] for k in found}, rel=1e-5)
    assert {"evaluate.log"} == {path.name for path in Path("evaluated").glob("*.log")}


def test_one_at_a_time(tmp_path):
    """Of processes that fetch the same data, the others find it there."""
    done = tmp_path / "data" / "done"

    def fetch() -> bool:
        with one_at_a_time(done.parent):
            if found := done.exists():
                return found
            time.sleep(0.5)
            done.touch()
            return False

    assert sorted(in_processes(3, fetch, tmp_path / "results")) == [False, True, True]
