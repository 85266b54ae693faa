import pytest
import torch

from svae.spikes import SpikeLimit


def norm_after(limit: SpikeLimit, size: float) -> float:
    gradients = [torch.full((4,), size / 4), torch.full((12,), size / 4)]  # of norm `size`
    limit.limit(gradients)
    return torch.cat(gradients).norm().item()


def test_a_spike_is_scaled_to_a_multiple_of_the_usual_norm():
    limit = SpikeLimit(5.0)
    for _ in range(10):
        assert norm_after(limit, 2.0) == pytest.approx(2.0)
    assert norm_after(limit, 200.0) == pytest.approx(10.0)
    assert norm_after(limit, 9.0) == pytest.approx(9.0)


def test_what_is_usual_follows_the_training():
    limit = SpikeLimit(5.0)
    norm_after(limit, 1.0)
    for _ in range(300):
        norm_after(limit, 100.0)
    assert norm_after(limit, 100.0) == pytest.approx(100.0)


def test_a_gradient_that_is_not_finite_changes_nothing_of_what_is_usual():
    limit = SpikeLimit(5.0)
    norm_after(limit, 2.0)
    norm_after(limit, float("nan"))
    norm_after(limit, float("inf"))
    assert norm_after(limit, 200.0) == pytest.approx(10.0)


def test_what_is_usual_is_part_of_a_checkpoint():
    limit, resumed = SpikeLimit(5.0), SpikeLimit(5.0)
    norm_after(limit, 2.0)
    resumed.load_state_dict(limit.state_dict())
    assert norm_after(resumed, 200.0) == pytest.approx(10.0)


@pytest.mark.parametrize("times", [1.0, 0.0, float("nan")])
def test_a_limit_that_is_none(times):
    with pytest.raises(ValueError, match="max_gradient_spike: expected null or a number above 1"):
        SpikeLimit(times)
