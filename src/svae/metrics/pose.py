r"""How well inferred poses agree with the true ones, up to what no model can know.

A model finds the object only up to a pose of its own: where the true object is :math:`O`, it may
have learned the same object turned by :math:`\alpha` and displaced by :math:`c`,
:math:`M(u) = O(R(\alpha)(u - c))`. Its image at the inferred pose is

.. math:: M(R(-\hat\theta)(x - \hat s))
          = O(R(\alpha - \hat\theta)(x - \hat s - R(\hat\theta) c)),

so that it explains the data perfectly with :math:`\theta = \hat\theta - \alpha` and
:math:`s = \hat s + R(\hat\theta) c`. Two unknowns are removed before errors are measured: the one
angle :math:`\alpha`, and the one vector :math:`c`, which is fixed in the model's object frame and
turns with each image by the *inferred* angle, whatever :math:`\alpha` is. As rotations keep
lengths, least squares over all images has the solution
:math:`c = \mathrm{mean}\; R(-\hat\theta)(s - \hat s)`.
"""

import math

import torch
from torch import Tensor

from svae.checks import positive
from svae.geometry import rotate, wrap_angle
from svae.metrics.circular import circular_correlation, circular_correlation_plain

__all__ = ["angle_offset", "pose_metrics"]

# A spread below this part of the largest value is the rounding of a constant.
CONSTANT = 1e-12


def pose_metrics(
    theta: Tensor | None,
    shift: Tensor | None,
    true_theta: Tensor | None,
    true_shift: Tensor | None,
    pixel_size: float,
) -> dict[str, float]:
    """Agreement of inferred and true poses, as numbers that are never NaN.

    * `theta_circular_correlation`, `theta_circular_correlation_plain`: `svae.metrics.circular`.
    * `theta_error_deg`: median absolute angle error after removing `angle_offset`.
    * `shift_x_correlation`, `shift_y_correlation`: Pearson, of the shifts as they are: a displaced
      canonical object lowers them. 0 where an input is constant.
    * `shift_rmse_px`: root mean square over the images of the Euclidean distance in pixels, after
      removing the fixed object-frame offset (module docstring). Without an inferred angle the
      offset is one vector of the image frame.

    What lacks its inference or its truth is left out.

    Arguments:
        theta: Inferred angles in radians, with shape (B,), or None.
        shift: Inferred object centres in grid units, with shape (B, 2), or None.
        true_theta: True angles in radians, with shape (B,), or None.
        true_shift: True object centres in grid units, with shape (B, 2), or None.
        pixel_size: Grid units per pixel, 2 / (longer side - 1).
    """
    pixel_size = positive("pixel_size", pixel_size)
    given = {
        "theta": theta,
        "shift": shift,
        "true_theta": true_theta,
        "true_shift": true_shift,
    }
    checked = _checked({name: value for name, value in given.items() if value is not None})
    metrics: dict[str, float] = {}

    if {"theta", "true_theta"} <= checked.keys():
        a, b = checked["theta"], checked["true_theta"]
        error = wrap_angle(a - b - angle_offset(a, b)).abs().median()
        metrics["theta_circular_correlation"] = circular_correlation(a, b).item()
        metrics["theta_circular_correlation_plain"] = circular_correlation_plain(a, b).item()
        metrics["theta_error_deg"] = math.degrees(error.item())

    if {"shift", "true_shift"} <= checked.keys():
        inferred, true = checked["shift"], checked["true_shift"]
        for axis, name in enumerate("xy"):
            metrics[f"shift_{name}_correlation"] = _pearson(inferred[:, axis], true[:, axis])
        angle = checked.get("theta", torch.zeros_like(inferred[:, 0]))
        in_object_frame = rotate(true - inferred, -angle)
        residual = in_object_frame - in_object_frame.mean(dim=0)
        rms = residual.square().sum(dim=-1).mean().sqrt()
        metrics["shift_rmse_px"] = rms.item() / pixel_size

    return metrics


def angle_offset(theta: Tensor, true_theta: Tensor) -> Tensor:
    """The one angle to take from `theta` that makes the median absolute error smallest.

    It is the middle of the shortest arc that holds half of the differences, found exactly by
    sorting. A circular mean would be drawn away by images inferred half a turn off, and for equal
    parts the mean absolute error is the same for every offset; the half within the shortest arc
    ignores them. (The median is `torch.median`: of two middle values, the lower.)

    Arguments:
        theta: Inferred angles in radians, with shape (B,).
        true_theta: True angles in radians, with shape (B,).

    Returns:
        The offset in [-pi, pi), a scalar.
    """
    start = torch.remainder(theta - true_theta, 2 * math.pi).sort().values
    count, half = len(start), (len(start) + 1) // 2
    end = torch.cat((start, start + 2 * math.pi))[half - 1 : half - 1 + count]
    first = (end - start).argmin()
    return wrap_angle((start[first] + end[first]) / 2)


def _checked(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float64 on the CPU, if their shapes agree and every value is finite."""
    if not given:
        return {}
    first = next(iter(given))
    images = given[first].shape[:1].numel()
    for name, value in given.items():
        expected = (images, 2) if name.endswith("shift") else (images,)
        if value.shape != expected or not images:
            raise ValueError(
                f"{name}: expected shape {expected} for the {images} images of {first}, "
                f"at least 1, got {tuple(value.shape)}"
            )
        if not value.isfinite().all():
            bad = int((~value.isfinite()).sum())
            raise ValueError(f"{name}: expected finite values, got {bad} that are not")
    return {name: value.detach().cpu().double() for name, value in given.items()}


def _pearson(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation; 0 where a or b is constant."""
    spread = []
    for value in (a, b):
        centred = value - value.mean()
        if centred.abs().max() <= CONSTANT * value.abs().max():
            return 0.0
        spread.append(centred / centred.norm())
    return (spread[0] @ spread[1]).item()
