"""Checks of arguments: a wrong value ends at construction with its name and what was expected."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

__all__ = [
    "at_least",
    "declared",
    "image_shape_of",
    "not_negative",
    "one_of",
    "positive",
    "truth_or_auto",
    "within",
]


def at_least(name: str, value: int, minimum: int) -> int:
    """`value`, if it is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}: expected a whole number of at least {minimum}, got {value!r}")
    return value


def declared(where: str, part: Any, name: str, minimum: int = 1) -> int:
    """An attribute that a part of a model must have, a whole number of at least `minimum`.

    Arguments:
        where: The part's place in the config.
        part: The part.
        name: The attribute.
        minimum: The least that it may be.
    """
    value = getattr(part, name, None)
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        found = "has no" if value is None else f"has {value!r} as its"
        raise ValueError(
            f"{where}: {type(part).__name__} {found} {name}; expected a whole number of at least "
            f"{minimum}"
        )
    return int(value)


def positive(name: str, value: float) -> float:
    """`value` as a float, if it is a finite number above zero."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a number above 0, got {value!r}")
    return float(value)


def not_negative(name: str, value: float) -> float:
    """`value`, if it is a finite number of at least 0."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}: expected a number of at least 0, got {value!r}")
    return value


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """`value`, if it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def truth_or_auto(name: str, value: bool | str) -> bool | str:
    """`value`, if it is true, false or `auto`."""
    if not isinstance(value, bool) and value != "auto":
        raise ValueError(f"{name}: expected auto, true or false, got {value!r}")
    return value


def image_shape_of(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """`(C, H, W)` as a tuple, if it is the shape of an image of at least 2x2 pixels."""
    shape = tuple(int(size) for size in image_shape)
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < 2:
        raise ValueError(
            f"image_shape: expected (channels, height, width) of at least 2x2 pixels, got {shape}"
        )
    return shape


@contextmanager
def within(section: str) -> Iterator[None]:
    """Let checks name their key by its place in the config, such as `dataset.size`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{section}.{error}") from None
