"""Bounds beside the evidence, where that can be summed up: whatever looks at an image before."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from svae.encoders import GroupConv
from svae.geometry import pixel_grid, pixel_size
from svae.latents import Latents
from svae.likelihoods import Gaussian as GaussianNoise
from svae.metrics.bounds import importance_weighted_bound
from svae.model import SpatialVAE
from svae.module import VAEModule
from svae.noise import Noise
from svae.posteriors import Attention
from svae.posteriors.sampling import Truncated
from svae.priors import Gaussian, GaussianAngle, GaussianShift, Prior, UniformAngle

SIDE = 12
SHAPE = (1, SIDE, SIDE)
PIXEL = pixel_size(SIDE, SIDE)
WIDTH = 1.5 * PIXEL
NOISE_STD = 0.4
COUNT = 40


def blob(points, centre):
    return torch.exp(-(points - centre).square().sum(-1) / (2 * WIDTH**2))


class Blob(nn.Module):
    """A round blob at a point (2,) of the object, in grid units."""

    coordinate_based = True

    def __init__(self, image_shape, z_dim, out_features, at):
        super().__init__()
        self.at = torch.tensor(at)
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, coords, z):
        return blob(coords, self.at).unsqueeze(-1) + 0 * self.nothing


def make_model(priors: dict[str, Prior], at, kernel, between=False) -> SpatialVAE:
    """A model whose encoder compares the blob with every lattice point, and knows nothing else."""
    model = SpatialVAE(
        SHAPE,
        0,
        {"z": Gaussian(0), **priors},
        partial(
            GroupConv,
            **{"group_order": 4, "channels": 1, "kernel_size": kernel, "padding": 0},
            **{"stride": 2, "layers": 1, "disc": False},
        ),
        partial(Attention, sampling=Truncated(points=1000), shift_offsets=between),
        partial(Blob, at=at),
        partial(GaussianNoise, std=NOISE_STD),
        infer_theta="theta" in priors,
        infer_shift="shift" in priors,
        second_look=False,
    )
    with torch.no_grad():
        points = pixel_grid(kernel, kernel) * (PIXEL / pixel_size(kernel, kernel))
        model.encoder.filters.copy_(blob(points, torch.tensor(at)).view_as(model.encoder.filters))
        model.encoder.bias.zero_()
        model.posterior.head.weight.zero_()
        model.posterior.head.bias.zero_()
        model.posterior.head.weight[0, 0] = 1 / NOISE_STD**2
        if "shift" not in priors or between:
            model.posterior.head.bias[-1] = -1.0  # the last variable's width at a point
    return model.eval()


def images_of(model, theta, shift):
    """Images (COUNT, 1, SIDE, SIDE) of objects in poses, with noise."""
    latents = Latents(torch.zeros(COUNT, 0), theta, shift)
    with torch.no_grad():
        mean = model.decode(latents)
    return mean + NOISE_STD * torch.randn_like(mean)


def log_evidence(model, images, latents, log_weights):
    """The sum over latents (S,) of their weights in the prior times the likelihood."""
    everyone = Latents(
        *(value.unsqueeze(1).expand(-1, COUNT, *value.shape[1:]) for value in latents.tensors())
    )
    with torch.no_grad():
        return (model.log_likelihood(images, everyone) + log_weights.unsqueeze(1)).logsumexp(0)


def log_prior(model, images, theta, shift):
    """The prior's logarithm at poses (S,), as it is without a frame."""
    with torch.no_grad():
        q = model.infer(images[:1], 1)
        z = torch.zeros(len(theta), 1, 0)
        return q.log_prior(Latents(z, theta.unsqueeze(1), shift.unsqueeze(1)), model.priors)[:, 0]


def bounds(model, images, candidates):
    """Of each image the mean of its ELBO, whether it is one, and the importance-weighted bound."""
    index = torch.arange(COUNT)
    with torch.no_grad():
        q = model.infer(images, candidates)
        elbo = model.elbo(images, Noise(0, "elbo", index), q=q, samples=50)
        log_weights = model.importance_log_weights(images, Noise(0, "iwae", index), 50, q)
    return elbo.value.mean(), elbo.is_bound, importance_weighted_bound(log_weights).mean()


@pytest.mark.parametrize("candidates", [1, 2, 9])
@pytest.mark.parametrize("between", [False, True])
def test_of_positions(between, candidates):
    torch.manual_seed(0)
    priors = {"theta": UniformAngle(180.0, 17.0), "shift": GaussianShift(2.0, SHAPE)}
    model = make_model(priors, (0.0, 0.0), 6, between)
    images = images_of(model, torch.zeros(COUNT), (torch.rand(COUNT, 2) * 4 - 2) * PIXEL)
    # The blob is round: of the angle there is the whole prior, whatever the image.
    angles = torch.arange(64) / 64 * 2 * math.pi
    shifts, area = model.posterior.shifts, 1.0
    if between:
        steps = torch.arange(-28, 29) / 4 * PIXEL
        shifts, area = torch.cartesian_prod(steps, steps), (PIXEL / 4) ** 2
    of_angles = log_prior(model, images, angles, shifts[:1].expand(64, 2))
    log_weights = log_prior(model, images, angles[:1].expand(len(shifts)), shifts)
    log_weights += of_angles.logsumexp(0) + math.log(2 * math.pi / 64) - of_angles[0]
    log_weights += math.log(area)
    assert log_weights.logsumexp(0).item() == pytest.approx(0, abs=0.02)
    zeros = Latents(torch.zeros(len(shifts), 0), torch.zeros(len(shifts)), shifts)
    exact = log_evidence(model, images, zeros, log_weights).mean()
    elbo, is_bound, more = bounds(model, images, candidates)
    if not between and candidates > 1:
        # A lattice that is moved to each object would have it cheaper than the prior allows.
        assert not is_bound
        assert elbo > exact + 0.2
        module = SimpleNamespace(model=model)
        q = VAEModule._bounding(module, {"image": images}, model.infer(images, candidates))
        assert q.frame is None
        return
    assert is_bound
    assert exact - 5 < elbo < exact + 0.05
    assert elbo - 0.05 < more < exact + 0.05


@pytest.mark.parametrize("candidates", [1, 2, 9])
def test_of_angles_of_a_prior_narrower_than_the_lattice(candidates):
    torch.manual_seed(0)
    model = make_model({"theta": GaussianAngle(15.0)}, (3 * PIXEL, 0.0), SIDE)
    theta = torch.randn(COUNT) * math.radians(15)
    images = images_of(model, theta, torch.zeros(COUNT, 2))
    angles = torch.arange(720) / 720 * 2 * math.pi
    nowhere = torch.zeros(720, 2)
    log_weights = log_prior(model, images, angles, nowhere) + math.log(2 * math.pi / 720)
    assert log_weights.logsumexp(0).item() == pytest.approx(0, abs=1e-3)
    latents = Latents(torch.zeros(720, 0), angles, nowhere)
    exact = log_evidence(model, images, latents, log_weights).mean()
    elbo, is_bound, more = bounds(model, images, candidates)
    assert is_bound
    assert exact - 6 < elbo < exact + 0.05
    assert elbo - 0.05 < more < exact + 0.05
