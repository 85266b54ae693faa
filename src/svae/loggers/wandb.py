"""Weights & Biases: never in the way of a training, with or without an account or a network."""

import filecmp
import functools
import logging
import math
import os
import secrets
import shlex
import shutil
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np
from PIL import Image
from pytorch_lightning.loggers.logger import DummyExperiment, rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from svae.checks import one_of, positive
from svae.loggers.base import STEP, Dashboard, plain_columns, thumbnails

__all__ = ["WandbLogger"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds that the library may take to notice that time is up.
MARGIN = 4.0

#: Seconds for what needs no network and takes less than one, unless the machine is busy.
LOCAL = 10.0

#: The metric whose best value, the highest, stands for a run.
BEST = "val/elbo"

#: The longest name that the service takes.
LONGEST_NAME = 128


def within(seconds: float, function: Callable[[], T]) -> T:
    """What `function` returns, or TimeoutError after a while; it is then left to itself."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # of another thread: raised in this one instead
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(timeout=seconds)


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment for a moment, unless the user has set it."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def reason(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def harmless(
    method: Callable[Concatenate["WandbLogger", P], None],
) -> Callable[Concatenate["WandbLogger", P], None]:
    """Let nothing that W&B does wrong reach the training: it is told once for each method."""

    @rank_zero_only
    @functools.wraps(method)
    def guarded(self: "WandbLogger", *args: P.args, **kwargs: P.kwargs) -> None:
        if isinstance(self.experiment, DummyExperiment):
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            if method.__name__ not in self._told:
                self._told.add(method.__name__)
                log.warning("W&B: %s failed (%s); the run goes on", method.__name__, reason(error))

    return guarded


class WandbLogger(Dashboard):
    """Logs to W&B: online where that is possible, else into the run directory, to be sent later.

    It never asks for anything. Where the service fails, it says so in the log, and the training
    goes on. Nothing is started before the first use.

    Arguments:
        save_dir: The run directory; W&B keeps its files in a folder `wandb` in it.
        project: The project that the run belongs to.
        entity: The user or team; null for the account's own.
        mode: `online`, `offline` or `disabled`. `auto` is online where a key is configured
            (`wandb login`, `WANDB_API_KEY`) and the service answers, else offline; where
            `WANDB_MODE` or W&B's own settings name a mode, that.
        name: The name of the run; null for that of the run directory.
        group: What the runs of one sweep have in common.
        job_type: The kind of run.
        tags: Words to find the run by.
        notes: A remark.
        id: The id of an earlier run whose curves this one continues; null: that of the online run
            that `save_dir` holds, if a training goes on there. Offline it has no effect, since
            W&B joins no offline runs.
        log_checkpoints: Whether checkpoints are kept as artifacts.
        timeout_s: How many seconds the service may take to begin, and at the end to receive what
            it has not got yet.
    """

    def __init__(
        self,
        save_dir: str,
        project: str = "svae",
        entity: str | None = None,
        mode: str = "auto",
        name: str | None = None,
        group: str | None = None,
        job_type: str = "train",
        tags: list | tuple = (),
        notes: str | None = None,
        id: str | None = None,
        log_checkpoints: bool = True,
        timeout_s: float = 20.0,
    ) -> None:
        super().__init__()
        self._mode = one_of("mode", mode, ("auto", "online", "offline", "disabled"))
        self._timeout_s = positive("timeout_s", timeout_s)
        self._save_dir = save_dir
        self._id = id
        self._keep_checkpoints = log_checkpoints
        self._described: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "name": (name or Path(save_dir).resolve().name)[:LONGEST_NAME],
            "group": group,
            "job_type": job_type,
            "tags": [str(tag) for tag in tags],
            "notes": notes,
        }
        self._run: Any = None
        self._session: Any = None
        self._told: set[str] = set()
        self._step = 0
        self._best = -math.inf

    @property
    def name(self) -> str | None:
        return self._described["project"]

    @property
    def version(self) -> str | None:
        """The id of the run, once there is one."""
        running = self._run is not None and not isinstance(self._run, DummyExperiment)
        return self._run.id if running else self._id

    @property
    def save_dir(self) -> str:
        return self._save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `wandb.Run`, started at the first use; something that does nothing if it failed."""
        if self._run is None:
            self._run = DummyExperiment() if self._mode == "disabled" else self._start()
        return self._run

    @harmless
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._step = self._step if step is None else step
        self.experiment.log({**metrics, STEP: self._step})
        if BEST in metrics:
            self._best = max(self._best, metrics[BEST])
            self.experiment.summary[BEST] = self._best

    @harmless
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace) -> None:
        nested = vars(params) if isinstance(params, Namespace) else dict(params)
        self.experiment.config.update(nested, allow_val_change=True)

    @harmless
    def log_figure(self, name: str, path: Path) -> None:
        import wandb

        media = wandb.Video if path.suffix.lower() == ".gif" else wandb.Image
        self.experiment.log({f"figures/{name}": media(str(path)), STEP: self._step})

    @harmless
    def log_latents(
        self, columns: Mapping[str, Sequence[Any] | np.ndarray], images: Tensor | None
    ) -> None:
        import wandb

        table: dict[str, list[Any]] = {}
        if images is not None:
            pictures = thumbnails(images)
            pictures = pictures[..., 0] if images.shape[1] == 1 else pictures
            table["image"] = [wandb.Image(Image.fromarray(picture)) for picture in pictures]
        table |= plain_columns(columns)
        rows = [list(row) for row in zip(*table.values(), strict=True)]
        latents = wandb.Table(columns=list(table), data=rows)
        with self._staging():
            self.experiment.log({"latents": latents, STEP: self._step})

    @harmless
    def log_checkpoints(self, paths: Mapping[str, Path]) -> None:
        """One version of the artifact `model-<run id>` for each file, with its aliases.

        What `svae.load` needs is in it: `svae.load(artifact.download())`.
        """
        import wandb

        if not self._keep_checkpoints:
            return
        versions: list[dict[str, Path]] = []
        for alias, path in paths.items():
            for version in versions:
                if filecmp.cmp(next(iter(version.values())), path, shallow=False):
                    version[alias] = path
                    break
            else:
                versions.append({alias: path})
        config = Path(self._save_dir) / "config.yaml"
        for version in versions:
            artifact = wandb.Artifact(f"model-{self.experiment.id}", type="model")
            files = {f"checkpoints/{path.name}": path for path in version.values()}
            if config.is_file():
                files["config.yaml"] = config
            for name, path in files.items():
                # As they lie there, without a copy.
                artifact.add_file(str(path), name, skip_cache=True, policy="immutable")
            with self._staging():
                self.experiment.log_artifact(artifact, aliases=list(version))

    @harmless
    def log_summary(self, metrics: Mapping[str, float]) -> None:
        self.experiment.summary.update(dict(metrics))

    @rank_zero_only
    def close(self, exit_code: int = 0) -> None:
        run, self._run = self._run, DummyExperiment()
        if run is not None and not isinstance(run, DummyExperiment):
            self._finish(run, exit_code)
        # The library's own process ends, so that neither the exit nor the next job meets it.
        if self._session is not None and self._session.most_recent_active_run in (None, run):
            self._leave_session(exit_code)

    def _start(self) -> Any:
        import wandb  # noqa: F401  (takes a while, which is nobody's fault)

        until = monotonic() + self._timeout_s
        self._before = sys.exit, sys.excepthook, os.environ.get("WANDB_SERVICE")
        # Reports on the library itself, which would hold up the exit where nothing answers.
        with environment("WANDB_ERROR_REPORTING", "false"):
            try:
                mode = within(LOCAL, self._open_session)
                if mode == "disabled":
                    return DummyExperiment()
                if mode == "online":
                    left = max(1.0, until - monotonic())
                    try:
                        run = within(left + MARGIN, lambda: self._init("online", left))
                        log.info("W&B: %s", run.url)
                        return run
                    except Exception as error:
                        log.warning(
                            "W&B does not take the run (%s); it is kept offline", reason(error)
                        )
                return within(LOCAL, lambda: self._init("offline", LOCAL))
            except Exception as error:
                log.warning("W&B does not start (%s); the run goes on without it", reason(error))
                return DummyExperiment()

    def _open_session(self) -> str:
        """Start the library, and tell what `mode` means here. Uses no network and never asks."""
        import wandb

        chosen: dict[str, Any] = {} if self._mode == "auto" else {"mode": self._mode}
        self._session = wandb.setup(wandb.Settings(silent=True, **chosen))
        mode = self._session.settings.mode
        if mode in ("disabled", "offline", "dryrun"):
            return "disabled" if mode == "disabled" else "offline"
        asked_for = self._mode == "online"
        try:
            if wandb.login(prompt=False, verify=False):
                return "online"
            problem = "no API key is configured; `wandb login` sets one"
        except wandb.Error as error:
            problem, asked_for = reason(error), True
        level = logging.WARNING if asked_for else logging.INFO
        log.log(level, "W&B: the run is kept offline (%s)", problem)
        return "offline"

    def _init(self, mode: Literal["online", "offline"], seconds: float) -> Any:
        import wandb

        earlier = (self._id or self._went_before()) if mode == "online" else None
        id = earlier or secrets.token_hex(4)
        try:
            run = wandb.init(
                **self._described,
                id=id,
                mode=mode,
                dir=self._save_dir,
                resume="allow" if earlier else None,
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    capture_loggers={"root": "INFO"},
                    init_timeout=seconds,
                    finish_timeout=self._timeout_s,
                    finish_timeout_raises=True,
                ),
            )
        except Exception:
            # The folder of a run that never was; `wandb sync --sync-all` would send it.
            for left_over in Path(self._save_dir).glob(f"wandb/run-*-{id}"):
                shutil.rmtree(left_over, ignore_errors=True)
            raise
        if earlier and isinstance(best := run.summary.get(BEST), int | float):
            self._best = max(self._best, best)
        run.define_metric(STEP, hidden=True)
        run.define_metric("*", step_metric=STEP)
        return run

    def _went_before(self) -> str | None:
        """The id of the newest online run in the folder, which is `run-<start>-<id>`."""
        runs = sorted(path.name for path in Path(self._save_dir).glob("wandb/run-*-*"))
        return runs[-1].split("-", 2)[2] if runs else None

    def _finish(self, run: Any, exit_code: int) -> None:
        sync = f"wandb sync {shlex.quote(str(Path(run.dir).resolve().parent))}"
        try:
            within(self._timeout_s + MARGIN, lambda: run.finish(exit_code))
        except Exception as error:
            log.warning(
                "W&B did not receive everything (%s); the rest is sent by: %s", reason(error), sync
            )
        else:
            if run.offline:
                log.info("W&B: the run is kept offline; it is sent by: %s", sync)
            else:
                log.info("W&B: %s", run.url)

    def _leave_session(self, exit_code: int) -> None:
        """End the library's process and undo what it did to this one."""
        import wandb

        try:
            within(MARGIN, lambda: wandb.teardown(exit_code))
        except Exception as error:
            log.debug("W&B's process did not end: %s", reason(error))
        sys.exit, sys.excepthook, service = self._before
        if service is None:
            os.environ.pop("WANDB_SERVICE", None)
        self._session = None

    def _staging(self) -> AbstractContextManager[None]:
        """What waits for its upload lies with the run; it would go to the home folder.

        A run that was kept offline may be sent from another machine, or much later.
        """
        return environment("WANDB_DATA_DIR", str(Path(self.experiment.dir).resolve().parent))
