"""What is made of the rows of `metrics.csv`, whatever reads or draws them."""

import math
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["LARGEST", "LATENT_NAMES", "newest_values", "robust_range"]

#: Beyond this, a number is the trace of a training that blew up, and no axis can show it.
LARGEST = 1e30

#: The divergences that every model may have, and what a person calls their variable.
LATENT_NAMES = {
    "kl_z": "content z",
    "kl_theta": "angle θ",
    "kl_shift": "shift",
    "kl_scale": "size",
}

# Part of the values that may lie outside of an axis, at either end.
_OUTSIDE = 0.1


def newest_values(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The newest value of each metric, by its name; not every epoch has all of them."""
    return {name: value for row in rows for name, value in row.items() if "/" in name}


def robust_range(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that a few extreme values, such as those of first epochs, do not own.

    Values farther from the quartiles than three times the distance between them are left out, but
    never more than a tenth at either end.
    """
    ordered = sorted(values)
    last = len(ordered) - 1
    lower, upper = ordered[round(0.25 * last)], ordered[round(0.75 * last)]
    reach = 3 * (upper - lower)
    low = min(lower - reach, ordered[math.floor(_OUTSIDE * last)])
    high = max(upper + reach, ordered[math.ceil((1 - _OUTSIDE) * last)])
    return max(low, ordered[0]), min(high, ordered[-1])
