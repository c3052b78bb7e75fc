"""What becomes of a reward's scores before they are weighted: `transform:` of its entry. Scores are logged as they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flow_factory.core.ranking import mean_ranks


def transformed(scores: Tensor, transforms: Sequence[Mapping[str, Any] | None]) -> Tensor:
    """(G, n, R) scores -> the same after each reward's own transform; NaN, a missing score, stays so."""
    return torch.stack([column if t is None else _column(column, t) for column, t in zip(scores.unbind(-1), transforms, strict=True)], -1)


def _column(scores: Tensor, transform: Mapping[str, Any]) -> Tensor:
    """(G, n). In this order: clip, sigmoid or rank, scale."""
    if transform["clip"] is not None:
        scores = scores.clamp(*transform["clip"])
    if (curve := transform["sigmoid"]) is not None:
        scores = torch.sigmoid((scores - curve["centre"]) / curve["width"])
    if transform["rank"]:
        scores = torch.stack([ranked(group) for group in scores])
    return scores * transform["scale"]


def ranked(group: Tensor) -> Tensor:
    """(n,) scores of a group -> their ranks in it, from 0 for the lowest to 1 for the highest; equal ones share the mean of theirs.

    Where all are equal, or one alone is not missing, 1/2.
    """
    known = group.isfinite()
    out = group.new_full(group.shape, torch.nan)
    ranks, last = mean_ranks(group[known]), int(known.sum()) - 1
    out[known] = (ranks / last if last > 0 else ranks + 0.5).to(out.dtype)
    return out
