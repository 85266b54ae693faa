"""Selections: which particles, by their number."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SUFFIXES", "read_indices"]

#: The files that hold numbers of particles.
SUFFIXES = (".npy", ".pkl", ".txt")

#: All that a pickled array of numbers asks for, under the names of NumPy 1 and 2.
_HARMLESS = {
    (module, name)
    for core in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{core}.multiarray", "_reconstruct"),
        (f"{core}.multiarray", "scalar"),
        (f"{core}.numeric", "_frombuffer"),
    )
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class _Numbers(pickle.Unpickler):
    """Reads numbers and arrays of them; a pickle that names anything else is refused, not run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_indices(path: Path, count: int) -> np.ndarray:
    """The particles that a file selects, in its order, numbered from 0.

    Arguments:
        path: A `.npy` or `.pkl` with whole numbers, or with one truth value per particle; or a
            `.txt` with a whole number per line.
        count: How many particles there are.

    Returns:
        Their numbers, (M,), int64.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else, a number twice, one out of range, or none.
    """
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        elif path.suffix == ".txt":
            values = np.array([int(line) for line in path.read_text().split()], dtype=np.int64)
        else:
            with path.open("rb") as file:
                values = np.asarray(_Numbers(file).load())
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(
            f"{path}: expected the numbers of particles, from 0 ({error}); "
            f"{', '.join(SUFFIXES)} files are read"
        ) from error
    if values.dtype == bool and values.shape == (count,):
        values = np.flatnonzero(values)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: expected a list of whole numbers, got {values.dtype} of shape {values.shape}"
        )
    if not len(values):
        raise ValueError(f"{path}: it selects no particle")
    outside = values[(values < 0) | (values >= count)]
    if len(outside):
        raise ValueError(
            f"{path}: expected numbers from 0 to {count - 1}, the particles that there are, "
            f"got {outside[0]} ({len(outside)} of {len(values)} are outside)"
        )
    unique, times = np.unique(values, return_counts=True)
    if len(unique) < len(values):
        raise ValueError(
            f"{path}: {int((times > 1).sum())} particles are there more than once, "
            f"such as {unique[times > 1][0]}"
        )
    return values.astype(np.int64)
