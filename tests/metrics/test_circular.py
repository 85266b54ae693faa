"""Correlations of angles: perfect agreement, invariances, known values, independent formulas."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import circmean
from torch import Tensor

from svae.metrics import circular_correlation, circular_correlation_plain

N = 4000


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def uniform(n: int, generator: torch.Generator) -> Tensor:
    return 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64)


def lattice(n: int) -> Tensor:
    """Angles whose resultants vanish exactly."""
    return 2 * math.pi * torch.arange(n, dtype=torch.float64) / n


@pytest.mark.parametrize("offset", [0.0, 1.3, math.pi, -40.0])
def test_agreement_up_to_an_offset_is_one_and_reflection_minus_one(offset: float) -> None:
    a = lattice(60)
    assert circular_correlation(a, a + offset).item() == pytest.approx(1, abs=1e-12)
    assert circular_correlation(a, offset - a).item() == pytest.approx(-1, abs=1e-12)


def test_plain_agreement_is_one_for_crowded_angles(generator: torch.Generator) -> None:
    a = 0.4 * torch.randn(50, generator=generator)
    assert circular_correlation_plain(a, a + 2.0).item() == pytest.approx(1, abs=1e-6)
    assert circular_correlation_plain(a, 2.0 - a).item() == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("correlation", [circular_correlation, circular_correlation_plain])
def test_offsets_full_turns_and_order_change_nothing(correlation, generator) -> None:
    a = uniform(40, generator)
    b = a + 0.7 * torch.randn(40, generator=generator, dtype=torch.float64)
    expected = correlation(a, b).item()
    turns = 2 * math.pi * torch.arange(40, dtype=torch.float64)
    assert correlation(b, a).item() == pytest.approx(expected, abs=1e-10)
    assert correlation(a + 1.1, b - 2.3).item() == pytest.approx(expected, abs=1e-10)
    assert correlation(a + turns, b).item() == pytest.approx(expected, abs=1e-10)
    assert correlation(-a, b).item() == pytest.approx(-expected, abs=1e-10)


def test_uniform_form_is_the_best_choice_of_both_directions(generator: torch.Generator) -> None:
    """E[sin(a-mu) sin(b-nu)] / 0.5 with its two cosines at their extremes, by search."""
    a, b = uniform(30, generator), uniform(30, generator)
    turn = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)
    largest = [
        max(torch.cos(angle - part.unsqueeze(-1)).mean(dim=-1).max() for part in turn.split(5000))
        for angle in (a - b, a + b)
    ]
    expected = (largest[0] - largest[1]).item()
    assert circular_correlation(a, b).item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("sigma", [0.2, 0.6, 1.2])
def test_uniform_form_of_a_noisy_copy(sigma: float, generator: torch.Generator) -> None:
    """|E e^{i noise}| = exp(-sigma^2 / 2) of a wrapped normal."""
    a = uniform(20_000, generator)
    b = a + sigma * torch.randn(len(a), generator=generator, dtype=torch.float64)
    expected = math.exp(-(sigma**2) / 2)
    assert circular_correlation(a, b).item() == pytest.approx(expected, abs=0.02)


def test_uniform_form_of_crowded_angles_is_below_one(generator: torch.Generator) -> None:
    """For a normal angle with itself: 1 - |E e^{2ia}| = 1 - exp(-2 sigma^2)."""
    a = math.pi / 4 * torch.randn(20_000, generator=generator, dtype=torch.float64)
    expected = 1 - math.exp(-2 * (math.pi / 4) ** 2)
    assert circular_correlation(a, a).item() == pytest.approx(expected, abs=0.01)


def test_independent_angles_are_near_zero(generator: torch.Generator) -> None:
    a, b = uniform(N, generator), uniform(N, generator)
    assert abs(circular_correlation(a, b).item()) < 4 / math.sqrt(N)
    assert abs(circular_correlation_plain(a, b).item()) < 4 / math.sqrt(N)


def test_plain_form_against_scipy_means(generator: torch.Generator) -> None:
    a = 0.8 * torch.randn(25, generator=generator, dtype=torch.float64) + 3
    b = 0.5 * a + 0.4 * torch.randn(25, generator=generator, dtype=torch.float64)
    sin_a = np.sin(a.numpy() - circmean(a.numpy()))
    sin_b = np.sin(b.numpy() - circmean(b.numpy()))
    expected = np.sum(sin_a * sin_b) / np.sqrt(np.sum(sin_a**2) * np.sum(sin_b**2))
    assert circular_correlation_plain(a, b).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("correlation", [circular_correlation, circular_correlation_plain])
@pytest.mark.parametrize("constant", [0.0, 0.1, -7.7])
def test_a_constant_gives_zero(correlation, constant: float) -> None:
    a = lattice(17)
    same = torch.full_like(a, constant)
    assert correlation(a, same).item() == pytest.approx(0, abs=1e-12)
    assert correlation(same, a).item() == pytest.approx(0, abs=1e-12)
    assert correlation(same, same).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("correlation", [circular_correlation, circular_correlation_plain])
@pytest.mark.parametrize("shapes", [((3,), (4,)), ((0,), (0,)), ((3, 1), (3, 1))])
def test_shapes_are_checked(correlation, shapes) -> None:
    with pytest.raises(ValueError, match="angles: expected two tensors of one shape"):
        correlation(*(torch.zeros(shape) for shape in shapes))
