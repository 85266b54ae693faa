"""Several processes that train one model: how they are started, told what to do, and ended.

The first process alone reads the command line, takes a folder, fetches the data and finds what is
wrong with the config. The others are told the finished config over a key-value store of torch and
do the same from there. So every process has the same values, whoever chose them (a sweeper for
one), there is one run directory, and a mistake is told once.

It is all the same who starts the others: the first process, `torchrun`, or `srun`.
"""

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from svae.errors import UserError, one_line
from svae.status import Status, read_status, write_status

try:
    import fcntl
except ImportError:  # Windows; there, nobody waits for another process
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "ProcessLost",
    "dismiss",
    "environment",
    "follow",
    "following",
    "lead",
    "one_at_a_time",
    "processes",
]

log = logging.getLogger(__name__)

#: Tells a process who it is, if this program started it: rank, number of processes, and port.
_STARTED = "SVAE_PROCESS"

#: What a training changes for the process that runs it.
_CHANGED = (
    *("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("OMP_NUM_THREADS", "TORCHELASTIC_USE_AGENT_STORE"),
)

#: Seconds within which the processes have to come together.
ASSEMBLY = 600.0

#: Seconds for a process to end by itself after another one did.
GRACE = 10.0

#: The status of a process that ended because another one did.
DESERTED = 3


class ProcessLost(UserError):
    """Another process died, and this one cannot go on without it."""

    exit_status = 1


class Place(NamedTuple):
    """Which of several processes this one is, and where the first one is to be found."""

    rank: int
    world_size: int
    address: str
    port: int
    launcher: str = ""

    @property
    def hosts(self) -> bool:
        """Whether the store is this process's own; torchrun has one already."""
        agent = self.launcher == "torchrun" and "TORCHELASTIC_USE_AGENT_STORE" in os.environ
        return self.rank == 0 and not agent


def place() -> Place | None:
    """Which process this is; None for one that was started alone.

    Raises:
        RuntimeError: SLURM was told a number of tasks and not that of each machine.
    """
    if _STARTED in os.environ:
        rank, world_size, port = map(int, os.environ[_STARTED].split("/"))
        return Place(rank, world_size, "127.0.0.1", port)
    found: TorchElasticEnvironment | SLURMEnvironment
    if TorchElasticEnvironment.detect():
        found, launcher = TorchElasticEnvironment(), "torchrun"
    # Asked first, because `detect` warns on every machine that has a command `srun`.
    elif "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect():
        found, launcher = SLURMEnvironment(), "srun"
    else:
        return None
    rank, world_size = found.global_rank(), found.world_size()
    if world_size == 1:
        return None
    return Place(rank, world_size, found.main_address, found.main_port, launcher)


def environment() -> LightningEnvironment | SLURMEnvironment | TorchElasticEnvironment:
    """What tells a trainer which of several processes it runs in; one of its plugins.

    In a single task of SLURM, Lightning by itself would have none but that task train.
    """
    here = place()
    if here is None or not here.launcher:
        return LightningEnvironment()
    if here.launcher == "torchrun":
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False)  # the signals are met between steps


class Line:
    """What the first process tells the others, one message after the other."""

    def __init__(self, place: Place) -> None:
        self.place = place
        store = dist.TCPStore(
            place.address,
            place.port,
            is_master=place.hosts,
            wait_for_workers=False,
            multi_tenant=True,
            timeout=timedelta(seconds=ASSEMBLY),
        )
        self.port = store.port
        # torchrun may start the processes again, with the store that it had.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = dist.PrefixStore(f"svae/{attempt}", store)
        self.number = 0
        #: Whether the others were told the last message.
        self.dismissed = False
        #: Whether this process, if it is one of them, is in the middle of the work.
        self.at_work = False

    def tell(self, message: Mapping[str, Any] | None) -> None:
        """Give the others the next message: a job, None for no more, empty to leave at once."""
        self.store.set(f"message/{self.number}", json.dumps(message))
        self.number += 1

    def hear(self, number: int) -> dict[str, Any] | None:
        """Wait for a message.

        Raises:
            RuntimeError: The first process is gone.
        """
        while not self.store.check([key := f"message/{number}"]):
            with suppress(dist.DistStoreError):  # nothing for a long time; a lost store is another
                self.store.wait([key], timedelta(hours=1))
        message: dict[str, Any] | None = json.loads(self.store.get(key))
        return message

    def sign(self, what: str) -> None:
        """Tell the first process that this one has come to a point."""
        self.store.set(f"{what}/{self.place.rank}", "")

    def dismiss(self, in_order: bool = True) -> None:
        """Let the others end, and wait until they have read it: the store goes with this one."""
        self.dismissed = True
        deadline = time.monotonic() + (3 * GRACE if in_order else 2.0)
        with suppress(dist.DistError):
            self.tell(None if in_order else {})
            while self.missing("gone") and time.monotonic() < deadline:
                time.sleep(0.05)

    def fail(self, why: str) -> None:
        """Tell the first process why this one cannot go on."""
        self.store.set("failure", f"process {self.place.rank} failed: {why}")

    def failure(self) -> str:
        """Why a process could not go on, if one said so."""
        return self.store.get("failure").decode() if self.store.check(["failure"]) else ""

    def missing(self, what: str) -> list[int]:
        """The processes that have not come to a point."""
        others = range(1, self.place.world_size)
        return [rank for rank in others if not self.store.check([f"{what}/{rank}"])]


#: The line of a process that another process started; it lasts for the whole command.
_line: Line | None = None


def following() -> bool:
    """Whether this process is told what to do, and does not read the command line."""
    here = place()
    return here is not None and here.rank > 0


def lead() -> None:
    """Be found by the others, where another program started them."""
    global _line
    if _line is None and (here := place()) is not None and here.rank == 0:
        _line = Line(here)


def dismiss(in_order: bool = True) -> None:
    """Let the others end; for the first process at the end of its command.

    Arguments:
        in_order: Whether they may finish what they are at.
    """
    if _line is not None and not _line.dismissed:
        _line.dismiss(in_order)


def follow(task: Callable[[DictConfig], Any]) -> int:
    """Do what the first process says until it has nothing more to do.

    Arguments:
        task: What it does with a config.

    Returns:
        The status to end with.
    """
    global _line
    here = place()
    assert here is not None
    # The first process decides what an interruption means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log_to("", here.rank)
    line = _line = Line(here)
    line.sign("here")
    watcher = None
    try:
        while message := line.hear(line.number):
            line.number += 1
            if message["environment"]:
                os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
            os.environ.update(message["environment"])
            log_to(message["log"], here.rank)
            line.at_work = True
            with watching_the_first(here, line.number) as watcher, leaving_nothing():
                try:
                    task(OmegaConf.create(message["config"]))
                except UserError:
                    if line.at_work:
                        raise  # else all processes found it together, and the first one tells it
        if watcher is not None:
            # It heard the same last message. A thread that comes back from torch when Python is
            # already shutting down aborts the whole process.
            watcher.join(GRACE)
        status = 0
    except UserError as error:
        line.fail(str(error))
        status = 2
    except Exception as error:
        if connection_lost(error):
            log.warning("ended because another process did")
            status = DESERTED
        else:
            log.exception("failed")
            line.fail(one_line(error))
            status = 1
    with suppress(dist.DistError):
        line.sign("gone")
    return status


def log_to(file: str, rank: int) -> None:
    """Warnings of a process that is not the first: on the terminal, and in the run's log."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if file:
        handlers.append(logging.FileHandler(file))
    form = f"[%(asctime)s][process {rank}][%(name)s][%(levelname)s] - %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, handlers=handlers, force=True)


@contextmanager
def watching_the_first(here: Place, number: int) -> Iterator[threading.Thread]:
    """End this process, in the middle of whatever it does, soon after the first one left it.

    Yields:
        The thread that watches; it ends when the first process has sent message `number`.
    """
    done = threading.Event()
    line = Line(here)  # one connection waits for one answer

    def watch() -> None:
        try:
            grace = GRACE if line.hear(number) != {} else 0.0
        except dist.DistError:  # it is gone, without a word
            grace = 1.0
        if not done.wait(grace):
            with suppress(dist.DistError):
                line.sign("gone")
            os._exit(DESERTED)

    watcher = threading.Thread(target=watch, daemon=True, name="watching-the-first-process")
    watcher.start()
    try:
        yield watcher
    finally:
        done.set()


@contextmanager
def processes(cfg: DictConfig, trainer: pl.Trainer, command: str) -> Iterator[None]:
    """Around the work of a trainer: the other processes that its strategy needs.

    They are told the config as it is now, do the work of the same command with it, and are gone
    afterwards, as is the group of processes and what it wrote into the environment. Nothing
    happens where the trainer has one process, or starts the others in a way of its own.

    Arguments:
        cfg: The finished config; with `output_dir`.
        trainer: The trainer.
        command: The module of the command, to be run with `python -m`.

    Raises:
        UserError: The processes are not as many as the trainer wants, or one did not come.
        ProcessLost: One died.
    """
    here = place()
    if here is not None and here.rank > 0:
        assert _line is not None
        _line.sign(f"ready{_line.number}")
        trainer.callbacks.insert(0, _Apart())  # type: ignore[attr-defined]
        yield
        _line.at_work = False
        return
    if here is None and not isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        yield
        return
    check_number(trainer, here)
    with leaving_nothing():
        others = _External() if here else _Started(trainer.num_devices, command)
        apart = _Apart()
        trainer.callbacks.insert(0, apart)  # type: ignore[attr-defined]
        try:
            others.begin(cfg)
            yield
        except BaseException as error:
            reason = others.reason(error) if isinstance(error, Exception) else ""
            others.end(in_order=False)
            if reason:
                raise ProcessLost(reason) from error
            raise
        others.end(in_order=not apart.interrupted)


def check_number(trainer: pl.Trainer, here: Place | None) -> None:
    """Raise UserError if a trainer wants other processes than there are."""
    wanted, nodes = trainer.num_devices * trainer.num_nodes, trainer.num_nodes
    if here is None:
        if nodes > 1:
            raise UserError(
                f"trainer.num_nodes: {nodes} machines need a program that starts the processes "
                "on each, torchrun or srun"
            )
        return
    if not isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        raise UserError(
            f"trainer: expected one for {here.world_size} processes, which {here.launcher} "
            "started; write trainer=ddp (or ddp_cpu)"
        )
    if wanted != here.world_size:
        raise UserError(
            f"trainer.devices, trainer.num_nodes: expected a product of {here.world_size}, the "
            f"processes that {here.launcher} started, got {trainer.num_devices} x {nodes}"
        )


class _Others:
    """The other processes, as the first one sees them."""

    line: Line
    #: What helps if processes are missing.
    hint = ""

    def begin(self, cfg: DictConfig) -> None:
        """Have them do the job of a config; come back when they are as far as this process."""
        self.wait_for("here", ASSEMBLY)
        environment = self.meeting()
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        os.environ.update(environment)
        files = [
            h.baseFilename for h in logging.getLogger().handlers if hasattr(h, "baseFilename")
        ]
        self.line.tell(
            {
                "config": OmegaConf.to_container(cfg, resolve=True),
                "environment": environment,
                "log": files[0] if files else "",
            }
        )
        self.wait_for(f"ready{self.line.number}", math.inf)

    def meeting(self) -> dict[str, str]:
        """Where this job's group of processes meets: each job has another place."""
        return {"MASTER_ADDR": self.line.place.address, "MASTER_PORT": str(free_port())}

    def wait_for(self, what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while missing := self.line.missing(what):
            if reason := self.reason():
                raise ProcessLost(reason)
            if time.monotonic() > deadline:
                raise UserError(
                    f"{len(missing)} of {self.line.place.world_size} processes did not come "
                    f"within {seconds:g} s (the first that is missing: {missing[0]}){self.hint}"
                )
            time.sleep(0.05)

    def reason(self, error: BaseException | None = None) -> str:
        """Why the work ended, if that was another process; else nothing."""
        raise NotImplementedError

    def end(self, in_order: bool) -> None:
        """The work is done, or broke off."""
        raise NotImplementedError


class _External(_Others):
    """Processes that another program started: they last for the command."""

    def __init__(self) -> None:
        lead()
        assert _line is not None
        self.line = _line
        if self.line.dismissed:
            raise UserError("the other processes ended with the job before, which broke off")
        if self.line.place.launcher == "srun":
            self.hint = "; write srun in front of python"

    def reason(self, error: BaseException | None = None) -> str:
        if error is not None and not connection_lost(error):
            return ""
        if (failure := self.line.failure()) or error is None:
            return failure
        return f"another process ended; {self.line.place.launcher} says which"

    def end(self, in_order: bool) -> None:
        if not in_order:
            dismiss(in_order)  # who stands in the middle of the work can do no other


class _Started(_Others):
    """Processes that this one starts, for one job."""

    def __init__(self, world_size: int, command: str) -> None:
        self.line = Line(Place(0, world_size, "127.0.0.1", 0))
        self.ended = threading.Event()
        self.children: list[subprocess.Popen[bytes]] = []
        self.command = [sys.executable, "-m", command]

    def meeting(self) -> dict[str, str]:
        shared = super().meeting()
        os.environ |= {"LOCAL_RANK": "0"}
        return shared | {"NODE_RANK": "0", "WORLD_SIZE": str(self.line.place.world_size)}

    def begin(self, cfg: DictConfig) -> None:
        world_size = self.line.place.world_size
        for rank in range(1, world_size):
            environment = os.environ | {
                _STARTED: f"{rank}/{world_size}/{self.line.port}",
                "LOCAL_RANK": str(rank),
                "RANK": str(rank),
                # What can be imported here can be there.
                "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            }
            # That the store is lost is told in one line; torch would add thirty.
            environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
            child = subprocess.Popen(
                self.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the first process alone
            )
            self.children.append(child)
        threading.Thread(target=self.watch, args=(cfg,), daemon=True).start()
        super().begin(cfg)

    def watch(self, cfg: DictConfig) -> None:
        """End this process if it hangs after another one died."""
        while not self.ended.wait(0.2):
            if self.dead() and not self.ended.wait(GRACE):
                log.error("%s", message := self.reason())
                if read_status(cfg.output_dir) is not None:
                    write_status(cfg.output_dir, Status("failed", message))
                self.kill()
                os._exit(1)

    def dead(self) -> list[tuple[int, int]]:
        """The processes that failed, with their status; first those that failed by themselves."""
        codes = [(rank, child.poll()) for rank, child in enumerate(self.children, start=1)]
        failed = [(rank, code) for rank, code in codes if code]
        return sorted(failed, key=lambda one: one[1] == DESERTED)

    def reason(self, error: BaseException | None = None) -> str:
        if error is not None:
            if not connection_lost(error):
                return ""
            # The connection may break before the system tells that a process is gone.
            deadline = time.monotonic() + GRACE
            while not self.dead() and time.monotonic() < deadline:
                time.sleep(0.05)
        if not (dead := self.dead()):
            return ""
        if failure := self.line.failure():
            return failure
        rank, code = dead[0]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "ended"
        return f"process {rank} (of 0 to {self.line.place.world_size - 1}) {how}"

    def end(self, in_order: bool) -> None:
        if in_order:
            self.line.dismiss()
        self.ended.set()
        codes = self.dead()
        self.kill()
        if in_order and codes:
            log.warning("the work was done; %s afterwards", self.reason())

    def kill(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()


class _Apart(pl.Callback):
    """Lets a process leave the others in the middle of the work."""

    def __init__(self) -> None:
        self.on_sigterm = signal.getsignal(signal.SIGTERM)
        #: Whether this process left, and the others know nothing of it.
        self.interrupted = False

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning's own handler waits for the others, who do not know of the signal.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.on_sigterm)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.interrupted = isinstance(exception, KeyboardInterrupt)


def connection_lost(error: BaseException | None) -> bool:
    """Whether an error says that another process is gone."""
    if isinstance(error, dist.DistError):
        return True
    told = one_line(error).lower() if isinstance(error, RuntimeError) else ""
    return "connection" in told and ("gloo" in told or "peer" in told)


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """Undo what a group of processes changes in this one."""
    before = {name: os.environ.get(name) for name in _CHANGED}
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        torch.set_num_threads(threads)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep other processes waiting until this one has done its part.

    Arguments:
        folder: What they share; made if need be. Where it cannot be, or its file system has no
            locks, nobody waits.
    """
    handle = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that prepares data in %s", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
    except (OSError, AttributeError):
        pass
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
