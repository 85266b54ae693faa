"""Dashboards that a run can be watched in, beside the files that it always writes."""

from svae.loggers.base import Dashboard
from svae.loggers.sweeps import sweep_name
from svae.loggers.tensorboard import TensorBoardLogger
from svae.loggers.wandb import WandbLogger

__all__ = ["Dashboard", "TensorBoardLogger", "WandbLogger", "sweep_name"]
