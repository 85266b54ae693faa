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
:math:`c = \mathrm{mean}\; R(-\hat\theta)(s - \hat s)`. Where a size :math:`\hat a` is inferred,
the vector grows with it, and
:math:`c = \sum \hat a R(-\hat\theta)(s - \hat s) / \sum \hat a^2`; of the size itself, a factor
common to all is unknown.

An object with a symmetry of order k looks the same at k angles, :math:`2 \pi / k` apart: its angle
is known modulo :math:`2 \pi / k`, and :math:`k \theta` is an angle like any other. What the model
finds upright may differ from one kind of object to another, so that each order has its own
:math:`\alpha`. The vector :math:`c` needs no such care: it turns with the angle that was inferred,
whichever of the k that is.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from svae.checks import positive
from svae.geometry import rotate, wrap_angle
from svae.metrics.circular import circular_correlation, circular_correlation_plain

__all__ = ["angle_offset", "angle_offsets", "comparable_angles", "pose_metrics"]

# A spread below this part of the largest value is the rounding of a constant.
CONSTANT = 1e-12


def pose_metrics(
    theta: Tensor | None,
    shift: Tensor | None,
    true_theta: Tensor | None,
    true_shift: Tensor | None,
    pixel_size: float,
    symmetry: Tensor | None = None,
    reference_theta: Tensor | None = None,
    centre: Tensor | None = None,
    log_scale: Tensor | None = None,
    true_scale: Tensor | None = None,
) -> dict[str, float]:
    """Agreement of inferred and true poses, as numbers that are never NaN.

    * `theta_circular_correlation`, `theta_circular_correlation_plain`: `svae.metrics.circular`.
    * `theta_error_deg`: median absolute angle error after removing `angle_offset`.
    * `theta_half_turns`: the share of the images whose angle is off by more than 90 degrees, after
      removing the same: what was taken for its own upside-down.
    * `theta_relative_correlation`, `theta_relative_correlation_plain`: the same correlations for
      the inferred angle less the one inferred from the same object upright, as in the TARGET-VAE
      code (which has the plain form). What differs from object to object in how a model finds
      them upright is no error here.
    * `theta_relative_error_deg`: median absolute error of that difference; nothing is removed.
    * `theta_relative_half_turns`: the share of the images for which it is off by more than 90
      degrees. The one to look at where angles are uniform: each kind of object has its own
      upright then, which `theta_half_turns` counts.
    * `shift_x_correlation`, `shift_y_correlation`: Pearson, of the shifts as they are: a displaced
      canonical object lowers them. 0 where an input is constant.
    * `shift_rmse_px`: root mean square over the images of the Euclidean distance in pixels, after
      removing the fixed object-frame offset (module docstring). Without an inferred angle the
      offset is one vector of the image frame. The objects' symmetry changes nothing.
    * `centre_x_correlation`, `centre_y_correlation`, `centre_rmse_px`: the same of the decoded
      objects' centres of mass, in which it is no error where in the object a model has put the
      origin, be it for each kind of object elsewhere.
    * `scale_correlation`: Pearson, of the logarithms of the inferred and the true sizes. Of which
      size a model's own object is, it chooses itself, so that there is no error. 0 where an input
      is constant.

    Angles of objects with a symmetry of order k are compared modulo a turn of 360 / k degrees:
    correlated k-fold, for each order by itself, and averaged over the images; each order has its
    own offset, and the median is over all images. What lacks its inference or its truth is left
    out.

    Arguments:
        theta: Inferred angles in radians, with shape (B,), or None.
        shift: Inferred object centres in grid units, with shape (B, 2), or None.
        true_theta: True angles in radians, with shape (B,), or None.
        true_shift: True object centres in grid units, with shape (B, 2), or None.
        pixel_size: Grid units per pixel, 2 / (longer side - 1).
        symmetry: The order of each object's rotational symmetry (1 none, 2 an ellipse, 4 a
            square), with shape (B,); None where no object has one.
        reference_theta: Angles in radians inferred from the same objects upright and centred,
            with shape (B,), or None.
        centre: Centres of mass of the decoded objects in grid units, with shape (B, 2), or None.
        log_scale: Logarithms of the inferred sizes, with shape (B,), or None.
        true_scale: True sizes as factors above 0, with shape (B,), or None.
    """
    pixel_size = positive("pixel_size", pixel_size)
    given = {
        "theta": theta,
        "shift": shift,
        "true_theta": true_theta,
        "true_shift": true_shift,
        "symmetry": symmetry,
        "reference_theta": reference_theta,
        "centre": centre,
        "log_scale": log_scale,
        "true_scale": true_scale,
    }
    checked = _checked({name: value for name, value in given.items() if value is not None})
    metrics: dict[str, float] = {}

    if {"theta", "true_theta"} <= checked.keys():
        inferred, true = checked["theta"], checked["true_theta"]
        orders = checked.get("symmetry", torch.ones_like(true))
        correlation, plain = _correlations(inferred, true, orders)
        metrics["theta_circular_correlation"] = correlation
        metrics["theta_circular_correlation_plain"] = plain
        offsets = angle_offsets(inferred, true, orders)
        error = _angle_errors(inferred, true, orders, offsets)
        metrics["theta_error_deg"] = math.degrees(error.median().item())
        metrics["theta_half_turns"] = (error > math.pi / 2).double().mean().item()
        if "reference_theta" in checked:
            relative = inferred - checked["reference_theta"]
            correlation, plain = _correlations(relative, true, orders)
            metrics["theta_relative_correlation"] = correlation
            metrics["theta_relative_correlation_plain"] = plain
            error = _angle_errors(relative, true, orders, {})
            metrics["theta_relative_error_deg"] = math.degrees(error.median().item())
            metrics["theta_relative_half_turns"] = (error > math.pi / 2).double().mean().item()

    for name in ("shift", "centre"):
        if {name, "true_shift"} <= checked.keys():
            inferred, true = checked[name], checked["true_shift"]
            for axis, letter in enumerate("xy"):
                correlation = _pearson(inferred[:, axis], true[:, axis])
                metrics[f"{name}_{letter}_correlation"] = correlation
            angle = checked.get("theta", torch.zeros_like(inferred[:, 0]))
            in_object_frame = rotate(true - inferred, -angle)
            # As the fixed vector of the object looks in each image: larger where that is.
            size = checked.get("log_scale", torch.zeros_like(angle)).exp().unsqueeze(-1)
            offset = (size * in_object_frame).mean(dim=0) / size.square().mean()
            residual = in_object_frame - size * offset
            rms = residual.square().sum(dim=-1).mean().sqrt()
            metrics[f"{name}_rmse_px"] = rms.item() / pixel_size

    if {"log_scale", "true_scale"} <= checked.keys():
        true = checked["true_scale"].log()
        metrics["scale_correlation"] = _pearson(checked["log_scale"], true)

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


def angle_offsets(theta: Tensor, true_theta: Tensor, symmetry: Tensor) -> dict[int, float]:
    """For each order of symmetry by itself, the `angle_offset` of its objects, in radians.

    Arguments:
        theta: Inferred angles in radians, with shape (B,).
        true_theta: True angles in radians, with shape (B,).
        symmetry: The order of each object's symmetry, with shape (B,).

    Returns:
        The offset of each order k, in [-pi / k, pi / k).
    """
    offsets = {}
    for order in symmetry.unique().tolist():
        rows = symmetry == order
        offset = angle_offset(order * theta[rows], order * true_theta[rows])
        offsets[int(order)] = offset.item() / order
    return offsets


def comparable_angles(
    theta: Tensor, true_theta: Tensor, symmetry: Tensor, offsets: Mapping[int, float]
) -> tuple[Tensor, Tensor]:
    """Inferred and true angles (B,) in radians whose difference is the error of the inference.

    The inferred angles are without their offset. The true ones are, of the angles at which an
    object looks the same, those nearest to them: of an object with a symmetry of order k, the
    difference is in [-pi / k, pi / k).

    Arguments:
        theta: Inferred angles in radians, with shape (B,).
        true_theta: True angles in radians, with shape (B,).
        symmetry: The order of each object's symmetry, with shape (B,).
        offsets: What is taken from `theta`, by the order of symmetry; nothing where there is no
            such order.
    """
    for order, offset in offsets.items():
        theta = torch.where(symmetry == order, theta - offset, theta)
    return theta, theta - wrap_angle(symmetry * (theta - true_theta)) / symmetry


def _correlations(theta: Tensor, true_theta: Tensor, orders: Tensor) -> tuple[float, float]:
    """Both forms of the correlation: of each symmetry order, averaged over the images."""
    sums = [0.0, 0.0]
    for order in orders.unique():
        rows = orders == order
        a, b = theta[rows] * order, true_theta[rows] * order
        for i, form in enumerate((circular_correlation, circular_correlation_plain)):
            sums[i] += form(a, b).item() * (len(a) / len(theta))
    return sums[0], sums[1]


def _angle_errors(
    theta: Tensor, true_theta: Tensor, orders: Tensor, offsets: Mapping[int, float]
) -> Tensor:
    """Absolute differences of `comparable_angles`, with shape (B,)."""
    inferred, true = comparable_angles(theta, true_theta, orders, offsets)
    return (inferred - true).abs()


def _checked(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float64 on the CPU, if their shapes agree and every value is finite."""
    if not given:
        return {}
    first = next(iter(given))
    images = given[first].shape[:1].numel()
    for name, value in given.items():
        expected = (images, 2) if name.endswith(("shift", "centre")) else (images,)
        if value.shape != expected or not images:
            raise ValueError(
                f"{name}: expected shape {expected} for the {images} images of {first}, "
                f"at least 1, got {tuple(value.shape)}"
            )
        if not value.isfinite().all():
            bad = int((~value.isfinite()).sum())
            raise ValueError(f"{name}: expected finite values, got {bad} that are not")
    orders = given.get("symmetry")
    if orders is not None and (orders.is_floating_point() or orders.min() < 1):
        raise ValueError(
            f"symmetry: expected whole numbers of at least 1, got {orders.dtype} from "
            f"{orders.min().item()}"
        )
    sizes = given.get("true_scale")
    if sizes is not None and sizes.min() <= 0:
        raise ValueError(f"true_scale: expected sizes above 0, got {sizes.min().item()}")
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
