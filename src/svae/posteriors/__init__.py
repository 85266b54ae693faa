"""Posteriors: features of an image to a distribution over its latent variables."""

from svae.posteriors.attention import Attention, AttentionPosterior
from svae.posteriors.base import Frame, Posterior, PosteriorHead
from svae.posteriors.mean_field import MeanField, MeanFieldPosterior

__all__ = [
    "Attention",
    "AttentionPosterior",
    "Frame",
    "MeanField",
    "MeanFieldPosterior",
    "Posterior",
    "PosteriorHead",
]
