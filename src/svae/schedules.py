"""Learning-rate schedules, in the form that Lightning takes them."""

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from svae.checks import at_least, one_of, positive

__all__ = ["Schedule", "constant", "cosine", "plateau", "scheduled"]

#: From an optimiser and the number of training steps to Lightning's description of a schedule,
#: or to one of torch that is stepped once in an epoch.
Schedule = Callable[[Optimizer, float], dict[str, Any] | LRScheduler]

#: What a description may say beside `scheduler`.
_SAID = ("interval", "frequency", "monitor", "name")


def scheduled(
    make: Callable[..., Any], optimizer: Optimizer, total_steps: float
) -> dict[str, Any]:
    """Lightning's description of a schedule, checked.

    Arguments:
        make: A `Schedule`, or a class of `torch.optim.lr_scheduler` with its arguments (a
            `functools.partial`), which is stepped once in an epoch.
        optimizer: The optimiser.
        total_steps: The number of training steps.

    Raises:
        ValueError: It is torch's `ReduceLROnPlateau`, which does not know what to look at, or no
            description.
    """
    made = getattr(make, "func", make)
    if not (isinstance(made, type) and issubclass(made, LRScheduler)):
        return _described(make(optimizer, total_steps))
    if issubclass(made, ReduceLROnPlateau):
        raise ValueError("scheduler: expected scheduler=plateau, got torch's ReduceLROnPlateau")
    return {"scheduler": make(optimizer), "interval": "epoch"}


def _described(made: Any) -> dict[str, Any]:
    """What a schedule of one's own gave, as a description."""
    if isinstance(made, LRScheduler):
        made = {"scheduler": made, "interval": "epoch"}
    if not isinstance(made, dict):
        got = "None" if made is None else type(made).__name__
        raise ValueError(
            f"scheduler: expected one of torch.optim.lr_scheduler or a dictionary, got {got}"
        )
    for key in made:
        one_of("scheduler: a key of the dictionary", key, ("scheduler", *_SAID))
    scheduler, monitor = made.get("scheduler"), made.get("monitor")
    if not isinstance(scheduler, LRScheduler):
        raise ValueError(
            "scheduler: expected a dictionary with one of torch.optim.lr_scheduler under "
            f"scheduler, got {type(scheduler).__name__}"
        )
    one_of("scheduler.interval", made.get("interval", "epoch"), ("epoch", "step"))
    at_least("scheduler.frequency", made.get("frequency", 1), 1)
    if isinstance(scheduler, ReduceLROnPlateau) and not isinstance(monitor, str):
        raise ValueError(
            "scheduler.monitor: expected the name of a metric, such as val/elbo, for "
            f"ReduceLROnPlateau, got {monitor!r}"
        )
    return made


def constant(optimizer: Optimizer, total_steps: float) -> dict[str, Any]:
    """The learning rate as it is, from first to last (the paper)."""
    return {"scheduler": LambdaLR(optimizer, lambda step: 1.0), "interval": "epoch"}


def cosine(
    optimizer: Optimizer, total_steps: float, warmup: float = 0.02, final: float = 0.01
) -> dict[str, Any]:
    """A linear rise, then half a cosine down to a fraction of the learning rate.

    Arguments:
        optimizer: The optimiser.
        total_steps: The number of training steps; must be finite.
        warmup: The fraction of the steps that the rise takes.
        final: The fraction of the learning rate that is left at the end.
    """
    if not math.isfinite(total_steps):
        raise ValueError("scheduler: cosine needs trainer.max_epochs or trainer.max_steps")
    for name, value in (("warmup", warmup), ("final", final)):
        if not 0 <= value < 1:
            raise ValueError(f"{name}: expected a fraction from 0 to below 1, got {value!r}")
    rise = max(1.0, warmup * total_steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        part = min(1.0, (step - rise) / max(1.0, total_steps - rise))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * part))

    return {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}


def plateau(
    optimizer: Optimizer, total_steps: float, factor: float = 0.5, patience: int = 10
) -> dict[str, Any]:
    """The learning rate cut whenever the validation bound has stood still for a while.

    Arguments:
        optimizer: The optimiser.
        total_steps: Not needed.
        factor: What the learning rate is multiplied with.
        patience: How many validations without improvement are borne.
    """
    scheduler = ReduceLROnPlateau(
        optimizer,
        mode="max",
        factor=positive("factor", factor),
        patience=at_least("patience", patience, 0),
        threshold=1e-4,
        threshold_mode="abs",
    )
    return {"scheduler": scheduler, "interval": "epoch", "monitor": "val/elbo"}
