"""What Hydra knows of the sweep that a job belongs to, for configs to be named after.

Importing this module gives configs a resolver: `${svae.sweep:}`.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

__all__ = ["sweep_name"]


def sweep_name() -> str | None:
    """The name of the folder of the multirun that this job belongs to; None outside of one."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


OmegaConf.register_new_resolver("svae.sweep", sweep_name, replace=True)
