"""Decay schedules of moving averages of weights, as functions of the update's number."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flow_factory.utils.counting import counted

if TYPE_CHECKING:
    from flow_factory.config import TrainConfig

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


def decay_after(train: "TrainConfig", epochs: int) -> float | None:
    """The decay of the run's average after `epochs` epochs; None if it is not updated then."""
    if train.ema_decay == 0 or epochs % train.ema_update_interval:
        return None
    extras = {key: getattr(train, key) for key in ("initial_decay", "warmup_steps", "flat_steps", "ramp_rate")}
    total = train.total_steps or train.max_epochs or 1
    return ema_decay(train.ema_decay_schedule, epochs - 1, train.ema_decay, total_steps=total, **extras)


def initial_share(train: "TrainConfig", epochs: int) -> float:
    """The share of the initial weights in the evaluated and saved weights after some epochs, in [0, 1].

    The rest of the average is a mean of trained weights. Without an average the share is 0 from the first epoch on.
    """
    if train.ema_decay == 0:
        return float(epochs == 0)
    decays = (decay_after(train, done) for done in range(1, epochs + 1))
    return math.prod(d for d in decays if d is not None)


def reported_weights(train: "TrainConfig") -> str:
    """One line that says which weights a run evaluates and saves."""
    if train.ema_decay == 0:
        return "the trained weights themselves (ema_decay: 0)"
    updated = "every epoch" if train.ema_update_interval == 1 else f"every {train.ema_update_interval} epochs"
    growing = "" if train.ema_decay_schedule == "constant" else ", less in the first epochs"
    average = f"a moving average of the trained weights (EMA), updated {updated} (ema_decay: {train.ema_decay:g}{growing})"
    epochs = train.max_epochs or 10 * train.ema_update_interval
    share = f"{100 * initial_share(train, epochs):.0f} % of it is still the initial weights"
    return f"{average}; {'at the end, ' if train.max_epochs else ''}after {counted(epochs, 'epoch')}, {share}"


@dataclass(frozen=True)
class Ramp:
    """A decay that is `start` until `start_step`, then grows by `slope` per step up to `cap`; the same as "piecewise_linear"."""

    start_step: int
    start: float
    slope: float
    cap: float

    def __call__(self, k: int) -> float:
        """The decay of update k, counted from 0; 0 copies the weights, 1 leaves the average unchanged."""
        return ema_decay("piecewise_linear", k, self.cap, initial_decay=self.start, flat_steps=self.start_step, ramp_rate=self.slope)


RAMPS = {
    "none": Ramp(0, 0.0, 0.0, 0.0),
    "slow": Ramp(0, 0.0, 0.001, 0.5),
    "medium": Ramp(75, 0.0, 0.0075, 0.999),
    "offline": Ramp(0, 1.0, 0.0, 1.0),
    "fast": Ramp(0, 0.0, 0.02, 0.99),
    "moderate": Ramp(0, 0.0, 0.01, 0.5),
    "long": Ramp(0, 0.0, 0.0075, 0.999),
}
"""By CRD's public names ("long" is only a number there), in the order of its numbers 0 to 6; 0 to 2 are DiffusionNFT's types."""

NUMBER = r"(\d*\.?\d+(?:[eE][-+]?\d+)?)"


def ramp(text: str | int) -> Ramp:
    """A name or number of `RAMPS`, or "start_step-start-slope-cap", e.g. "75-0.0-0.0075-0.999".

    Raises:
        ValueError: neither, or a start or cap outside of [0, 1], or a start above the cap.
    """
    if str(text).isdecimal() and int(text) < len(RAMPS):
        return list(RAMPS.values())[int(text)]
    if text in RAMPS:
        return RAMPS[str(text)]
    match = re.fullmatch(rf"(\d+)-{NUMBER}-{NUMBER}-{NUMBER}", str(text))
    if match is None:
        known = ", ".join(RAMPS)
        raise ValueError(
            f"no decay {text!r}; known: {known}, 0 to {len(RAMPS) - 1}, or start_step-start-slope-cap such as 75-0.0-0.0075-0.999"
        )
    start, slope, cap = map(float, match.groups()[1:])
    if not start <= cap <= 1:
        raise ValueError(f"decay {text!r} must have start <= cap <= 1, got start {start:g} and cap {cap:g}")
    return Ramp(int(match[1]), start, slope, cap)


def dgpo_ema_ref(max_decay: float = 0.3, ramp_rate: float = 0.001) -> Ramp:
    """DGPO's averaged reference (arXiv 2510.08425), updated after every optimiser step."""
    return Ramp(0, 0.0, ramp_rate, max_decay)
