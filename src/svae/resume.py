"""Going on with a run, in its folder or from its checkpoint: what is there, what is refused."""

import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from svae.directories import JOBS
from svae.files import write_atomic
from svae.run import DECIDING, STEPS, first_difference, read_checkpoint, read_config
from svae.status import Status

__all__ = [
    "check_epochs",
    "check_resumed",
    "last_checkpoint",
    "newest_checkpoint",
    "nothing_to_do",
    "record_command",
    "refuse_other_settings",
    "remove_unfinished_files",
    "tell_of_another_length",
]

log = logging.getLogger(__name__)

#: A run has these in common with the one that it goes on with.
ALIKE = ("seed", *DECIDING, "splits")

#: A run that has ended goes on if one of these asks for more.
_LIMITS = ("max_epochs", "max_steps", "max_time")


def last_checkpoint(run: str | Path) -> Path | None:
    """What the run of a folder goes on from; None if it begins anew."""
    path = Path(run, "checkpoints", "last.ckpt")
    return path if path.is_file() else None


def other_setting(run: str | Path, cfg: DictConfig) -> tuple[str, Any, Any] | None:
    """The first setting in which another run differs from this one: its name and both values."""
    old: Any = OmegaConf.to_container(read_config(run), resolve=True)
    new: Any = OmegaConf.to_container(cfg, resolve=True)
    return first_difference(old, new, ALIKE) or first_difference(
        old["trainer"], new["trainer"], STEPS, "trainer."
    )


def refuse_other_settings(run: str | Path, cfg: DictConfig) -> None:
    """Raise ValueError if a folder holds a run of other settings than a finished config."""
    if not Path(run, "config.yaml").is_file():
        return  # it failed before it had its settings
    if found := other_setting(run, cfg):
        name, old, new = found
        raise ValueError(
            f"{run} holds a run with {name}={old!r}, not {new!r}; expected the same settings, to "
            "go on with it, or another folder"
        )


def nothing_to_do(run: str | Path, status: Status, cfg: DictConfig) -> bool:
    """Whether the run of a folder has ended, and the config asks for no more than it did.

    More is another number of epochs or steps, more time, or the test. That it has ended is told,
    and what else the config asks for in vain.
    """
    if not status.ended:
        return False
    before = read_config(run)
    longer = any(before.trainer.get(name) != cfg.trainer.get(name) for name in _LIMITS)
    if longer or (cfg.test and not before.test):
        return False
    old: Any = OmegaConf.to_container(before, resolve=True)
    new: Any = OmegaConf.to_container(cfg, resolve=True)
    if found := first_difference(old, new, ("evaluation",)) or first_difference(
        old["callbacks"], new["callbacks"], ("early_stopping",), "callbacks."
    ):
        log.warning(
            "%s: already %s, with %s=%r; %r changes nothing of it (python -m svae.evaluate tests "
            "it with other numbers of samples)",
            *(run, status.state, *found),
        )
    else:
        log.info("%s: already %s", run, status.state)
    return True


def check_resumed(cfg: DictConfig) -> None:
    """Raise ValueError if the run to go on with was another than the config describes.

    A checkpoint brings the state of its optimiser and schedule, so that other settings of theirs
    would silently do nothing; other data would mix the splits.
    """
    before = Path(cfg.ckpt_path).resolve().parents[1]
    if (before / "config.yaml").is_file() and (found := other_setting(before, cfg)):
        name, old, new = found
        raise ValueError(
            f"{name}: expected the value of the run that ckpt_path belongs to ({old!r}), "
            f"got {new!r}"
        )


def newest_checkpoint(cfg: DictConfig) -> Path:
    """The last checkpoint of the newest run, beside this one, that has the same settings.

    Raises:
        ValueError: There is none.
    """
    own = Path(cfg.output_dir)
    siblings = [own.parent, *own.parent.parent.glob("multirun/*")]
    if (own.parent / JOBS).is_dir():  # a job of a sweep: the sweeps and the runs
        siblings = [*own.parent.parent.iterdir(), own.parent.parent.parent / "train"]
    paths = {path for folder in siblings for path in folder.glob("*/checkpoints/last.ckpt")}
    newest_first = sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
    nearest = ""
    for path in newest_first:
        run = path.parents[1]
        if run == own or not (run / "config.yaml").is_file():
            continue
        found = other_setting(run, cfg)
        if found is None:
            log.info("going on with %s", path)
            return path
        if not nearest:
            name, old, new = found
            nearest = f"; the newest, {run}, has {name}={old!r} and not {new!r}"
    raise ValueError(
        f"ckpt_path: expected a run with these settings for `last`, and none of the "
        f"{len(paths)} in {own.parent} is one{nearest}"
    )


def check_epochs(ckpt_path: str, max_epochs: int | None) -> None:
    """Raise ValueError if a checkpoint has more epochs than the training is to have."""
    content = read_checkpoint(ckpt_path)
    if "loops" not in content:
        raise ValueError(
            f"{ckpt_path}: has weights alone, and nothing of a training to go on with"
        )
    progress = content["loops"]["fit_loop"]["epoch_progress"]
    done = progress["current"]["processed"]
    if max_epochs not in (None, -1) and done > max_epochs:
        raise ValueError(
            f"trainer.max_epochs: expected at least {done}, the epochs that {ckpt_path} has, "
            f"got {max_epochs}"
        )


def tell_of_another_length(cfg: DictConfig) -> None:
    """Say what becomes of a schedule whose length changes on the way."""
    before = read_config(cfg.output_dir).trainer
    for name in ("max_epochs", "max_steps"):
        if before.get(name) != cfg.trainer.get(name):
            log.info(
                "trainer.%s is %s and was %s: a cosine schedule goes on as one of the new length, "
                "so that the learning rate may jump",
                *(name, cfg.trainer.get(name), before.get(name)),
            )


@rank_zero_only
def record_command(run: str | Path, composed: DictConfig) -> None:
    """Write `.hydra/` of a run that goes on, as Hydra does of one that begins.

    Hydra would have written it before anybody knew whether the settings are those of the run.

    Arguments:
        run: The run directory.
        composed: The config as Hydra made it.
    """
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.instance().cfg
    overrides = HydraConfig.get().overrides.task
    for name, part in (("config", composed), ("hydra", hydra), ("overrides", overrides)):
        write_atomic(Path(run, ".hydra", f"{name}.yaml"), OmegaConf.to_yaml(part))


@rank_zero_only
def remove_unfinished_files(run: str | Path) -> None:
    """Remove what a process that was killed had not written to the end."""
    for path in Path(run).rglob(".*.part"):
        path.unlink(missing_ok=True)
