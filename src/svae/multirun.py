"""Sweeps, `-m`: what their jobs are called, how one fails alone, and what is told at the end.

Importing this module gives configs the resolver `${svae.job_folder:}`.
"""

import gc
import hashlib
import json
import logging
import math
import os
import re
import shlex
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, configure_log
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from svae.directories import JOBS, add_override, as_typed, held, lock, locked
from svae.errors import UserError, one_line
from svae.files import write_atomic
from svae.signals import Signals
from svae.status import Status, read_status, write_status

__all__ = ["Jobs", "OneGPUEach", "alone", "folder_name", "in_sweep", "told_at_the_end"]

log = logging.getLogger(__name__)

#: A job's folder has a name no longer than that: file systems take 255 bytes, a terminal less.
LONGEST_NAME = 100

#: What `hydra.sweep.subdir` is unless somebody sets it.
BY_NAME = "${svae.job_folder:}"

JobState = Literal["running", "finished", "skipped", "pruned", "interrupted", "failed", "killed"]

#: There is something left to do in jobs with these.
LEFT = ("running", "interrupted", "failed", "killed")


#: With these, a job ends that was asked to by SIGINT, SIGUSR1 or SIGTERM.
INTERRUPTED = (130, 138, 143)


class Outcome(NamedTuple):
    """What became of a job in one start of a sweep.

    Arguments:
        start: Which start of the sweep.
        folder: The job's folder.
        state: What it says; `skipped` had ended in an earlier start.
        message: Why it failed, in one line.
    """

    start: str
    folder: str
    state: JobState
    message: str = ""


class Sweep(NamedTuple):
    """A sweep that this process started.

    Arguments:
        start: Tells this start of it from others.
        folder: Its folder.
        config: The config that it began with, of which `hydra` is looked at.
    """

    start: str
    folder: Path
    config: DictConfig

    def outcomes(self) -> list[Outcome]:
        """What became of the jobs that were started."""
        files = sorted((self.folder / JOBS).glob("*.json"))
        found = [Outcome(**json.loads(file.read_text())) for file in files]
        return [
            # Whoever still is at it holds its folder.
            one._replace(state="killed") if one.state == "running" and lock(one.folder) else one
            for one in found
            if one.start == self.start
        ]


# The sweep that this process started, and the start that the job belongs to that it does.
_sweep: Sweep | None = None
_start = ""


class Jobs(Callback):
    """Names the folders of a sweep's jobs after what is swept, and keeps account of the jobs."""

    def __init__(self) -> None:
        # Hydra brings this object to the processes of the jobs.
        self.start = ""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _sweep
        if config.hydra.launcher.get("tasks_per_node", 1) != 1:
            sys.exit(
                "svae: hydra.launcher.tasks_per_node: expected 1, because a job starts the "
                f"processes of trainer=ddp itself, got {config.hydra.launcher.tasks_per_node}"
            )
        self.start = uuid.uuid4().hex
        _sweep = Sweep(self.start, Path(config.hydra.sweep.dir), config)
        (_sweep.folder / JOBS).mkdir(parents=True, exist_ok=True)
        raw = OmegaConf.to_container(config.hydra.sweep, resolve=False)
        assert isinstance(raw, dict)
        if raw["subdir"] == BY_NAME and (keys := fixed(config)):
            add_override(config, "hydra.sweep.subdir", f"${{svae.job_folder:{','.join(keys)}}}")

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _start
        _start = self.start

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if self.start:
            # Hydra keeps what each job returned until the last one is done, two configs in each.
            job_return.cfg = job_return.hydra_cfg = None
            # A module and its trainer refer to each other, so that the memory of a job's model,
            # on a GPU too, would be kept until Python looks for such circles on its own. What a
            # signal raises in a `__del__` is ignored: it is noted, and comes afterwards.
            with Signals() as asked:
                gc.collect()
            if asked.received is not None:
                os.kill(os.getpid(), asked.received)


def fixed(config: DictConfig) -> list[str]:
    """The keys that a sweep's overrides set to one value for all jobs."""
    params = (config.hydra.sweeper.get("params") or {}).items()
    given = [*(f"{key}={value}" for key, value in params), *as_typed(config.hydra.overrides.task)]
    try:
        overrides = OverridesParser.create().parse_overrides(given)
    except HydraException:  # the sweeper will tell
        return []
    swept = {o.get_key_element().lstrip("+~"): o.is_sweep_override() for o in overrides}
    return [key for key, sweeps in swept.items() if not sweeps]


def job_folder(*fixed: str) -> str:
    """The name of the folder of the job that runs now.

    Arguments:
        fixed: Keys whose values all jobs of the sweep share.
    """
    words = (text.partition("=") for text in HydraConfig.get().overrides.task)
    values = {key.lstrip("+~"): value for key, _, value in words}
    swept = {key: value for key, value in values.items() if key not in fixed}
    return folder_name(swept or values)


def folder_name(values: Mapping[str, str]) -> str:
    """A name for the folder of a job: `z_dim-2_prior-gaussian_seed-1`.

    It says all of the values, so that it is the same whenever they are. A part of a hash is added
    where a name could not say them exactly.

    Arguments:
        values: Of what is swept, by config key, as overrides have them.
    """
    paths = {key: re.split("[./@]", key) for key in values}
    words = []
    exact = True
    for key, value in values.items():
        others = [path for other, path in paths.items() if other != key]
        lengths = range(1, len(paths[key]) + 1)
        short = (n for n in lengths if all(path[-n:] != paths[key][-n:] for path in others))
        label = ".".join(paths[key][-next(short, 0) :])
        said = re.sub("[^A-Za-z0-9.+_-]+", "-", value)
        exact = exact and said == value
        words.append(f"{label}-{said}")
    name = "_".join(words) or "job"
    if exact and len(name) <= LONGEST_NAME:
        return name
    text = ",".join(f"{key}={value}" for key, value in values.items())
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9]}_{digest}"


OmegaConf.register_new_resolver("svae.job_folder", job_folder, replace=True)


def in_sweep() -> bool:
    """Whether this process does a job of a sweep that is kept account of."""
    return bool(_start)


def alone(task: Callable[[DictConfig], Any], cfg: DictConfig, show_all: bool) -> Any:
    """Do a job of a sweep, so that the others go on whatever becomes of it.

    Arguments:
        task: The job.
        cfg: Its config.
        show_all: Whether a traceback is wanted of a user's mistake.

    Returns:
        What the task returns; NaN where it failed.

    Raises:
        UserError: It failed, and the sweeper chooses the next jobs by what it is told.
        KeyboardInterrupt: It was interrupted, and the sweep with it.
        SystemExit: The same.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    # Two jobs of a search may be the same: the second one finds what the first one did.
    with locked(folder):
        _note(folder, "running")
        try:
            objective = _attempt(task, cfg, folder)
            if _chosen_by_result() and isinstance(objective, float) and math.isnan(objective):
                raise UserError("val/elbo: no epoch gave a number, so the sweeper learns nothing")
            return objective
        except UserError as error:
            message = str(error)
            log.error("%s", message, exc_info=show_all)
        except (KeyboardInterrupt, SystemExit) as error:
            if _is_interruption(error):
                status = read_status(folder)
                done = status is not None and status.ended  # it came after the last step
                _note(folder, "finished" if done else "interrupted")
                if _is_requeued(error) and not done:
                    write_status(folder, Status("interrupted", "put back into the queue"))
                if _is_requeued(error) or _sweep is not None:
                    raise
                return _given_up("interrupted")
            message = f"the job ended itself, with status {getattr(error, 'code', None)}"
            log.error("%s", message)
        except Exception as error:
            message = f"{type(error).__name__}: {one_line(error)}"
            log.exception("the job failed")
        with suppress(ValueError):
            if read_status(folder) is None:
                write_status(folder, Status("failed", message))
        _note(folder, "failed", message)
    return _given_up(message)


def _attempt(task: Callable[[DictConfig], Any], cfg: DictConfig, folder: Path) -> Any:
    try:
        before = read_status(folder)
    except ValueError as error:
        raise UserError(one_line(error)) from error
    if before is None and (names := held(folder)):
        raise UserError(
            f"the output folder {folder} is not empty (it holds {names[0]}), and nothing says "
            "what became of that run"
        )
    objective = task(cfg)
    after = read_status(folder)
    state: JobState = "finished" if after is None or after.state != "pruned" else "pruned"
    _note(folder, "skipped" if before is not None and before.ended else state)
    return objective


def _given_up(message: str) -> float:
    """What a sweeper is told of a job without a result."""
    if _chosen_by_result():
        # Of this class alone, because it has to get through to another process.
        raise UserError(message)
    return math.nan


def _chosen_by_result() -> bool:
    """Whether the sweeper chooses jobs by the results of others; Hydra's own does not."""
    return not HydraConfig.get().sweeper._target_.endswith(".BasicSweeper")


def _is_interruption(error: BaseException) -> bool:
    """Whether a job was ended from outside, and not by some call of `sys.exit`."""
    # Lightning makes SystemExit of KeyboardInterrupt.
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return True
    return getattr(error, "code", None) in INTERRUPTED or _is_requeued(error)


def _is_requeued(error: BaseException) -> bool:
    """Whether submitit ends this process, and has told SLURM to start it again."""
    return "SUBMITIT_EXECUTOR" in os.environ and getattr(error, "code", None) == -1


def _note(folder: Path, state: JobState, message: str = "") -> None:
    """Write down what became of the job."""
    sweep = Path(HydraConfig.get().sweep.dir).absolute()
    name = os.path.relpath(folder, sweep).replace(os.sep, "__")
    content = json.dumps(Outcome(_start, str(folder), state, message)._asdict(), indent=2)
    write_atomic(sweep / JOBS / f"{name}.json", content + "\n")


@contextmanager
def told_at_the_end(show_all: bool) -> Iterator[None]:
    """Around a command: the end of a sweep is told, and an exit status made of it.

    Arguments:
        show_all: Whether a traceback is wanted of what goes wrong outside of the jobs.

    Raises:
        SystemExit: Not all jobs were done: status 130 after an interruption, else 1.
    """
    global _sweep, _start
    _sweep, _start = None, ""
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:
        failure = error
    sweep, _sweep, _start = _sweep, None, ""
    interrupted = isinstance(failure, KeyboardInterrupt | SystemExit)
    outcomes = sweep.outcomes() if sweep else []
    if sweep is None or (failure and not interrupted and not outcomes):
        if failure:
            raise failure
        return
    # The last job's log is not for this.
    configure_log(sweep.config.hydra.hydra_logging, sweep.config.hydra.verbose)
    log.info("%s: %s", sweep.folder, counted(outcomes))
    if not outcomes and not failure:
        sys.exit("svae: the sweep has no job; does a glob(...) of it match nothing?")
    left = [one for one in outcomes if one.state in LEFT]
    for one in left:
        log.info("%s: %s%s", one.state, one.folder, f": {one.message}" if one.message else "")
    if isinstance(failure, HydraException | OmegaConfBaseException | UserError) or show_all:
        if failure:
            raise failure
    elif failure and not interrupted:  # of a launcher or a sweeper; the jobs' own are caught
        log.error("%s: %s", type(failure).__name__, failure)
    if left or failure:
        log.info("to go on: %s", line_to_go_on(sweep.folder, sys.argv[1:]))
        sys.exit(130 if interrupted else 1)


def counted(outcomes: Sequence[Outcome]) -> str:
    """How many jobs there were, and what became of them."""
    count = Counter(one.state for one in outcomes)
    parts = [f"{number} {state}" for state, number in sorted(count.items())]
    return f"{len(outcomes)} job{'s' * (len(outcomes) != 1)} ({', '.join(parts) or 'none begun'})"


def line_to_go_on(folder: Path, arguments: Sequence[str]) -> str:
    """The command line that starts a sweep again in its folder."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", spec.name] if spec else [Path(sys.argv[0]).name]
    kept = [word for word in arguments if not word.lstrip("+").startswith("hydra.sweep.dir=")]
    # Beside another override: Hydra takes none after an option that follows others.
    overrides = (i for i, word in enumerate(kept) if "=" in word and not word.startswith("-"))
    kept.insert(next(overrides, len(kept)) + 1, f"hydra.sweep.dir={folder}")
    return shlex.join([*program, *kept])


class OneGPUEach(Callback):
    """Gives each process of Hydra's joblib launcher one of the GPUs, while there are enough.

    The GPUs are those of `CUDA_VISIBLE_DEVICES`, else all. Nothing happens with other launchers,
    nor where there is one GPU.
    """

    def __init__(self) -> None:
        self.gpus: list[str] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        # Counted here, because counting may fix what the process that counts can see.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            self.gpus = [str(number) for number in range(torch.cuda.device_count())]
        else:
            self.gpus = [gpu.strip() for gpu in visible.split(",") if gpu.strip()]

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        launcher = config.hydra.launcher._target_
        if not _gpu and len(self.gpus) > 1 and launcher.endswith(".JoblibLauncher"):
            _gpu.append(_free_place(Path(config.hydra.sweep.dir, ".gpus").absolute()))
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[_gpu[0] % len(self.gpus)]


# The place among the GPUs that this process has taken: for good, as torch never lets go of a GPU.
_gpu: list[int] = []


def _free_place(folder: Path) -> int:
    """The first number that no other process holds; this one holds it from now on."""
    number = 0
    while True:
        place = folder / str(number)
        place.mkdir(parents=True, exist_ok=True)
        if lock(place):
            return number
        number += 1
