"""Encoders: an image to features, from which a posterior is made."""

from svae.encoders.cnn import CNN
from svae.encoders.group_conv import GroupConv
from svae.encoders.mlp import MLP

__all__ = ["CNN", "MLP", "GroupConv"]
