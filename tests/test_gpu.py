"""What a GPU would do in a training step, on tensors that have a device and no numbers.

No machine of CI's has a GPU. These tests cannot show how fast one is or that it has every kernel;
they show that nothing of a step's bound, in float32, is left on the processor, and that none of it
waits. Gradients of such tensors need a driver.
"""

from collections.abc import Iterator

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import open_dict
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from svae import distributions, geometry, von_mises
from svae.instantiate import instantiate
from svae.metrics import collect
from svae.noise import Noise
from svae.paths import conf_dir

GPU = torch.device("cuda", 0)
BATCH = 4


class Copies(TorchDispatchMode):
    """Notes what is copied to the GPU: the processor waits for that."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        from_processor = any(isinstance(x, torch.Tensor) and x.device.type == "cpu" for x in args)
        if func is torch.ops.aten._to_copy.default and from_processor and result.is_cuda:
            self.found.append(tuple(result.shape))
        return result


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Constants of other tests have numbers, and those of these tests have none."""
    kept = geometry._grid_on, distributions._entropies, von_mises._rule, collect._mask
    for one in kept:
        one.forget()
    yield
    for one in kept:
        one.forget()


def model_for(*overrides):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = compose("train", overrides=["model/likelihood=bernoulli", *overrides])
    with open_dict(cfg):
        cfg.model.image_shape = [1, 28, 28]
    return instantiate(cfg.model, "model")


def to_gpu(model):
    """As `model.to(GPU)`, which cannot replace parameters by those without numbers."""
    for part in model.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    there = torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)
                    tensors[name] = Parameter(there) if tensors is part._parameters else there
    return model


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("prior=uniform",),
        ("prior=von_mises",),
        ("model.pixels_per_image=null",),
        ("model.augment_rotation=true", "model.augment_mirror=true"),
        ("model.centre_std_px=1",),
        ("model=vanilla_vae",),
        ("model/encoder=cnn",),
        ("model=target_vae", "prior=uniform", "model.encoder.kernel_size=14"),
        ("model=target_vae", "model/posterior/sampling=soft", "model.encoder.kernel_size=14"),
    ],
    ids=" ".join,
)
def test_nothing_of_a_bound_is_elsewhere_or_waits(overrides):
    """A number that is read, or tensors of two devices, would raise."""
    model = model_for(*overrides)

    def step(number):
        return model.training_elbo(image, Noise(1, number, index), 0).objective(model.beta)

    with FakeTensorMode(), torch.backends.cudnn.flags(enabled=False):  # which it does not know
        to_gpu(model)
        image = torch.zeros(BATCH, 1, 28, 28, device=GPU)
        index = torch.arange(BATCH, device=GPU)
        assert step(0).device == GPU
        with Copies() as copies:
            step(1)
    assert copies.found == []
