"""What is written and measured during training."""

from svae.callbacks.checkpoint import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from svae.callbacks.figures import Figures
from svae.callbacks.metrics_csv import MetricsCSV
from svae.callbacks.timing import Timing

__all__ = [
    "AtomicCheckpointIO",
    "BestCheckpoint",
    "Figures",
    "LastCheckpoint",
    "MetricsCSV",
    "Timing",
]
