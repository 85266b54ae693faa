"""Fixtures that many tests share."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from svae.encoders import MLP
from svae.generators import CoordinateMLP
from svae.likelihoods import Bernoulli
from svae.model import SpatialVAE
from svae.posteriors import MeanField
from svae.priors import Gaussian, GaussianAngle, GaussianLogScale, GaussianShift


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_model() -> Callable[..., SpatialVAE]:
    """A small model; keyword arguments replace its parts and options."""

    def make(
        image_shape: tuple[int, int, int] = (1, 9, 9), z_dim: int = 2, **options: object
    ) -> SpatialVAE:
        parts: dict[str, object] = {
            "prior": {
                "z": Gaussian(z_dim),
                "theta": GaussianAngle(45.0),
                "shift": GaussianShift(1.4, image_shape),
                "scale": GaussianLogScale(0.2),
            },
            "encoder": partial(MLP, hidden=16),
            "posterior": MeanField,
            "generator": partial(CoordinateMLP, hidden=16),
            "likelihood": Bernoulli,
        }
        return SpatialVAE(image_shape, z_dim, **(parts | options))  # type: ignore[arg-type]

    return make
