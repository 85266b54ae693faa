"""Posteriors: features of an image to a distribution over its latent variables."""

from svae.posteriors.base import Posterior
from svae.posteriors.mean_field import MeanField, MeanFieldPosterior

__all__ = ["MeanField", "MeanFieldPosterior", "Posterior"]
