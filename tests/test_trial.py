"""A model is tried before it is trained: parts of one's own that give something else are named."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.helpers import run_command, write_particles
from torch import nn

import svae.train
from svae.datasets import Particles
from svae.encoders import MLP, GroupConv
from svae.generators import PixelMLP
from svae.likelihoods import Bernoulli, PerPixelGaussian
from svae.likelihoods import Gaussian as GaussianLikelihood
from svae.posteriors import Attention, MeanField
from svae.posteriors.sampling import Truncated
from svae.priors import Gaussian, GaussianAngle, GaussianShift, UniformAngle, VonMisesAngle
from svae.trial import try_once

NO_POSE = {"infer_theta": False, "infer_shift": False}


def batch(count=2, shape=(1, 9, 9)):
    return {"image": torch.rand(count, *shape), "index": torch.arange(count)}


def priors(**changed):
    return {
        "z": Gaussian(2),
        "theta": GaussianAngle(45.0),
        "shift": GaussianShift(1.4, (1, 9, 9)),
    } | changed


class NotSummed(Gaussian):
    def log_prob(self, value):
        return -value.abs()


class AddedUp(Gaussian):
    def log_prob(self, value):
        return -value.abs().sum()


class AColumn(Gaussian):
    def kl(self, q):
        return super().kl(q).unsqueeze(-1)


class OneMean(Gaussian):
    def kl(self, q):
        return super().kl(q).mean()


class OfTorch(Gaussian):
    def family(self, params, around=0.0):
        return torch.distributions.Normal(params[..., :2], 1.0)


class TooShort(Gaussian):
    def family(self, params, around=0.0):
        return super().family(params[..., :2], around)


class ThreeParams(Gaussian):
    def __init__(self, dims):
        super().__init__(dims)
        self.num_params = 3


class Broken(GaussianAngle):
    def log_prob(self, value):
        return value @ value


class MeanOfAll(Bernoulli):
    def log_prob(self, params, target):
        return super().log_prob(params, target).mean()


class PerChannel(Bernoulli):
    def log_prob(self, params, target):
        return super().log_prob(params, target).unsqueeze(-1)


class OneWidth(Bernoulli):
    def stddev(self, params):
        return 0.1


class Wider(MLP):
    def __init__(self, image_shape):
        super().__init__(image_shape, hidden=8)
        self.out_features = 9


class Twice(MLP):
    def forward(self, image):
        return super().forward(image), image


class NoKL(MeanField):
    def forward(self, params, frame=None):
        q = super().forward(params, frame)
        q.kl = lambda priors: {"z": torch.zeros(())}
        return q


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prior": priors(z=NotSummed(2))},
            "prior.z: NotSummed.log_prob gave (3, 2, 2); expected (3, 2)",
        ),
        ({"prior": priors(z=AddedUp(2))}, "prior.z: AddedUp.log_prob gave (); expected (3, 2)"),
        ({"prior": priors(z=AColumn(2))}, "prior.z: AColumn.kl gave (2, 1); expected (2,)"),
        ({"prior": priors(z=OneMean(2))}, "prior.z: OneMean.kl gave (); expected (2,)"),
        (
            {"prior": priors(z=OfTorch(2))},
            "prior.z: OfTorch.family gave Normal without distance; expected a Distribution of ",
        ),
        (
            {"prior": priors(z=TooShort(2))},
            "prior.z: TooShort.family(...).mode gave (2, 1); expected (2, 2)",
        ),
        (
            {"prior": priors(z=ThreeParams(2))},
            "prior.z: ThreeParams.family(...).stddev gave (2, 1); expected (2, 2)",
        ),
        (
            {"prior": priors(theta=Broken(45.0))},
            "prior.theta: Broken.log_prob raised RuntimeError: ",
        ),
        (
            {"likelihood": MeanOfAll},
            "model.likelihood: MeanOfAll.log_prob gave (); expected (2, 81)",
        ),
        (
            {"likelihood": PerChannel},
            "model.likelihood: PerChannel.log_prob gave (2, 81, 1); expected (2, 81)",
        ),
        (
            {"likelihood": OneWidth},
            "model.likelihood: OneWidth.stddev gave float; expected (2, 81, 1)",
        ),
        (
            {"encoder": Wider},
            "model.encoder: Wider with out_features 9 gave (2, 8); expected (2, 9)",
        ),
        (
            {"encoder": partial(Twice, hidden=8)},
            "model.encoder: Twice with out_features 8 gave tuple; expected (2, 8)",
        ),
        ({"posterior": NoKL}, "model.posterior: NoKL.kl of z gave (); expected (2,)"),
    ],
)
def test_what_gives_something_else_is_named(make_model, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as raised:
        try_once(make_model(**options), batch())
    assert "\n" not in str(raised.value)


def test_a_training_that_would_break_off_does_not_begin(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("SVAE_TRUSTED_TARGETS", "tests")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    run, mine = tmp_path / "run", "prior.z._target_=tests.test_trial.NotSummed"
    with pytest.raises(SystemExit) as stopped:
        run_command(svae.train.main, f"hydra.run.dir={run}", "dataset.train_copies=1", mine)
    assert stopped.value.code == 2
    assert "prior.z: NotSummed.log_prob gave (3, 2, 2); expected (3, 2)" in capfd.readouterr().out
    assert not (run / "config.yaml").exists()


ATTENDS = {
    "encoder": partial(GroupConv, group_order=4, channels=4, kernel_size=9, padding=2),
    "posterior": partial(Attention, sampling=Truncated(2)),
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"z_dim": 0, "prior": priors(z=Gaussian(0))},
        {"infer_scale": True},
        {"second_look": True, "pixels_per_image": 10, "pose_candidates": 4},
        {"prior": priors(theta=UniformAngle()), "likelihood": PerPixelGaussian},
        {"prior": priors(theta=VonMisesAngle(None))},
        {"likelihood": partial(GaussianLikelihood, mask_radius_px=3.0, object_radius_px=3.0)},
        {"generator": partial(PixelMLP, hidden=8), **NO_POSE},
        ATTENDS,
        {**ATTENDS, "second_look": True},
    ],
)
def test_parts_of_svae_are_fine(make_model, options, count):
    try_once(make_model(**options), batch(count))


def test_particles_with_their_ctf_are_fine(make_model, tmp_path):
    data = Particles(str(write_particles(tmp_path)), ctf="forward")
    data.setup()
    two = data.sources["train"][torch.arange(2)]
    assert "ctf" in two
    shape = data.image_shape
    prior = priors(shift=GaussianShift(1.4, shape))
    try_once(make_model(shape, prior=prior, likelihood=GaussianLikelihood), two)


class Normalised(nn.Module):
    """An encoder that counts what it has seen, and drops some of it."""

    def __init__(self, image_shape):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.BatchNorm1d(8), nn.Dropout())
        self.net[0](torch.rand(2, *image_shape))
        self.out_features = 8

    def forward(self, image):
        torch.rand(1)
        return self.net(image)


def test_it_leaves_no_trace(make_model):
    model = make_model(encoder=Normalised)
    model.encoder(torch.rand(2, 1, 9, 9))
    model.train()
    model.generator.eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    images, state = batch(), torch.get_rng_state()
    try_once(model, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())
