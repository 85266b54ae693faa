import math

import numpy as np
import pytest
import torch
from scipy import stats

from svae.metrics import conformation_metrics


def angles(count=4001):
    return torch.arange(count) * (2 * math.pi / count)


def test_the_best_component_counts_whatever_its_sign():
    random = torch.Generator().manual_seed(0)
    conformation = torch.rand(2000, generator=random)
    noise = torch.randn(2000, 2, generator=random)
    z = torch.stack((noise[:, 0], -3 * conformation + 0.2 * noise[:, 1] + 7), dim=1)
    found = conformation_metrics(z, conformation)
    assert found == {
        "conformation_correlation": pytest.approx(-np.corrcoef(z[:, 1], conformation)[0, 1])
    }
    assert conformation_metrics(z[:, :1], conformation)["conformation_correlation"] < 0.1


def test_normal_content_of_a_uniform_conformation_is_bounded():
    conformation = (torch.arange(100_000) + 0.5).double() / 100_000
    z = torch.special.ndtri(conformation).unsqueeze(1)
    expected = math.sqrt(3 / math.pi)
    found = conformation_metrics(z, conformation)["conformation_correlation"]
    assert found == pytest.approx(expected, abs=1e-3)


def test_content_that_is_the_angle_or_a_wave_of_it():
    theta = angles()
    still = torch.rand(len(theta), generator=torch.Generator().manual_seed(0))
    for z, circular, linear in (
        (theta - math.pi, 1.0, math.sqrt(6) / math.pi),
        (math.pi - theta, 1.0, math.sqrt(6) / math.pi),
        (torch.cos(theta - 0.7), 0.0, 1.0),
        (still, 0.0, 0.0),
    ):
        found = conformation_metrics(z.unsqueeze(1), still, theta)
        assert found["z_theta_circular_correlation"] == pytest.approx(circular, abs=0.05)
        assert found["z_theta_correlation"] == pytest.approx(linear, abs=0.05)


def test_the_multiple_correlation_is_mardias():
    random = np.random.default_rng(0)
    theta = random.vonmises(0.4, 1.0, 500)
    z = np.sin(theta + 1) + random.normal(size=500)
    c, s = np.cos(theta), np.sin(theta)
    rc, rs, rcs = (stats.pearsonr(a, b)[0] for a, b in ((z, c), (z, s), (c, s)))
    expected = math.sqrt((rc**2 + rs**2 - 2 * rc * rs * rcs) / (1 - rcs**2))
    found = conformation_metrics(torch.tensor(z)[:, None], torch.tensor(z), torch.tensor(theta))
    assert found["z_theta_correlation"] == pytest.approx(expected, rel=1e-9)


def test_constants_are_no_correlation():
    theta, constant = angles(50), torch.full((50, 1), 0.3)
    found = conformation_metrics(constant, torch.rand(50), theta)
    assert found["conformation_correlation"] == found["z_theta_correlation"] == 0
    found = conformation_metrics(torch.rand(50, 1), torch.full((50,), 0.1), torch.zeros(50))
    assert found["conformation_correlation"] == found["z_theta_correlation"] == 0


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"z, conformation: expected shapes .*got \(5, 0\)"):
        conformation_metrics(torch.rand(5, 0), torch.rand(5))
