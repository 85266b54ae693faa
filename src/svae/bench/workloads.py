"""What `conf/bench.yaml` asks for, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from svae.bench.measure import Work
from svae.checks import at_least, image_shape_of, one_of, positive
from svae.run import resolve_hardware

__all__ = ["Workload", "checked"]

KEYS = ("image_shape", "batch_size", "reference_images", "overrides")


@dataclass(frozen=True)
class Workload:
    """A row of the table.

    Arguments:
        name: Its name.
        work: What is trained.
        reference_images: The number of images in a step of the reference.
    """

    name: str
    work: Work
    reference_images: int


def checked(cfg: DictConfig) -> list[Workload]:
    """The workloads that are asked for; `auto` in `cfg` becomes what it means here.

    Raises:
        ValueError: A setting is wrong.
    """
    one_of("accelerator", cfg.accelerator, ("auto", "cpu", "gpu"))
    one_of("precision", cfg.precision, ("auto", "32-true", "bf16-mixed"))
    positive("seconds", cfg.seconds)
    if type(cfg.growth) is not bool:
        raise ValueError(f"growth: expected bool, got {cfg.growth!r}")
    resolve_hardware(cfg, "accelerator=cpu")
    workloads: Any = OmegaConf.to_container(cfg.workloads, resolve=True)
    known = [_workload(name, node, cfg) for name, node in workloads.items()]
    if cfg.names is None:
        return known
    names = [cfg.names] if isinstance(cfg.names, str) else list(cfg.names)
    if not names:
        raise ValueError("names: expected null or some workloads, got none")
    for name in names:
        one_of("names", name, tuple(workloads))
    return [workload for workload in known if workload.name in names]


def _workload(name: str, node: Any, cfg: DictConfig) -> Workload:
    place = f"workloads.{name}"
    if not isinstance(node, Mapping) or set(node) != set(KEYS):
        found = ", ".join(node) if isinstance(node, Mapping) else repr(node)
        raise ValueError(f"{place}: expected {', '.join(KEYS)}, got {found}")
    shape, overrides = node["image_shape"], node["overrides"]
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise ValueError(f"{place}.image_shape: expected whole numbers, got {shape!r}")
    if not isinstance(overrides, list) or not all(isinstance(one, str) for one in overrides):
        raise ValueError(f"{place}.overrides: expected a list of texts, got {overrides!r}")
    try:
        image_shape = image_shape_of(shape)
    except ValueError as error:
        raise ValueError(f"{place}.{error}") from error
    work = Work(
        overrides=tuple(overrides),
        image_shape=image_shape,
        batch_size=at_least(f"{place}.batch_size", node["batch_size"], 1),
        accelerator=cfg.accelerator,
        precision=cfg.precision,
    )
    images = at_least(f"{place}.reference_images", node["reference_images"], 1)
    return Workload(name, work, images)
