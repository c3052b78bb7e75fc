"""GARDO (arXiv 2512.24138): which samples the trained reward overrates, beside auxiliary rewards, and what follows from it over the epochs.

Scores are (N,) of all samples of an epoch; one that is not finite is missing, and its sample neither counts nor is gated. Only their order
matters: a monotone map of a reward changes nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

REMEMBERED = 20
"""Epochs that the share is adapted by."""
STEP = 1.1


def win_rates(scores: Tensor) -> Tensor:
    """(N,) float64: the share of the samples that each one beats, half a one for each that it equals; NaN where its score is missing."""
    scores = scores.double()
    known = scores[scores.isfinite()]
    rates = ((scores[:, None] > known).double() + 0.5 * (scores[:, None] == known)).sum(1) / max(len(known), 1)
    return rates.where(scores.isfinite(), torch.nan)


def uncertainty(proxy: Tensor, auxiliaries: Tensor) -> Tensor:
    """(N,) in [-1, 1]: how much better the trained reward ranks a sample than the auxiliaries (N, A) do on average.

    The authors' code has the opposite sign, and gates what the trained reward underrates; their text says what is here.
    """
    return win_rates(proxy) - torch.stack([win_rates(column) for column in auxiliaries.unbind(1)]).mean(0)


def gated(doubts: Tensor, share: float) -> Tensor:
    """(N,) bool: the `share` of the samples with an uncertainty of 0 or more for which it is largest."""
    overrated = doubts[doubts >= 0]
    if len(overrated) == 0:
        return torch.zeros_like(doubts, dtype=torch.bool)
    return doubts > torch.quantile(overrated, 1 - share)


def mean_doubt(doubts: Tensor) -> float:
    """Mean uncertainty of the samples that are not underrated; 0 without any."""
    overrated = doubts[doubts >= 0]
    return float(overrated.mean()) if len(overrated) else 0.0


def adapted(share: float, mean: float, before: Sequence[float], bounds: tuple[float, float]) -> float:
    """The share for an epoch whose `mean_doubt` is `mean`: a tenth more or less where that leaves the range of earlier ones."""
    recent = before[-REMEMBERED:]
    if recent and mean > max(recent):
        share *= STEP
    elif recent and mean < min(recent):
        share *= 0.9
    return min(max(share, bounds[0]), bounds[1])


def nearest(features: Tensor) -> Tensor:
    """(n,) 1 - the largest cosine to another of the features (n, d), n >= 2; exactly 0 where two are the same but for rounding."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-torch.inf)
    distance = 1 - cosines.amax(1)
    return distance.where(distance > 1e-9, 0.0)
