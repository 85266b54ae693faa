"""What is made once for each device."""

import warnings

import torch

from svae.constants import Constant

CPU = torch.device("cpu")


def made_twos():
    made = []

    @Constant
    def two(device):
        """Two."""
        made.append(device)
        return torch.full((), 2.0, device=device)

    return two, made


def test_it_is_made_once_and_serves_training():
    """Even where inference asked for it first, whose tensors a backward pass refuses."""
    two, made = made_twos()
    with torch.inference_mode():
        assert two(CPU) == 2
    x = torch.ones((), requires_grad=True)
    (two(CPU) * x).backward()
    assert x.grad == 2
    assert made == [CPU]
    assert two.__doc__ == "Two."
    two.forget()
    two(CPU)
    assert made == [CPU, CPU]


def test_a_compiler_sees_no_cache():
    """It would warn of one for every user of `compile=true`."""

    @Constant
    def two(device):
        return torch.full((), 2.0, device=device)

    compiled = torch.compile(lambda x: x * two(x.device), backend="eager", fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled(torch.ones(3)).tolist() == [2, 2, 2]
