"""Numbers that every step needs, made once for each device."""

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Generic, TypeVar

import torch

__all__ = ["Constant"]

T = TypeVar("T")


class Constant(Generic[T]):
    """A function whose results are kept: a GPU is waited for by whatever is copied to it.

    Arguments:
        make: Makes a constant from hashable arguments, a device among them.
    """

    def __init__(self, make: Callable[..., T]) -> None:
        self.make, self.__doc__ = make, make.__doc__
        # What is first made in inference has to serve training too.
        self._kept = lru_cache(maxsize=64)(torch.inference_mode(False)(make))

    def __call__(self, *args: Hashable) -> T:
        # A compiler folds constants itself, and warns of caches.
        return self.make(*args) if torch.compiler.is_compiling() else self._kept(*args)

    def forget(self) -> None:
        """Make everything anew at its next use."""
        self._kept.cache_clear()
