"""Likelihoods: the parameters of every pixel to the log-likelihood of an image."""

from svae.likelihoods.additive import AdditiveNoise
from svae.likelihoods.base import Likelihood
from svae.likelihoods.bernoulli import Bernoulli
from svae.likelihoods.fitting import fitting
from svae.likelihoods.gaussian import Gaussian, PerPixelGaussian

__all__ = ["AdditiveNoise", "Bernoulli", "Gaussian", "Likelihood", "PerPixelGaussian", "fitting"]
