"""The examination of a reward: its scale, whether scores repeat, and whether a score depends on its batch."""

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from flow_factory.rewards.loading import LoadedReward
from flow_factory.rewards.scoring import RewardSet
from flow_factory.types import Row

ROUNDING, SHARE = 1e-5, 0.01
"""The largest difference of two scores of one image that counts as rounding, relative to their size and to the spread between images."""
LEAST = 1.0
"""The least number of seconds in which speed is measured."""


@dataclass
class Findings:
    """The findings about one reward."""

    scores: dict[str, float]
    """Name of the sample -> score; NaN if it is missing."""
    error: str
    """The reward's last error message."""
    latency: float
    """Seconds of a call with one sample (with a group, for a groupwise reward)."""
    throughput: float
    """Samples per second at `batch_size`."""
    changes: dict[str, float] = field(default_factory=dict)
    """The largest change of a score in a repeated call, in another order, and alone."""

    @property
    def known(self) -> list[float]:
        return [score for score in self.scores.values() if not math.isnan(score)]

    @property
    def spread(self) -> float:
        """The standard deviation over the samples."""
        return torch.tensor(self.known, dtype=torch.float64).std(correction=0).item() if self.known else 0.0

    @property
    def bound(self) -> float:
        """The largest change that counts as rounding."""
        return max(ROUNDING * max(map(abs, self.known), default=0.0), SHARE * self.spread)

    @property
    def problems(self) -> list[str]:
        """The reasons why the reward fails the examination."""
        far = {how: by for how, by in self.changes.items() if by > self.bound}
        found = [f"a score moved by {by:.3g} {how}, more than rounding ({self.bound:.2g})" for how, by in far.items()]
        return found if self.known else ["it has no score for any sample"]


def examine(rewards: RewardSet, reward: LoadedReward, samples: Sequence[tuple[str, Row, Any]]) -> Findings:
    """Scores (name, row, picture or clip) in several batches.

    Raises:
        UserError: a row lacks an input of the reward, or it does not score such media.
        RewardError: it raised, or returned no scores.
    """
    for _, row, _ in samples:
        reward.needs.require_columns(row)

    def score(order: Sequence[int], size: int | None = None) -> Tensor:
        """(n,) in the order of the samples."""
        it = replace(reward, config=replace(reward.config, batch_size=size or reward.config.batch_size))
        found, found_messages = _scored(it, rewards.accelerator, [samples[k] for k in order])
        messages.update(found_messages)
        return found[torch.tensor(order).argsort()]

    messages: dict[str, str] = {}
    every = list(range(len(samples)))
    first = score(every)
    changes = {"when asked again": _apart(first, score(every)), "in another order": _apart(first, score(every[::-1]))}
    if not reward.groupwise:
        changes["alone"] = _apart(first, score(every, 1))
        changes["between others"] = _apart(first, score(every[1::2] + every[::2], max(2, reward.config.batch_size // 2)))
    latency = _seconds(lambda: score(every if reward.groupwise else every[:1]))
    many = len(samples) if reward.groupwise else reward.config.batch_size
    full = [samples[k % len(samples)] for k in range(many)]
    seconds = _seconds(lambda: _scored(reward, rewards.accelerator, full))
    names = [name for name, _, _ in samples]
    return Findings(dict(zip(names, first.tolist(), strict=True)), messages.get(reward.name, ""), latency, many / seconds, changes)


def _scored(reward: LoadedReward, accelerator: Accelerator, samples: Sequence[tuple[str, Row, Any]]) -> tuple[Tensor, dict[str, str]]:
    """((n,) scores, the reward's error messages). For a groupwise reward all samples are one group of the first row."""
    rewards = RewardSet([reward], accelerator)
    if reward.groupwise:
        found = rewards.score([samples[0][1]], [[one for _, _, one in samples]])
    else:
        found = rewards.score([replace(row, id=k) for k, (_, row, _) in enumerate(samples)], [[one] for _, _, one in samples])
    return torch.cat(found)[:, 0], rewards.counts.cause


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite if only one of two scores is missing."""
    if not torch.equal(a.isnan(), b.isnan()):
        return math.inf
    return (a - b).abs().nan_to_num().max().item()


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of one call, averaged over `LEAST` seconds of calls."""
    begun, times = time.perf_counter(), 0
    while not times or (time.perf_counter() - begun < LEAST and times < 1000):
        work()
        times += 1
    return (time.perf_counter() - begun) / times


def memory() -> dict[str, float]:
    """GB at the peak so far: main memory of this process, and of GPUs."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"main memory": peak} | {f"cuda:{k}": torch.cuda.max_memory_allocated(k) / 1e9 for k in range(torch.cuda.device_count())}
