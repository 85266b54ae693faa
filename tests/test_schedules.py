from functools import partial
from itertools import pairwise

import pytest
import torch

from svae.schedules import constant, cosine, plateau, scheduled

torch_s = torch.optim.lr_scheduler


def optimizer(lr=2.0):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr)


def rates(schedule, steps, **options):
    opt = optimizer()
    scheduler = schedule(opt, steps, **options)["scheduler"]
    seen = []
    for _ in range(steps):
        seen.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return seen


def test_cosine_rises_then_falls_to_its_fraction():
    seen = rates(cosine, 1000, warmup=0.1, final=0.05)
    assert seen[0] < 0.03
    assert max(seen) == pytest.approx(2.0, rel=0.02)
    assert 90 <= seen.index(max(seen)) <= 110
    assert seen[-1] == pytest.approx(0.1, rel=0.01)
    assert all(a <= b for a, b in pairwise(seen[:100]))
    assert all(a >= b for a, b in pairwise(seen[101:]))


def test_constant_stays():
    assert set(rates(constant, 10)) == {2.0}


def test_cosine_needs_an_end():
    with pytest.raises(ValueError, match="max_epochs"):
        cosine(optimizer(), float("inf"))


def test_plateau_cuts_when_the_bound_stands_still():
    opt = optimizer()
    described = plateau(opt, 100, factor=0.5, patience=2)
    assert described["monitor"] == "val/elbo"
    for value in (-10.0, -9.0, -9.0, -9.0):
        described["scheduler"].step(value)
    assert opt.param_groups[0]["lr"] == 2.0
    described["scheduler"].step(-9.0)
    assert opt.param_groups[0]["lr"] == 1.0


def test_a_schedule_of_torch_is_stepped_once_in_an_epoch():
    described = scheduled(partial(torch_s.StepLR, step_size=2, gamma=0.1), optimizer(), 1000)
    assert described["interval"] == "epoch"
    assert isinstance(described["scheduler"], torch_s.StepLR)
    ours = scheduled(partial(cosine, final=0.5), optimizer(), 100)
    assert ours["interval"] == "step"
    with pytest.raises(ValueError, match="scheduler=plateau"):
        scheduled(partial(torch_s.ReduceLROnPlateau, patience=3), optimizer(), 100)


def test_a_schedule_of_one_s_own_may_give_one_of_torch():
    described = scheduled(lambda opt, steps: torch_s.StepLR(opt, 3), optimizer(), 1000)
    assert described["interval"] == "epoch"
    assert isinstance(described["scheduler"], torch_s.StepLR)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda opt: None, "scheduler: expected one of torch.* or a dictionary, got None$"),
        (lambda opt: [torch_s.StepLR(opt, 3)], "or a dictionary, got list$"),
        (lambda opt: {}, "under scheduler, got NoneType$"),
        (lambda opt: {"scheduler": opt}, "under scheduler, got SGD$"),
        (
            lambda opt: {"schedule": torch_s.StepLR(opt, 3)},
            "a key of the dictionary: expected one of scheduler, interval, .* got 'schedule'$",
        ),
        (
            lambda opt: {"scheduler": torch_s.StepLR(opt, 3), "interval": "steps"},
            "scheduler.interval: expected one of epoch, step, got 'steps'$",
        ),
        (
            lambda opt: {"scheduler": torch_s.StepLR(opt, 3), "frequency": 0},
            "scheduler.frequency: expected a whole number of at least 1, got 0$",
        ),
        (lambda opt: torch_s.ReduceLROnPlateau(opt), "scheduler.monitor: .* got None$"),
    ],
)
def test_what_is_no_schedule_is_told(made, told):
    with pytest.raises(ValueError, match=told):
        scheduled(lambda opt, steps: made(opt), optimizer(), 1000)
