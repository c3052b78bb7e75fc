"""Noise levels for algorithms that train on the forward process.

A range (lo, hi) is a part of the path from noise (0) to data (1) on the unshifted schedule: (0, 0.9) leaves out the cleanest tenth. A shift
k > 1 then moves everything towards noise, s -> k s / (1 + (k - 1) s), as the sampling schedules of SD3 and others do. Uniforms are float64.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flow_factory.core.dynamics import like
from flow_factory.core.randomness import generator
from flow_factory.core.step_range import index_window

Strategy = Literal["discrete", "discrete_with_init", "discrete_wo_init", "uniform", "logit_normal"]
Density = Literal["source_uniform", "actual_uniform", "conditional_logit_normal"]
TIMESTEPS = 1000
"""A model's timestep t is this times the noise level."""


def stratified(u: Tensor, order: Tensor) -> Tensor:
    """(T, ...) uniforms, exactly one in each of T equal parts of [0, 1): (i + u_i) / T, then permuted along the first dimension.

    `u` are independent uniforms; `order` is a permutation (T,), or one a column.
    """
    parts = (like(torch.arange(len(u), dtype=u.dtype), u) + u) / len(u)
    return parts.take_along_dim(like(order, parts) if order.ndim == 1 else order, 0)


def shifted(s: Tensor, shift: float) -> Tensor:
    """k s / (1 + (k - 1) s): k > 1 is noisier, 1 / k is the inverse of k, and 0 and 1 are fixed."""
    return shift * s / (1 + (shift - 1) * s)


def truncated_logit_normal(u: Tensor, low: float | Tensor, high: float | Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """The quantile of u of sigmoid(N(mean, std^2)), conditional on being between `low` and `high`, so no mass gathers at the ends."""
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in (low, high))
    a, b = (torch.special.ndtr((end.logit() - mean) / std) for end in (low, high))
    return torch.sigmoid(mean + std * torch.special.ndtri(a + u.double() * (b - a))).clamp(low, high)


def uniform(u: Tensor, timestep_range: tuple[float, float] = (0.0, 1.0), shift: float = 1.0) -> Tensor:
    """Noise levels, evenly over the range before the shift (AWM, arXiv 2509.25050: range (0, .8))."""
    low, high = timestep_range
    return shifted(1 - high + u * (high - low), shift)


def logit_normal(
    u: Tensor, timestep_range: tuple[float, float] = (0.0, 0.99), shift: float = 3.0, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """Noise levels with the density of SD3's training (arXiv 2403.03206) within the range, then shifted; a larger mean is noisier.

    The default range leaves out noise levels below .01, as AWM does.
    """
    low, high = timestep_range
    return shifted(truncated_logit_normal(u, 1 - high, 1 - low, mean, std), shift)


def between(
    u: Tensor, low: Tensor, high: Tensor, density: Density, shift: float = 1.0, mean: float = 0.0, std: float = 1.0, margin: float = 0.0
) -> Tensor:
    """Noise levels in (low, high) of uniforms u, all of one shape or broadcast: evenly, evenly before the shift, or by SD3's density.

    Args:
        margin: distance of the lowest level from `low`, before the shift; at most a tenth of the way to `high`.
    """
    begin, end = shifted(low, 1 / shift), shifted(high, 1 / shift)
    begin = begin + torch.clamp((end - begin) / 10, max=margin)
    if density == "source_uniform":
        return shifted(begin + u * (end - begin), shift)
    low = shifted(begin, shift) if margin else low
    return low + u * (high - low) if density == "actual_uniform" else truncated_logit_normal(u, low, high, mean, std)


def discrete(u: Tensor, first: int, last: int, strategy: Strategy = "discrete") -> Tensor:
    """(T,) ascending step indices of [first, last), one in each of T parts with integer boundaries; an empty part repeats its boundary.

    "discrete_with_init" always takes `first` and draws T - 1 from the rest with the first T - 1 of `u`; "discrete_wo_init" never takes it.
    With T = last - first every step comes exactly once.

    Raises:
        ValueError: there is no step to draw from.
    """
    init, parts = torch.empty(0, dtype=torch.int64), len(u)
    if strategy == "discrete_with_init":
        init, parts = torch.tensor([first]), parts - 1
    start = first + (strategy != "discrete")
    if last <= first or (parts and last <= start):
        raise ValueError(f"{strategy} has no step to draw from steps {first} to {last - 1}: widen timestep_range or sample more steps")
    bounds = start + torch.arange(parts + 1) * (last - start) // max(parts, 1)
    return torch.cat([init, bounds[:-1] + (u[:parts] * bounds.diff()).long()])


@dataclass(frozen=True)
class TimeSampler:
    """The noise levels of the training points of a micro-batch. All of its samples have the same levels."""

    strategy: Strategy = "discrete"
    count: int | None = None
    """Number of levels; None: the number of schedule steps in the range."""
    timestep_range: tuple[float, float] = (0.0, 0.9)
    shift: float = 3.0
    """Not used by the discrete strategies, which take the sampler's schedule."""
    mean: float = 0.0
    """The mean of logit_normal before the sigmoid; `std` is its standard deviation."""
    std: float = 1.0

    def draw(self, timesteps: Tensor, sigmas: Tensor, seed: int, epoch: int, *key: int) -> tuple[Tensor, Tensor]:
        """(T,) float32 model times t in [0, 1000] and noise levels s, on the CPU. They depend only on the arguments.

        Args:
            timesteps: (n,) of the sampling schedule, on the CPU; `sigmas` its noise levels, (n,) or (n + 1,).
            key: the rest of the key of the draw, e.g. the row.

        Raises:
            ValueError: an unknown strategy, or a range without a step.
        """
        first, last = index_window(len(timesteps), self.timestep_range)
        count = last - first if self.count is None else self.count
        if not self.strategy.startswith("discrete"):
            return self.levels(count, seed, epoch, *key)
        u = torch.rand(count, generator=generator(seed, "times", epoch, *key), dtype=torch.float64)
        index = discrete(u, first, last, self.strategy)
        return timesteps[index].float(), sigmas[index].float()

    def levels(self, count: int, seed: int, epoch: int, *key: int) -> tuple[Tensor, Tensor]:
        """As `draw`, from a density: one level in each of `count` parts of equal probability. It needs no schedule.

        Raises:
            ValueError: no density of this name.
        """
        draws = generator(seed, "times", epoch, *key)
        u = stratified(torch.rand(count, generator=draws, dtype=torch.float64), torch.randperm(count, generator=draws))
        if self.strategy == "uniform":
            s = uniform(u, self.timestep_range, self.shift)
        elif self.strategy == "logit_normal":
            s = logit_normal(u, self.timestep_range, self.shift, self.mean, self.std)
        else:
            raise ValueError(f"no time sampling {self.strategy!r}; known: discrete[_with_init, _wo_init], uniform, logit_normal")
        return (TIMESTEPS * s).float(), s.float()


def training_schedule(shift: float = 1.0, steps: int = TIMESTEPS) -> Tensor:
    """(steps,) float64 descending noise levels a flow model was trained on: 1 to 1 / steps, shifted (3 for SD3)."""
    return shifted(torch.arange(steps, 0, -1, dtype=torch.float64) / steps, shift)


def lookup(position: Tensor, schedule: Tensor) -> Tensor:
    """The schedule's noise level at a share of the way from its noisy end, in [0, 1]: schedule[floor(n position)]."""
    return schedule[(position * len(schedule)).long().clamp(max=len(schedule) - 1)]


@dataclass(frozen=True)
class PairTimeSampler:
    """Diffusion-DPO's noise levels, one a pair (flow_grpo): a position on the training schedule; a larger mean is CLEANER here."""

    scheme: Literal["logit_normal", "uniform"] = "logit_normal"
    timestep_range: tuple[float, float] = (0.0, 0.99)
    shift: float = 1.0
    mean: float = 0.0
    std: float = 1.0

    def draw(self, count: int, seed: int, epoch: int, *key: int) -> tuple[Tensor, Tensor]:
        """(count,) float32 model times t and noise levels s of the points of one pair, as `TimeSampler.draw`.

        Raises:
            ValueError: an unknown scheme.
        """
        u = torch.rand(count, generator=generator(seed, "pair_times", epoch, *key), dtype=torch.float64)
        low, high = self.timestep_range
        if self.scheme == "logit_normal":
            position = truncated_logit_normal(u, low, high, self.mean, self.std)
        elif self.scheme == "uniform":
            position = low + u * (high - low)
        else:
            raise ValueError(f"no weighting scheme {self.scheme!r}; known: logit_normal, uniform")
        s = lookup(position, training_schedule(self.shift))
        return (TIMESTEPS * s).float(), s.float()
