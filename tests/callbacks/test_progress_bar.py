"""The bar in the terminal."""

from types import SimpleNamespace

import torch

from svae.callbacks import ProgressBar

TRAINER = SimpleNamespace(loggers=[], progress_bar_metrics={"val/elbo": -3.0})


def test_it_shows_the_objective_of_the_newest_batch():
    bar = ProgressBar()
    module = SimpleNamespace(newest_objective=torch.tensor([-1.0, -2.0]))
    assert bar.get_metrics(TRAINER, module) == {"val/elbo": -3.0, "objective": -1.5}
    module.newest_objective = None  # before the first
    assert bar.get_metrics(TRAINER, module) == {"val/elbo": -3.0}
