"""Generators: coordinates in the object frame and content to the parameters of every pixel."""

from svae.generators.coordinate_mlp import CoordinateMLP
from svae.generators.pixel_mlp import PixelMLP

__all__ = ["CoordinateMLP", "PixelMLP"]
