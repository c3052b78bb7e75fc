"""Back-propagation through Euler steps, one after the other: see `algorithms.draft`."""

import torch
from torch import Tensor

from flow_factory.core.dynamics import like, per_sample


def path_loss(v: Tensor, slope: Tensor, s: Tensor, s1: Tensor) -> Tensor:
    """(n,) dt lam_{i+1} . v: its gradient in what v depends on is that of the loss of the final state.

    Args:
        v: (n, ...) velocity at x_i, with gradient.
        slope: (n, ...) lam_{i+1}, gradient of each sample's loss in x_{i+1}.
        s: noise level at x_i, 0-dim or (n,); `s1` at x_{i+1}.
    """
    return (like(s1 - s, v) * slope * v).flatten(1).sum(1)


def slope_before(slope: Tensor, gradient: Tensor, factor: Tensor | float) -> Tensor:
    """lam_i, of lam_{i+1} and of the gradient that `path_loss` times `factor` has left in x_i."""
    return slope + (gradient / torch.as_tensor(factor, device=gradient.device)).to(slope)


def velocity_kl(v: Tensor, v_ref: Tensor, s: Tensor) -> Tensor:
    """(n,) mean_d (v - v_ref)^2 / (2 s^2)."""
    return per_sample((v - v_ref) ** 2) / (2 * s.flatten() ** 2)
