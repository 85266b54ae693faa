"""Latents as a table: one row per image, in the units in which a person reads a pose."""

import csv
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, rad2deg

from svae.files import write_atomic
from svae.geometry import wrap_angle
from svae.inferred import Inferred
from svae.latents import Latents

__all__ = ["latent_columns", "write_csv", "write_npz"]


def latent_columns(
    inferred: Inferred,
    priors: Sequence[str],
    pixel_size: float,
    *,
    uncertainty: Latents | None = None,
    file_names: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    split: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """The columns `index`, `file`, `split`, `label`, `z0`, ..., `theta_deg`, `shift_x_px`, ...

    Each latent variable is followed by its posterior standard deviation in a column with `_std`.
    Angles are counter-clockwise, within [-180, 180); shifts are the object's centre, x to the
    right and y up; `scale` is the size as a factor, its deviation that of the logarithm times the
    factor; `centre_x_px`, `centre_y_px` are the centre of mass of the decoded object,
    which is the same point of all kinds of objects. What is not known or not inferred has no
    column.

    Arguments:
        inferred: Latents, log-likelihoods and labels of B images.
        priors: The variables that the model infers, by the names of their priors.
        pixel_size: Grid units per pixel.
        uncertainty: The posterior standard deviations, with shape (B, ...).
        file_names: The file of each image, by its index.
        label_names: The names of the labels, by their number.
        split: The split of each image.
    """
    index = inferred.index.cpu()
    columns: dict[str, np.ndarray] = {"index": index.numpy()}
    if file_names is not None:
        columns["file"] = np.array([file_names[i] for i in index.tolist()])
    if split is not None:
        columns["split"] = np.array(split)
    if inferred.label is not None:
        label = inferred.label.cpu().numpy()
        columns["label"] = label if label_names is None else np.array(label_names)[label]

    latents = inferred.latents
    for i in range(latents.z.shape[1]):
        columns[f"z{i}"] = _numbers(latents.z[:, i])
        if uncertainty is not None:
            columns[f"z{i}_std"] = _numbers(uncertainty.z[:, i])
    if "theta" in priors:
        degrees = rad2deg(wrap_angle(latents.theta.cpu().double())).float()
        # The largest angles below 180 degrees are 180 once rounded.
        columns["theta_deg"] = _numbers(torch.where(degrees < 180, degrees, degrees - 360))
        if uncertainty is not None:
            columns["theta_std_deg"] = _numbers(rad2deg(uncertainty.theta))
    if "shift" in priors:
        for i, axis in enumerate("xy"):
            columns[f"shift_{axis}_px"] = _numbers(latents.shift[:, i] / pixel_size)
            if uncertainty is not None:
                columns[f"shift_{axis}_std_px"] = _numbers(uncertainty.shift[:, i] / pixel_size)
    if "scale" in priors:
        columns["scale"] = _numbers(latents.scale)
        if uncertainty is not None:
            columns["scale_std"] = _numbers(latents.scale * uncertainty.log_scale)
    if inferred.centre is not None:
        for i, axis in enumerate("xy"):
            columns[f"centre_{axis}_px"] = _numbers(inferred.centre[:, i] / pixel_size)
    columns["log_likelihood"] = _numbers(inferred.log_likelihood)
    return columns


def write_csv(path: Path, columns: Mapping[str, np.ndarray | Sequence[Any]]) -> None:
    """Write columns of one length, each number with the digits that tell it from all others.

    None is an empty cell.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_atomic(path, text.getvalue())


def write_npz(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write columns as arrays, to be read by `numpy.load`; components are put together.

    `z0`, `z1`, ... become `z` (B, z_dim), `shift_x_px` and `shift_y_px` become `shift_px` (B, 2),
    those of `centre` likewise, and so do their standard deviations. Other names stay as they are.
    """
    groups: dict[str, list[np.ndarray]] = {}
    for name, column in columns.items():
        together = re.sub(r"^z\d+", "z", re.sub(r"^(shift|centre)_[xy]", r"\1", name))
        groups.setdefault(together, []).append(column)
    content = io.BytesIO()
    # Not by `numpy.savez`, which cannot name an array `file`.
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, parts in groups.items():
            array = parts[0] if name in columns else np.stack(parts, axis=-1)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    write_atomic(path, content.getvalue())


def _numbers(values: Tensor) -> np.ndarray:
    return values.detach().cpu().float().numpy()
