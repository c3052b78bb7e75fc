"""How much of the old weights a moving average keeps, as a function of the update's number."""

import math
from typing import Literal

Schedule = Literal["constant", "power", "linear", "piecewise_linear", "cosine", "warmup_cosine"]


def progress(k: int, steps: int) -> float:
    """0 at k = 0, 1 from k = steps on."""
    return 1.0 if k >= steps else k / steps


def cosine(p: float) -> float:
    """Half a cosine: 0 at p = 0, 1 at p = 1, flat at both ends."""
    return (1 - math.cos(math.pi * p)) / 2


def between(a: float, b: float, p: float) -> float:
    """From a at p = 0 to b at p = 1, exact at both, so that no decay exceeds 1."""
    return (1 - p) * a + p * b


def ema_decay(
    schedule: Schedule,
    k: int,
    decay: float,
    *,
    initial_decay: float = 0.0,
    warmup_steps: int = 10,
    total_steps: int = 1000,
    flat_steps: int = 0,
    ramp_rate: float = 0.001,
) -> float:
    """d of average <- d average + (1 - d) weights, in [0, 1].

    `k` counts from 0 in the unit of the caller's choice (epochs, or optimiser steps). "power" is Flow-GRPO's warm-up; "piecewise_linear"
    with (decay, flat_steps, ramp_rate) = (.5, 0, .001) and (.999, 75, .0075) are DiffusionNFT's two (arXiv 2509.16117, types 1 and 2),
    with (.3, 0, .001) DGPO's, and with an initial decay CRD's.

    Raises:
        ValueError: an unknown schedule.
    """
    match schedule:
        case "constant":
            return decay
        case "power":
            return min(decay, (1 + k) / (max(warmup_steps, 1) + k))
        case "linear":
            return between(initial_decay, decay, progress(k, warmup_steps))
        case "piecewise_linear":
            return min(decay, initial_decay + ramp_rate * max(k - flat_steps, 0))
        case "cosine":
            return between(initial_decay, decay, cosine(progress(k, total_steps)))
        case "warmup_cosine" if k < warmup_steps:
            return initial_decay * progress(k, warmup_steps)
        case "warmup_cosine":
            return between(initial_decay, decay, cosine(progress(k - warmup_steps, total_steps - warmup_steps)))
    raise ValueError(f"no EMA schedule {schedule!r}; known: constant, power, linear, piecewise_linear, cosine, warmup_cosine")
