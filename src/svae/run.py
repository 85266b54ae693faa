"""Run directories: what a training leaves behind, and how a model comes back from it."""

import logging
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from svae.checks import one_of
from svae.datasets import ImageDataModule
from svae.datasets.base import SPLITS, Batch, ImageSource
from svae.distributed import one_at_a_time
from svae.errors import one_line
from svae.hardware import accelerator_at_hand, fast_precision
from svae.instantiate import instantiate, trusted_target
from svae.model import SpatialVAE
from svae.module import VAEModule
from svae.numbers import significant
from svae.paths import data_dir

__all__ = [
    "ATTENTION",
    "BEFORE",
    "DECIDING",
    "LENGTHS",
    "NO_MATTER",
    "STEPS",
    "SUMMARY",
    "UNTOLD",
    "build_module",
    "checkpoint_path",
    "first_difference",
    "images",
    "images_to_encode",
    "in_short",
    "load",
    "prepared_data",
    "read_config",
    "resolve_hardware",
    "resolve_likelihood",
    "resolve_seed",
]

log = logging.getLogger(__name__)

#: The sections of a config that decide, beside the seed, what a run trains.
DECIDING = ("dataset", "model", "prior", "optimizer", "scheduler", "max_gradient_spike")

#: Of the trainer, how it trains, and how long; the rest is about the machine.
STEPS = ("accumulate_grad_batches", "gradient_clip_algorithm", "gradient_clip_val")
LENGTHS = (
    *("max_epochs", "max_steps", "max_time"),
    *("limit_train_batches", "limit_val_batches", "limit_test_batches"),
)

#: What settings were, in effect, before there were such settings.
BEFORE = {
    "model.posterior.shift_offsets": False,
    "model.second_look": False,
    "model.third_look": None,  # of no weight in training, so that a run may go on with one
    "model.posterior.correct_weights": True,
    "prior.theta.start_deg": None,
    "model.centre_std_px": None,
    "model.augment_mirror": False,
}

#: The posterior of which some settings of before meant something else.
ATTENTION = "svae.posteriors.Attention"

#: What runs of before did not tell.
UNTOLD = ("dataset.contents", "splits")

#: Settings that do not change what a run computes.
NO_MATTER = (
    "dataset.data_dir",
    "dataset.eval_batch_size",
    "dataset.in_memory",
    "dataset.trained_pixel_size",
    "dataset.workers",
)


def read_config(run: str | Path) -> DictConfig:
    """The resolved config of a run directory.

    Raises:
        FileNotFoundError: The folder is not a run directory.
    """
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"run: {run} is not a run directory (it has no config.yaml); expected one such as "
            "outputs/train/<date>"
        )
    try:
        config = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a config ({one_line(error)})") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path}: not a config (a list)")
    model = config.get("model", {})
    null = model.get("second_look", False) is None and "second_encoder" not in model
    if null and model.posterior._target_ == ATTENTION:
        # Of before an attention could be corrected: null meant a mean-field posterior alone.
        model.second_look = False
    return config


def first_difference(
    old: Mapping[str, Any], new: Mapping[str, Any], sections: Iterable[str], within: str = ""
) -> tuple[str, Any, Any] | None:
    """The first setting that matters and differs in two configs: its name and both values.

    Arguments:
        old: A config, or a part of one, as plain containers.
        new: The same of another.
        sections: What is compared of them, in this order.
        within: What comes before their names, with a dot.
    """
    for section in sections:
        name = f"{within}{section}"
        a, b = (config.get(section, BEFORE.get(name)) for config in (old, new))
        if a == b or name in NO_MATTER or (name in UNTOLD and None in (a, b)):
            continue
        if not (isinstance(a, dict) and isinstance(b, dict)):
            return name, a, b
        if found := first_difference(a, b, sorted(a.keys() | b.keys()), f"{name}."):
            return found
    return None


def prepared_data(config: DictConfig) -> ImageDataModule:
    """The data set of a config, fetched by one process and read by all.

    Which images its splits have is written into the config, as `splits`.

    Raises:
        ValueError: They are not those of the run that the config is of.
    """
    datamodule: ImageDataModule = instantiate(config.dataset, "dataset")
    fetch(datamodule, config)
    datamodule.setup()
    if (here := datamodule.shares()) is not None:
        known = config.get("splits")
        if known not in (None, here):
            raise ValueError(
                f"dataset: {config.dataset._target_} has other images than at the training, "
                f"{here} and not {known}, so that other ones would be held back for the test; "
                "expected those of then (svae.encode takes any)"
            )
        with open_dict(config):
            config.splits = here
    return datamodule


def fetch(datamodule: ImageDataModule, config: DictConfig) -> None:
    """Download what a data set lacks; of several processes at once, the first does."""
    if type(datamodule).prepare_data is ImageDataModule.prepare_data:
        return
    chosen = config.dataset.get("data_dir")
    with one_at_a_time(Path(chosen).expanduser() if chosen else data_dir()):
        datamodule.prepare_data()


def checkpoint_path(run: str | Path, checkpoint: str = "best") -> Path:
    """The file of the checkpoint `best` or `last` of a run directory."""
    path = Path(run) / "checkpoints" / f"{checkpoint}.ckpt"
    if not path.is_file():
        there = sorted(p.stem for p in path.parent.glob("*.ckpt"))
        raise FileNotFoundError(
            f"checkpoint: {path} does not exist; there is {', '.join(there) or 'none'}"
        )
    return path


def images(run: str | Path, split: str | None = "test", path: str | Path | None = None) -> Batch:
    """Images as the model of a run sees them: cut, scaled and inverted as in its training.

    Arguments:
        run: The run directory.
        split: `train`, `val` or `test`; None: all, in the order of their index.
        path: Other images than the run's own, read as those were: what `dataset.path` takes. They
            have no splits.

    Returns:
        `image` (N, C, H, W), `index` (N,), and what else is known, such as `label` (N,), all of
        it in memory.

    Raises:
        FileNotFoundError: There is no such run, or no such file.
        ValueError: There is no such split, or the images are not what they should be.
    """
    config = read_config(run)
    if path is not None:
        if "path" not in config.dataset:
            raise ValueError(f"path: {config.dataset._target_} of {run} reads no files")
        # What names parts or partners of the run's own file.
        own = {"contents": None, "datadir": None, "select": None, "passthrough": None}
        others = own | {"array": None, "labels": "none", "path": str(path)}
        config.dataset.update({k: v for k, v in others.items() if k in config.dataset})
        data: ImageDataModule = instantiate(config.dataset, "dataset")
        source = data.everything()
    else:
        if split is not None:
            one_of("split", split, SPLITS)
        data = prepared_data(config)
        source = data.everything() if split is None else data.sources[split]
    batch = source[torch.arange(len(source))]
    if path is not None:
        batch.pop("split", None)
    return batch


def resolve_likelihood(model: DictConfig, images: list[Tensor]) -> None:
    """Put the likelihood that fits the images in the place of `model/likelihood=auto`."""
    if model.likelihood._target_ == "svae.likelihoods.fitting":
        choose = instantiate(model.likelihood, "model.likelihood")
        model.likelihood = choose(images)


def resolve_seed(cfg: DictConfig) -> None:
    """The seed of `cfg.run` in the place of null."""
    with open_dict(cfg):
        cfg.seed = read_config(cfg.run).seed if cfg.seed is None else cfg.seed


def images_to_encode(cfg: DictConfig, given: set[str]) -> tuple[ImageDataModule, ImageSource]:
    """The data set and the images that a trained model is shown.

    Those of `cfg.dataset`; of the run itself where that is null. Images of the same kind as the
    run's are read as those were (scaled by the same numbers, for one), except for what is given.

    Arguments:
        cfg: With `run`, `seed` and `dataset`.
        given: The settings of the data set that the command line sets.

    Raises:
        ValueError: The images have another shape than those of the training.
    """
    run = read_config(cfg.run)
    node = run.dataset
    if cfg.dataset is not None:
        own: Any = OmegaConf.to_container(cfg.dataset, resolve=True)
        if "_target_" not in own:
            raise ValueError(f"dataset: write dataset=images (or another kind) beside {own}")
        if own.get("_target_") == node._target_:
            kept = set(getattr(trusted_target(node._target_, "dataset"), "reading", ())) - given
            if "normalize" in given:
                kept -= {"offset", "scale", "mean", "std"}
            own |= {name: node[name] for name in kept if name in node}
        node = OmegaConf.create(own)
    # Others of the run's own may be encoded, but which of them it was trained on is not known.
    known = None if cfg.dataset is not None else node.pop("contents", None)
    data: ImageDataModule = instantiate(node, "dataset")
    fetch(data, OmegaConf.create({"dataset": node}))
    images = data.everything()
    here = data.found().get("contents")
    if cfg.dataset is None and (shares := data.shares()) is not None:
        known, here = run.get("splits"), shares
    if known not in (None, here):
        log.warning(
            "%s has other images than at the training, %s and not %s: which of them it trained on "
            "is not known, and no split is written",
            *(node.get("path", node._target_), here, known),
        )
        images.tensors.pop("split", None)
    shape, trained = data.image_shape, tuple(run.model.image_shape)
    if shape != trained:
        raise ValueError(
            f"dataset: expected images of shape {trained} (channels, height, width) as {cfg.run} "
            f"was trained on, got {shape}{_remedy(node, shape, trained)}"
        )
    return data, images


def _remedy(dataset: DictConfig, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """What makes images of one shape (C, H, W) those of another, where the data set can do it."""
    settings = []
    if "color" in dataset and shape[0] != wanted[0]:
        settings.append(f"dataset.color={'grey' if wanted[0] == 1 else 'rgb'}")
    if shape[1:] != wanted[1:] and wanted[1] == wanted[2]:
        names = [name for name in ("resize", "size") if name in dataset]
        settings += [f"dataset.{name}={wanted[1]}" for name in names]
    return f"; {' '.join(settings)} may help" if settings else ""


#: What the last lines of a command tell, where it was measured.
SUMMARY = (
    "val/elbo",
    "test/elbo",
    "test/iwae_bound",
    "test/theta_circular_correlation",
    "test/theta_circular_correlation_plain",
    "test/theta_relative_correlation",
    "test/theta_relative_correlation_plain",
    "test/shift_x_correlation",
    "test/shift_y_correlation",
    "test/centre_x_correlation",
    "test/centre_y_correlation",
    "test/scale_correlation",
    "test/clustering_accuracy",
    "test/clustering_accuracy_spectral",
)


def in_short(metrics: Mapping[str, float]) -> str:
    """The metrics that matter most, in a line."""
    known = [f"{name} {significant(metrics[name], 4)}" for name in SUMMARY if name in metrics]
    return ", ".join(known) or "nothing was validated or tested"


def resolve_hardware(trainer: DictConfig, remedy: str = "trainer=cpu") -> None:
    """Write what `auto` means on this machine into a trainer's config.

    Arguments:
        trainer: With `accelerator` and `precision`.
        remedy: What to write where there is no GPU.

    Raises:
        ValueError: A GPU was asked for and there is none.
    """
    if trainer.accelerator == "auto":
        trainer.accelerator = accelerator_at_hand()
    if trainer.accelerator in ("gpu", "cuda") and accelerator_at_hand() != "gpu":
        raise ValueError(f"accelerator: torch finds no GPU here; use {remedy}")
    if trainer.precision == "auto":
        trainer.precision = fast_precision(trainer.accelerator)


def build_module(config: DictConfig, datamodule: ImageDataModule) -> VAEModule:
    """The Lightning module that a config describes, with the model freshly initialised."""
    model: SpatialVAE = instantiate(config.model, "model")
    if "ctf" in datamodule.splits["train"]:
        model.check_ctf()
    return VAEModule(
        model=model,
        optimizer=instantiate(config.optimizer, "optimizer"),
        scheduler=instantiate(config.scheduler, "scheduler"),
        seed=config.seed,
        num_labels=datamodule.num_labels,
        max_gradient_spike=config.get("max_gradient_spike"),
        **config.evaluation,
    )


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors and plain containers, no code.

    Raises:
        ValueError: The file is not a whole checkpoint of this program.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"ckpt_path: {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        content["state_dict"].items()
    except (
        AttributeError,
        RuntimeError,
        OSError,
        EOFError,
        LookupError,
        TypeError,
        pickle.UnpicklingError,
    ) as error:
        # What torch says of code is long, and tells how to run it.
        why = one_line(error)
        if isinstance(error, pickle.UnpicklingError):
            code = re.search(r"GLOBAL (\S+)", why)
            why = f"it brings code along, {code[1]}" if code else "its pickle cannot be read"
        raise ValueError(f"{path}: not a whole checkpoint of svae ({why})") from error
    return content


def load_weights(model: SpatialVAE, path: str | Path) -> None:
    """Put the weights of a checkpoint into a model.

    Raises:
        ValueError: The checkpoint is of another model.
    """
    prefix = "model."
    state = {
        name.removeprefix(prefix): value
        for name, value in read_checkpoint(path)["state_dict"].items()
        if name.startswith(prefix)
    }
    own = model.state_dict()
    missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
    wrong = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or unknown or wrong:
        name = sorted(wrong or missing or unknown)[0]
        shapes = [tuple(s[name].shape) if name in s else "absent" for s in (state, own)]
        raise ValueError(
            f"{path}: a checkpoint of another model; {name} is {shapes[0]} in the checkpoint and "
            f"{shapes[1]} in the model (check model, z_dim and the image size)"
        )
    model.load_state_dict(state)


def load(run: str | Path, checkpoint: str = "best", **options: Any) -> SpatialVAE:
    """A trained model from its run directory alone, ready for `encode` and `decode`.

    Arguments:
        run: The run directory.
        checkpoint: `best` or `last`.
        options: Options of the model in the place of the run's that its weights do not depend on,
            such as `pose_candidates=4` or `refinement_steps=2`.
    """
    config = read_config(run)
    with open_dict(config):
        config.model.update(options)
    model: SpatialVAE = instantiate(config.model, "model")
    load_weights(model, checkpoint_path(run, checkpoint))
    return model.eval()
