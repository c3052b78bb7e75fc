"""Bootstrap intervals of means over pairs of prompt and noise: prompts are resampled, each with all its noises (Efron, 1979)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

SURE = 0.95
"""The confidence level of an interval."""
RESAMPLES = 9999
AT_ONCE = 500
"""Number of resamples that are held in memory at a time."""


class Estimate(NamedTuple):
    """A mean and its interval. Both are NaN without a score, and the interval is NaN with a single one."""

    mean: float
    low: float
    high: float


def estimate(scores: NDArray[np.float64]) -> Estimate:
    """Mean of all scores that are known, with the percentile interval.

    Scores of one prompt are correlated, so a prompt is one draw. The noises are resampled only if there is a single prompt.

    Args:
        scores: (prompts, noises), NaN where one is missing.
    """
    known = ~np.isnan(scores)
    if known.any(1).sum() == 1:
        scores, known = scores.T, known.T
    some = known.any(1)
    if not some.any():
        return Estimate(np.nan, np.nan, np.nan)
    sums, counts = np.where(known, scores, 0.0)[some].sum(1), known[some].sum(1)
    if len(sums) < 2:
        return Estimate(float(_mean(sums, counts)), np.nan, np.nan)
    found = stats.bootstrap(
        (sums, counts), _mean, n_resamples=RESAMPLES, batch=AT_ONCE, vectorized=True, paired=True, confidence_level=SURE,
        method="percentile", random_state=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Estimate(float(_mean(sums, counts)), float(found.low), float(found.high))


def _mean(sums: NDArray[np.float64], counts: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
    return np.asarray(sums.sum(axis) / counts.sum(axis))


def wins(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each pair: 1 if the score is higher after, 1/2 if it is equal, 0 if it is lower, NaN if one is missing."""
    change = after - before
    return np.where(np.isnan(change), np.nan, (np.sign(change) + 1) / 2)
