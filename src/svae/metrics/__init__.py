"""What is measured of a model, beside its bound."""

from svae.metrics.circular import circular_correlation, circular_correlation_plain
from svae.metrics.clustering import cluster, clustering_metrics, matching
from svae.metrics.collect import MeanPerImage, PerImage
from svae.metrics.conformation import conformation_metrics
from svae.metrics.pose import angle_offset, angle_offsets, comparable_angles, pose_metrics
from svae.metrics.spectral import NoClusters, small_upright, spectral_clusters

__all__ = [
    "MeanPerImage",
    "NoClusters",
    "PerImage",
    "angle_offset",
    "angle_offsets",
    "circular_correlation",
    "circular_correlation_plain",
    "cluster",
    "clustering_metrics",
    "comparable_angles",
    "conformation_metrics",
    "matching",
    "pose_metrics",
    "small_upright",
    "spectral_clusters",
]
