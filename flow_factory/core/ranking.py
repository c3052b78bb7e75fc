"""Ranks of scores, and the rank correlation of two rewards."""

import torch
from torch import Tensor


def mean_ranks(x: Tensor) -> Tensor:
    """(n,) finite values -> their ranks from 0 in float64; equal values share their mean rank."""
    _, place, count = torch.unique(x, return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count + 1) / 2).double()[place]


def spearman(a: Tensor, b: Tensor) -> float | None:
    """Spearman's rank correlation in [-1, 1] of two columns of scores (n,), over the samples that have both.

    None if it is undefined: fewer than two such samples, or a constant column.
    """
    both = a.isfinite() & b.isfinite()
    ranks = torch.stack([mean_ranks(a[both]), mean_ranks(b[both])])
    if ranks.shape[1] < 2 or not all((ranks != ranks[:, :1]).any(1)):
        return None
    return float(torch.corrcoef(ranks)[0, 1])
