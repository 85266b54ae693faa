r"""The importance-weighted bound.

.. math:: L_K = E\left[\log \frac{1}{K} \sum_k
          \frac{p(y, z_k, \theta_k, \Delta x_k)}{q(z_k, \theta_k, \Delta x_k | y)}\right]

It grows with K from the ELBO to the log-evidence.

References:
    Importance weighted autoencoders (Burda et al., 2016), equation 8.
"""

import math

import torch
from torch import Tensor

__all__ = ["importance_weighted_bound"]


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """The bound of each image in nats, shape (B,), from log-weights with shape (K, B)."""
    return torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))
