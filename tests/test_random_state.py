from types import SimpleNamespace

import pytest
import torch

from svae.module import VAEModule
from svae.random_state import random_state, restore_random_state

CPU = torch.device("cpu")


def states_of(processes):
    """The states of processes of which each has drawn more, and what each draws next."""
    states, draws = [], []
    for _ in range(processes):
        states.append(random_state(CPU)["cpu"])
        draws.append(torch.rand(3))
    return {"cpu": torch.stack(states)}, draws


def resumed(model, checkpoint, rank, world_size):
    """What a process draws in a training that goes on from a checkpoint."""
    module = VAEModule(model, torch.optim.Adam, lambda optimizer, steps: {})
    strategy = SimpleNamespace(root_device=CPU)
    module.trainer = SimpleNamespace(world_size=world_size, global_rank=rank, strategy=strategy)
    module.on_load_checkpoint(checkpoint)
    torch.manual_seed(123)
    module.on_train_start()
    return torch.rand(3)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_each_process_goes_on_with_its_own_numbers(rank, make_model):
    states, draws = states_of(3)
    assert torch.equal(resumed(make_model(), {"random_state": states}, rank, 3), draws[rank])


def test_what_does_not_fit_is_left(make_model):
    """A checkpoint of another number of processes, and one of an older version."""
    states, _ = states_of(3)
    torch.manual_seed(123)
    as_it_was = torch.rand(3)
    assert torch.equal(resumed(make_model(), {"random_state": states}, 0, 2), as_it_was)
    assert torch.equal(resumed(make_model(), {}, 0, 1), as_it_was)


def test_the_numbers_of_a_gpu_are_not_needed():
    state = random_state(CPU) | {"cuda": torch.zeros(16, dtype=torch.uint8)}
    drawn = torch.rand(3)
    restore_random_state(state, CPU)
    assert torch.equal(torch.rand(3), drawn)
