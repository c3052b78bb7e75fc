"""GARDO (arXiv 2512.24138): the samples that the trained reward overrates compared with auxiliary rewards, and the share that is gated.

Scores are (N,), of all samples of an epoch. A score that is not finite is missing: its sample is not counted and not gated. Only the
order of the scores matters, so a monotone map of a reward changes nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

REMEMBERED = 20
"""The number of past epochs with which an epoch is compared to adapt the share."""
STEP = 1.1


def win_rates(scores: Tensor) -> Tensor:
    """(N,) float64: the share of the samples with a lower score, equal ones counted as half; NaN where the score is missing."""
    scores = scores.double()
    known = scores[scores.isfinite()]
    rates = ((scores[:, None] > known).double() + 0.5 * (scores[:, None] == known)).sum(1) / max(len(known), 1)
    return rates.where(scores.isfinite(), torch.nan)


def uncertainty(proxy: Tensor, auxiliaries: Tensor) -> Tensor:
    """(N,) in [-1, 1]: the win rate of a sample under the trained reward less its mean win rate under the auxiliaries (N, A).

    This follows the authors' text. Their code has the opposite sign, and gates the samples that the trained reward underrates.
    """
    return win_rates(proxy) - torch.stack([win_rates(column) for column in auxiliaries.unbind(1)]).mean(0)


def gated(doubts: Tensor, share: float) -> Tensor:
    """(N,) bool: of the samples with an uncertainty >= 0, the `share` with the largest."""
    overrated = doubts[doubts >= 0]
    if len(overrated) == 0:
        return torch.zeros_like(doubts, dtype=torch.bool)
    return doubts > torch.quantile(overrated, 1 - share)


def mean_doubt(doubts: Tensor) -> float:
    """Mean uncertainty of the samples that are not underrated; 0 without any."""
    overrated = doubts[doubts >= 0]
    return float(overrated.mean()) if len(overrated) else 0.0


def adapted(share: float, mean: float, before: Sequence[float], bounds: tuple[float, float]) -> float:
    """The share for an epoch whose `mean_doubt` is `mean`. It changes by a tenth if `mean` is outside the range of earlier epochs."""
    recent = before[-REMEMBERED:]
    if recent and mean > max(recent):
        share *= STEP
    elif recent and mean < min(recent):
        share *= 0.9
    return min(max(share, bounds[0]), bounds[1])


def nearest(features: Tensor) -> Tensor:
    """(n,) 1 - the largest cosine to another of the features (n, d), n >= 2; exactly 0 for features that differ only by rounding."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-torch.inf)
    distance = 1 - cosines.amax(1)
    return distance.where(distance > 1e-9, 0.0)
