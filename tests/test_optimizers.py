"""The optimiser: square matrices by Muon, everything else by Adam."""

import copy

import pytest
import torch
from torch import nn

from svae.optimizers import Muon, near_orthogonal
from svae.schedules import cosine


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 16), nn.Linear(16, 3)).double()


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(20, 5, generator=torch.Generator().manual_seed(step)).double()
        optimizer.zero_grad()
        (model(x) - x[:, :3].sin()).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("iterations", [3, 5])
def test_singular_values_come_near_one(iterations):
    # As uneven as gradients are: the largest direction a hundred times the smallest.
    u, _ = torch.linalg.qr(torch.randn(64, 64).double())
    v, _ = torch.linalg.qr(torch.randn(64, 64).double())
    values = torch.logspace(-1, 1, 64).double()
    matrix = near_orthogonal(u * values @ v.mT, iterations)
    found = u.mT @ matrix.double() @ v
    spread = found.diagonal()
    assert spread.max() < 1.3
    assert spread[values > 1].min() > 0.6  # the smallest need more iterations
    assert spread.min() > (0.6 if iterations == 5 else 0.1)
    assert (found - spread.diag()).abs().max() < 0.05  # the directions stay


def test_what_is_not_square_is_trained_as_by_adam():
    model = network()
    before = copy.deepcopy(model)
    optimizer = Muon(model.parameters(), lr=0.02)
    adam = torch.optim.Adam(before.parameters(), lr=0.02)
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        a.grad = torch.ones_like(a)
        b.grad = torch.ones_like(b)
    optimizer.step()
    adam.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before.get_parameter(name)) == (name != "2.weight"), name


def test_a_square_matrix_moves_the_same_in_every_direction():
    p = nn.Parameter(torch.zeros(16, 16).double())
    optimizer = Muon([p], lr=0.1)
    p.grad = 1e-6 * (torch.eye(16).double() + 0.01 * torch.randn(16, 16).double())
    optimizer.step()
    moved = torch.linalg.svdvals(p.detach())
    assert moved.max() < 1.3 * 0.1 * 4
    assert moved.min() > 0.6 * 0.1 * 4
    assert p.diagonal().max() < 0  # downhill


def test_large_matrices_are_left_to_adam():
    model, other = network(), network()
    other.load_state_dict(model.state_dict())
    steps(model, Muon(model.parameters(), lr=0.02, largest=15), 0, 3)
    steps(other, torch.optim.Adam(other.parameters(), lr=0.02), 0, 3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_learns_and_goes_on_from_a_checkpoint_exactly():
    model = network()
    optimizer = Muon(model.parameters(), lr=0.01)
    start = copy.deepcopy(model)
    steps(model, optimizer, 0, 4)
    resumed = copy.deepcopy(model)
    again = Muon(resumed.parameters(), lr=0.01)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(model, optimizer, 4, 60)
    steps(resumed, again, 4, 60)
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)

    x = torch.randn(500, 5).double()
    loss = [(m(x) - x[:, :3].sin()).square().mean().item() for m in (start, model)]
    assert loss[1] < 0.2 * loss[0]


def test_a_schedule_reaches_both_kinds():
    model = network()
    optimizer = Muon(model.parameters(), lr=0.01)
    schedule = cosine(optimizer, 10, warmup=0.0, final=0.1)["scheduler"]
    optimizer.step()
    for _ in range(10):
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.001, 0.001])


def test_a_gradient_of_zero_moves_nothing():
    p = nn.Parameter(torch.randn(16, 16))
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    Muon([p]).step()
    assert torch.equal(p, before)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"lr": 0.0}, "lr"),
        ({"momentum": 1.0}, "momentum"),
        ({"iterations": 0}, "iterations"),
        ({"largest": -1}, "largest"),
    ],
)
def test_values_that_make_no_sense(options, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        Muon(network().parameters(), **options)
