"""Labels of pictures: from sub-folders, from the array's own file, or from a file of labels."""

import csv
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from svae.datasets.picture_arrays import LABEL_NAMES, headers_of, load_array
from svae.datasets.picture_files import Source
from svae.files import natural

__all__ = ["read_labels"]


def read_labels(setting: str, source: Source) -> tuple[Tensor, list[str]] | None:
    """The number of each image's label (N,), int64, and the labels' names by that number.

    Arguments:
        setting: `auto` (what the source says by itself), `none`, or a file.
        source: The images.

    Raises:
        FileNotFoundError, ValueError: The file cannot be read, or does not fit the images.
    """
    if setting == "none":
        return None
    if setting == "auto":
        labels = source.own_labels()
    else:
        labels = label_file(Path(setting).expanduser(), source)
    if labels is None:
        return None
    kinds, numbers = np.unique(labels, return_inverse=True)
    names = [str(kind) for kind in kinds]
    if labels.dtype.kind == "U":
        order = sorted(range(len(names)), key=lambda kind: natural(names[kind]))
        names, numbers = [names[kind] for kind in order], np.argsort(order)[numbers]
    return torch.from_numpy(numbers.astype(np.int64)), names


def label_file(path: Path, source: Source) -> np.ndarray:
    """The labels in a file, one for each image in its order, as integers or words (N,).

    Arguments:
        path: An `.npy`, an `.npz` with an array of that kind, or a `.csv` with one column, or with
            two: file name and label. A first line that is no label is taken as a heading. Labels
            without names are of the images in their order, which must be the plain one, too.
        source: The images.
    """
    if not path.is_file():
        raise FileNotFoundError(f"dataset.labels: {path} does not exist")
    kind = path.suffix.lower()
    if kind == ".csv":
        return _csv_labels(path, source)
    if kind in (".npy", ".npz"):
        return _without_names(_array_labels(path), path, source)
    raise ValueError(
        f"dataset.labels: expected auto, none, or a .csv, .npy or .npz file, got {path}"
    )


def _array_labels(path: Path) -> np.ndarray:
    headers = headers_of(path)
    named = [name for name in ("", *LABEL_NAMES) if name in headers]
    if not named and len(headers) != 1:
        raise ValueError(
            f"dataset.labels: {path}: expected an array called {', '.join(LABEL_NAMES)}, "
            f"got {', '.join(headers) or 'none'}"
        )
    name = (named or list(headers))[0]
    if len(headers[name].shape) != 1 or headers[name].dtype.kind not in "biuU":
        raise ValueError(
            f"dataset.labels: {path}: expected integers or words of shape (N,), got "
            f"{headers[name]}"
        )
    return load_array(path, name)


def _csv_labels(path: Path, source: Source) -> np.ndarray:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"dataset.labels: {path} is not UTF-8 text ({error.reason})") from None
    # Spreadsheets in half of the world separate by semicolons.
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(text.rstrip("\r\n").splitlines(), delimiter=delimiter)
    lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    filled = [(number, row) for number, row in lines if any(row)]
    columns = {len(row) for _, row in filled}
    if columns == {1}:
        if empty := [number for number, row in lines if not any(row)]:
            raise ValueError(f"dataset.labels: {path}, line {empty[0]}: the label is empty")
        values = [row[0] for _, row in lines]
        labels = _typed(values[1:] if len(values) == len(source) + 1 else values)
        return _without_names(labels, path, source)
    if columns != {2}:
        raise ValueError(
            f"dataset.labels: {path}: expected one column (label) or two (file name, label), got "
            f"lines of {' and '.join(map(str, sorted(columns))) or 'no'} columns"
        )
    names = [source.name(row) for row in range(len(source))]
    known = dict.fromkeys(names, "")
    for number, (cell, label) in filled:
        name = cell.replace("\\", "/")
        if name not in known:
            continue
        here = f"dataset.labels: {path}, line {number}"
        if not label:
            raise ValueError(f"{here}: the label of {name} is empty")
        if known[name] not in ("", label):
            raise ValueError(f"{here}: {name} is {label}, and {known[name]} before; expected one")
        known[name] = label
    if missing := [name for name in names if not known[name]]:
        raise ValueError(
            f"dataset.labels: {path} has no label for {missing[0]}"
            + (f" and {len(missing) - 1} other images" if len(missing) > 1 else "")
        )
    return _typed([known[name] for name in names])


def _without_names(labels: np.ndarray, path: Path, source: Source) -> np.ndarray:
    """The labels, if there is one for each image and no doubt which image it is of.

    Whoever lists a folder by a program has `img10` before `img2`, and here it is after it.
    """
    if len(labels) != len(source):
        raise ValueError(
            f"dataset.labels: {path} has {len(labels)} labels for {len(source)} images"
        )
    files = list(dict.fromkeys(source.files or ()))
    for ours, plain in zip(files, sorted(files), strict=True):
        if ours != plain:
            raise ValueError(
                f"dataset.labels: {path} does not say which picture each label is of, and {ours} "
                f"comes before {plain} here but not in plain order; expected a .csv with two "
                "columns, name and label"
            )
    return labels


def _typed(words: list[str]) -> np.ndarray:
    """Words as integers, if they all are."""
    whole = all(re.fullmatch("[+-]?[0-9]+", word) for word in words)
    return np.array([int(word) for word in words] if whole else words)
