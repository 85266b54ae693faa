"""Priors: one latent variable's prior, the posterior family that matches it, and their KL."""

from svae.priors.base import Prior
from svae.priors.gaussian import (
    Gaussian,
    GaussianAngle,
    GaussianLogScale,
    GaussianShift,
    TargetVAEAngle,
)
from svae.priors.uniform import UniformAngle
from svae.priors.von_mises import VonMisesAngle

__all__ = [
    "Gaussian",
    "GaussianAngle",
    "GaussianLogScale",
    "GaussianShift",
    "Prior",
    "TargetVAEAngle",
    "UniformAngle",
    "VonMisesAngle",
]
