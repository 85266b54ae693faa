"""What Hydra knows of the sweep that a job belongs to, for configs to be named after.

Importing this module gives configs a resolver: `${svae.sweep:}`.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

__all__ = ["sweep_name"]


def in_sweep() -> bool:
    """Whether this is a job of a multirun; not in a single run, nor without Hydra."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def sweep_name() -> str | None:
    """The name of the folder of the multirun that this job belongs to; None outside of one."""
    return Path(HydraConfig.get().sweep.dir).name if in_sweep() else None


OmegaConf.register_new_resolver("svae.sweep", sweep_name, replace=True)
