import pytest
import torch

from svae.finite import FiniteCheck, Suspect

NAN, INF = float("nan"), float("inf")


def check_of(*steps: tuple[list[float], float]) -> FiniteCheck:
    """Steps on images 10, 11, ... with the given losses and norms of the gradient."""
    check = FiniteCheck()
    for number, (losses, norm) in enumerate(steps):
        check.add_loss(torch.arange(10, 10 + len(losses)), torch.tensor(losses))
        check.add_step(number, torch.tensor(norm))
    return check


def test_finite_steps_are_forgotten():
    check = check_of(([1.0, 2.0], 3.0), ([1.0], 0.0))
    assert len(check) == 2
    assert check.first() is None
    assert len(check) == 0
    assert check.first() is None


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_first_step_and_its_images_are_found(bad):
    check = check_of(([1.0, 2.0], 3.0), ([1.0, bad, bad], bad), ([bad, bad], bad))
    assert check.first() == Suspect(1, [11, 12], [10, 11, 12])


def test_a_gradient_alone_names_no_image():
    assert check_of(([1.0, 2.0], NAN)).first() == Suspect(0, [], [10, 11])


def test_the_batches_of_a_step_belong_together():
    check = FiniteCheck()
    for index, loss in ((1, 1.0), (2, NAN)):
        check.add_loss(torch.tensor([index]), torch.tensor([loss]))
    check.add_step(7, torch.tensor(1.0))
    assert check.first() == Suspect(7, [2], [1, 2])
