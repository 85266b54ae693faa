"""What Hydra knows of the sweep that a job belongs to, for configs to be named after.

Importing this module gives configs two resolvers: `${svae.sweep:}` and `${svae.job:}`.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

__all__ = ["job_name", "sweep_name"]

#: What a job's name leaves out: choices that say nothing about the result.
UNTOLD = ("logger", "hydra", "output_dir")


def in_sweep() -> bool:
    """Whether this is a job of a multirun; not in a single run, nor without Hydra."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def sweep_name() -> str | None:
    """The name of the folder of the multirun that this job belongs to; None outside of one."""
    return Path(HydraConfig.get().sweep.dir).name if in_sweep() else None


def job_name() -> str | None:
    """The overrides of a job of a multirun, `model.z_dim=2,seed=1`; None outside of one."""
    if not in_sweep():
        return None
    overrides = HydraConfig.get().overrides.task
    return ",".join(o for o in overrides if not o.lstrip("+~").startswith(UNTOLD)) or None


OmegaConf.register_new_resolver("svae.sweep", sweep_name, replace=True)
OmegaConf.register_new_resolver("svae.job", job_name, replace=True)
