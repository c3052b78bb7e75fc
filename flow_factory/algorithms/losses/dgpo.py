"""DGPO (arXiv 2510.08425): the preference of a whole group's better part over its worse part, without a policy gradient.

d is `matching_error`, mean_d (noise - x0 - v)^2, of each sample; the samples of a group take the same noise and noise level.
"""

import torch
from torch import Tensor


def group_weight(advantage: Tensor, d: Tensor, d_ref: Tensor, beta: float) -> Tensor:
    """w = sigmoid(S), S = mean over the group of beta A (d - d_ref), no gradient; (..., n) -> (...).

    n must be the FULL group, over all its micro-batches. At v = v_ref it is 1/2; it falls towards 0 as the group gets into order.
    `advantage` is already clipped, to +-5 in the paper.
    """
    return torch.sigmoid((beta * advantage * (d - d_ref)).mean(-1)).detach()


def out_of_range(advantage: Tensor, d: Tensor, d_old: Tensor, clip_range: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """(mask of clipped samples, ratio exp(d_old - d)), both (B,): A > 0 and ratio > 1 + hi, or A <= 0 and ratio < 1 + lo.

    d_old is d under the averaged weights that the policy must stay near; the authors' range is +-1e-2 with guidance, 1e-5 to 1e-3 without.
    """
    low, high = clip_range
    ratio = (d_old - d).detach().exp()
    return torch.where(advantage > 0, ratio > 1 + high, ratio < 1 + low), ratio


def stopped(term: Tensor, mask: Tensor) -> Tensor:
    """`term` (B,) without gradient where `mask`. The value stays, so that logged losses do not jump. Used for d and for the KL term."""
    return torch.where(mask, term.detach(), term)


def dgpo_loss(weight: Tensor, advantage: Tensor, d: Tensor) -> Tensor:
    """(B,) w A d: its mean over a group has the gradient of -log sigmoid(-S) / beta.

    Args:
        weight: `group_weight` of each sample's group, 0-dim or (B,).
        d: (B,) with gradient, `stopped` where clipped.
    """
    return weight * advantage * d
