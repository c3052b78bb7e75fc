"""Advantages from scores: pure functions over all groups of an epoch at once, in float64.

`rewards` is (G, n, R): group (one data row), sample of the group, reward; `weights` is (R,). A score that is not finite is missing, and
excluded from statistics. Rewards of weight 0 are only logged. A group with equal scores, or with fewer than two scores, gets exactly 0.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flow_factory.core.combinations import COMBINATIONS
from flow_factory.types import Metrics
from flow_factory.utils.errors import RewardError, UserError
from flow_factory.utils.user_code import user_errors

Aggregation = Callable[[Tensor, Tensor, bool], tuple[Tensor, Metrics]]
"""(rewards, weights, global_std) -> (advantages, metrics); see `group_advantage`."""

EPSILON = 1e-4
"""Added to a standard deviation, as in Flow-GRPO and NVIDIA's GDPO, so that a nearly constant group is not amplified."""


def moments(x: Tensor, valid: Tensor, dims: tuple[int, ...], ddof: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the valid entries, two-pass, dimensions kept."""
    count = valid.sum(dims, keepdim=True)
    mean = x.where(valid, 0.0).sum(dims, keepdim=True) / count.clamp(min=1)
    squares = (x - mean).where(valid, 0.0).square().sum(dims, keepdim=True)
    return mean, (squares / (count - ddof).clamp(min=1)).sqrt()


def varies(x: Tensor, valid: Tensor) -> Tensor:
    """(G, 1, ...): whether two valid entries of a group differ. A test of std > 0 would not do, because the mean is rounded."""
    highest, lowest = x.where(valid, -torch.inf).amax(1, keepdim=True), x.where(valid, torch.inf).amin(1, keepdim=True)
    return highest > lowest


def weighted(rewards: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The rewards with a weight other than 0, and their weights, in float64."""
    used = weights != 0
    return rewards[..., used].double(), weights[used].double()


def finish(advantage: Tensor, scores: Tensor, scored: Tensor) -> tuple[Tensor, Metrics]:
    """(G, n) float32, and metrics: missing scores, samples without scores, the share of groups without an advantage."""
    return advantage.float(), {
        "zero_variance_share": (advantage == 0).all(1).float().mean(),
        "missing_scores": (~scores.isfinite()).sum().float(),
        "unscored_samples": (~scored).sum().float(),
    }


def group_advantage(rewards: Tensor, weights: Tensor, global_std: bool = True) -> tuple[Tensor, Metrics]:
    """Flow-GRPO (arXiv 2505.05470) on the weighted sum: (r - mean of its group) / (std + 1e-4), std with ddof 0.

    `global_std`: the std of the un-centred sums of all groups instead of each group's own. A sample with a missing score has no
    sum: it is excluded from the statistics and gets 0.

    Returns:
        (G, n) float32 advantages; metrics of `finish`.
    """
    scores, weights = weighted(rewards, weights)
    total = (scores * weights).sum(-1)
    valid = total.isfinite()
    mean, std = moments(total, valid, (1,), ddof=0)
    if global_std:
        _, std = moments(total, valid, (0, 1), ddof=0)
    return finish(((total - mean) / (std + EPSILON)).where(valid & varies(total, valid), 0.0), scores, valid)


def gdpo(rewards: Tensor, weights: Tensor, global_std: bool = True) -> tuple[Tensor, Metrics]:
    """GDPO (arXiv 2601.05242) as in NVIDIA's trainer: each reward is normalised in its group, then the weighted sum over the epoch.

    Both normalisations are (x - mean) / (std + 1e-4) with ddof 1. A missing score is left out of its own reward only and adds 0 to the sum.
    With one reward it equals `group_advantage`, the only place where `global_std` counts.

    Returns:
        (G, n) float32 advantages; metrics of `finish`.
    """
    if int((weights != 0).sum()) < 2:
        return group_advantage(rewards, weights, global_std)
    scores, weights = weighted(rewards, weights)
    valid = scores.isfinite()
    mean, std = moments(scores, valid, (1,), ddof=1)
    total = (((scores - mean) / (std + EPSILON)).where(valid & varies(scores, valid), 0.0) * weights).sum(-1)
    scored = valid.any(-1)
    mean, std = moments(total, scored, (0, 1), ddof=1)
    return finish(((total - mean) / (std + EPSILON)).where(scored & varies(scores, valid).any(-1), 0.0), scores, scored)


def diversity_scaled(rewards: Tensor, weights: Tensor, global_std: bool = True, diversity: int | None = None) -> tuple[Tensor, Metrics]:
    """GARDO (arXiv 2512.24138): the weighted sum less its group's mean, of samples at or above it times their diversity over its mean.

    There is no division by a standard deviation: the advantage has the scale of the rewards. A group without any diversity, and a sample
    whose diversity is missing, has the factor 1.

    Args:
        diversity: the column with each sample's distance to the nearest other one of its group, >= 0; None scales nothing.

    Returns:
        (G, n) float32 advantages; metrics of `finish`.
    """
    scores, used = weighted(rewards, weights)
    total = (scores * used).sum(-1)
    valid = total.isfinite()
    centred = total - moments(total, valid, (1,), ddof=0)[0]
    factor = torch.ones_like(centred)
    if diversity is not None:
        apart = rewards[..., diversity].double()
        mean, _ = moments(apart, apart.isfinite(), (1,), ddof=0)
        factor = (apart / mean).where((mean > 0) & apart.isfinite() & (centred >= 0), 1.0)
    return finish((centred * factor).where(valid & varies(total, valid), 0.0), scores, valid)


def combined(own: Callable[..., Any], names: Sequence[str], rewards: Tensor, weights: Tensor, global_std: bool) -> tuple[Tensor, Metrics]:
    """`group_advantage` of the single score that a user's function computes from all rewards.

    Args:
        own: called with (rewards, weights, names), copies; returns a tensor (G, n), NaN where a sample has no score.

    Raises:
        RewardError: it raised, or returned something else.
    """
    where, groups = f"train.advantage_aggregation: {own.__module__}.{own.__qualname__}", rewards.shape[:2]
    with user_errors(f"{where} failed", own.__module__):
        score = own(rewards.double().clone(), weights.double().clone(), tuple(names))
    if not isinstance(score, Tensor) or score.shape != groups or score.is_complex():
        what = f"a tensor of shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
        raise RewardError(f"{where} returned {what}; it must return a tensor {tuple(groups)}, a number a sample")
    one = score.detach().to("cpu", torch.float64)[..., None]
    advantage, metrics = group_advantage(one, torch.ones(1), global_std)
    return advantage, metrics | {"missing_scores": (~weighted(rewards, weights)[0].isfinite()).sum().float()}


def aggregation(name: str, rewards: Sequence[str], diversity: str | None = None) -> Aggregation:
    """The aggregation of `train.advantage_aggregation`, for rewards with these names.

    Args:
        diversity: of `gardo`, the reward that scales.

    Raises:
        UserError: a dotted path leads to no function, or its module raises as it is imported.
    """
    if (known := COMBINATIONS.canonical(name)) == "gardo":
        return partial(diversity_scaled, diversity=None if diversity is None else list(rewards).index(diversity))
    if known in AGGREGATIONS:
        return AGGREGATIONS[known]
    own = COMBINATIONS[name]
    if not callable(own) or isinstance(own, type):
        raise UserError(f"train.advantage_aggregation: {name!r} is not a function; write one of (rewards, weights, names)")
    return partial(combined, own, rewards)


AGGREGATIONS: dict[str, Aggregation] = {"sum": group_advantage, "gdpo": gdpo}
