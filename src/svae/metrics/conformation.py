"""What the content knows of a true conformation, and of the angle."""

import torch
from torch import Tensor

from svae.metrics.circular import circular_correlation
from svae.metrics.pose import CONSTANT

__all__ = ["conformation_metrics"]


def conformation_metrics(
    z: Tensor, conformation: Tensor, theta: Tensor | None = None
) -> dict[str, float]:
    """How well the best single component of z tells the truth, as numbers from 0 to 1.

    A component that is constant counts as 0, and no number is NaN.

    * `conformation_correlation`: the largest absolute value of Pearson's correlation of a
      component with the true conformation. Where these are uniform, components that are
      exactly normal reach sqrt(3 / pi) = 0.977 at most.
    * `z_theta_circular_correlation`: the largest absolute value of `circular_correlation` of a
      component, read as an angle in radians, with the true angle: table 1 of spatial-VAE.
    * `z_theta_correlation`: the largest multiple correlation of a component with the true angle's
      cosine and sine, which is Pearson's with the cosine about the best direction.

    References:
        Linear-circular correlation coefficients and rhythmometry (Mardia, 1976), for the last.

    Arguments:
        z: The content, with shape (B, z_dim).
        conformation: The true conformations, with shape (B,).
        theta: The true angles in radians, with shape (B,); without them, no numbers of theirs.
    """
    if z.ndim != 2 or not z.shape[1] or conformation.shape != z.shape[:1]:
        raise ValueError(
            "z, conformation: expected shapes (B, z_dim), z_dim at least 1, and (B,), "
            f"got {tuple(z.shape)} and {tuple(conformation.shape)}"
        )
    z, conformation = z.detach().cpu().double(), conformation.detach().cpu().double()
    components = list(z.unbind(1))
    metrics = {
        "conformation_correlation": max(_multiple(c, conformation[:, None]) for c in components)
    }
    if theta is not None:
        theta = theta.detach().cpu().double()
        circular = [circular_correlation(c, theta).abs().item() for c in components]
        metrics["z_theta_circular_correlation"] = max(circular)
        waves = torch.stack((theta.cos(), theta.sin()), dim=-1)
        metrics["z_theta_correlation"] = max(_multiple(c, waves) for c in components)
    return metrics


def _multiple(value: Tensor, known: Tensor) -> float:
    """The multiple correlation of values (B,) with columns (B, k); 0 where either is constant."""
    centred, columns = value - value.mean(), known - known.mean(0)
    if centred.abs().max() <= CONSTANT * value.abs().max():
        return 0.0
    space, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    space = space[:, sizes > CONSTANT * known.norm()]
    return min(1.0, ((space.T @ centred).norm() / centred.norm()).item())
