import logging

import pytest
import torch

from svae.inferred import Inferred
from svae.metrics import PerImage
from svae.module import VAEModule


def test_latents_that_are_not_finite_do_not_cost_the_other_results(
    make_model, monkeypatch, caplog
):
    module = VAEModule(make_model(), torch.optim.Adam, lambda optimizer, steps: {})
    module.per_image = PerImage(Inferred.names_in({"theta": torch.zeros(3)}))
    values = {
        "inferred_z": torch.zeros(3, 2),
        "inferred_theta": torch.tensor([0.0, float("nan"), 1.0]),
        "inferred_shift": torch.zeros(3, 2),
        "log_likelihood": torch.zeros(3),
        "theta": torch.zeros(3),
    }
    module.per_image.update(index=torch.arange(3), **values)
    logged = []
    monkeypatch.setattr(module, "_log_means", logged.append)
    monkeypatch.setattr(module, "log_dict", lambda metrics: pytest.fail(str(metrics)))
    with caplog.at_level(logging.WARNING):
        module.on_test_epoch_end()
    assert logged == ["test"]
    assert "not finite" in caplog.text
