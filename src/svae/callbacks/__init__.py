"""What is written and measured during training."""

from svae.callbacks.between_steps import BetweenSteps, Interrupted
from svae.callbacks.checkpoint import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from svae.callbacks.figures import Figures
from svae.callbacks.metrics_csv import MetricsCSV
from svae.callbacks.progress_bar import ProgressBar
from svae.callbacks.pruning import MedianPruning
from svae.callbacks.timing import Timing

__all__ = [
    "AtomicCheckpointIO",
    "BestCheckpoint",
    "BetweenSteps",
    "Figures",
    "Interrupted",
    "LastCheckpoint",
    "MedianPruning",
    "MetricsCSV",
    "ProgressBar",
    "Timing",
]
