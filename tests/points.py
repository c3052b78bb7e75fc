"""Points and rollouts made by hand, whose velocities are given instead of computed."""

from typing import Any

import torch
from torch import Tensor

from flow_factory.algorithms import ALGORITHMS
from flow_factory.algorithms.base import Algorithm
from flow_factory.config import SchedulerConfig
from flow_factory.types import Point, Rollout, Row, Step

SCHEDULE = torch.linspace(1, 0, 11)


def made(name: str, per_sample_times: bool = False, scheduler: dict[str, Any] | None = None, **train: Any) -> Algorithm:
    """The algorithm of this name, as a run builds it."""
    cls = ALGORITHMS[name]
    return cls(cls.Config(**{"trainer_type": name, **train}), SchedulerConfig(**scheduler or {}), per_sample_times)


def given(point: Point, weights: str = "policy") -> Tensor:
    """A velocity that stands in the point; one that does not is none that the algorithm may ask for."""
    return point.frozen[weights]


def noised(x0: Tensor, noise: Tensor, s: Tensor, advantage: Tensor, **velocities: Tensor) -> Point:
    """A point on the forward process, with its velocities by the weights' names."""
    at = s.reshape(-1, *[1] * (x0.ndim - 1))
    return Point((1 - at) * x0 + at * noise, 1000 * s, s, {}, advantage, x0=x0, noise=noise, frozen=velocities)


def rollout(advantage: Tensor, ids: tuple[int, ...] = (), group: int = 0, epoch: int = 0, x0: Tensor | None = None, **more: Any) -> Rollout:
    """A micro-batch of an ODE rollout of ten steps, or of an SDE rollout if `steps` are given."""
    steps: list[Step] = more.pop("steps", [])
    ids = ids or tuple(range(len(advantage)))
    times = None if steps else (1000 * SCHEDULE[:-1], SCHEDULE)
    result = Rollout(Row(0, "a cat"), {}, steps, [], group, epoch, ids, x0, times, **more)
    result.advantage, result.rewards = advantage, advantage[:, None]
    return result


def latents(ids: tuple[int, ...], shape: tuple[int, ...] = (3, 4)) -> Tensor:
    """A final state for each sample, its own whatever its neighbours."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in ids])
