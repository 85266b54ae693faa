"""The figures; each is a plain `matplotlib.figure.Figure` to be saved or logged."""

from svae.figures.manifold import manifold_figure, manifold_z
from svae.figures.reconstructions import reconstruction_figure

__all__ = ["manifold_figure", "manifold_z", "reconstruction_figure"]
