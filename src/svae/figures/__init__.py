"""The figures; each is a plain `matplotlib.figure.Figure` to be saved or logged."""

from svae.figures.animation import write_gif
from svae.figures.attention import MOST_ATTENTION, attention_figure
from svae.figures.clusters import aligned_figure, clusters_of, confusion_figure
from svae.figures.curves import curves_figure
from svae.figures.found_pose import Pose, found_pose_figure
from svae.figures.latents import latent_figure
from svae.figures.manifold import manifold_figure, manifold_z
from svae.figures.particles import class_averages_figure, particles_figure, slices_figure
from svae.figures.poses import pose_figure, pose_histogram_figure
from svae.figures.reconstructions import reconstruction_figure
from svae.figures.rotations import rotation_figure
from svae.figures.samples import interpolation_figure, samples_figure
from svae.figures.sweep import Curve, Point, learning_figure, sweep_figure, sweep_map_figure
from svae.figures.traversals import traversal_figure, traversal_z
from svae.figures.worst import worst_figure

__all__ = [
    "MOST_ATTENTION",
    "Curve",
    "Point",
    "Pose",
    "aligned_figure",
    "attention_figure",
    "class_averages_figure",
    "clusters_of",
    "confusion_figure",
    "curves_figure",
    "found_pose_figure",
    "interpolation_figure",
    "latent_figure",
    "learning_figure",
    "manifold_figure",
    "manifold_z",
    "particles_figure",
    "pose_figure",
    "pose_histogram_figure",
    "reconstruction_figure",
    "rotation_figure",
    "samples_figure",
    "slices_figure",
    "sweep_figure",
    "sweep_map_figure",
    "traversal_figure",
    "traversal_z",
    "worst_figure",
    "write_gif",
]
