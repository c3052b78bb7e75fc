"""What an algorithm is: which steps are stochastic, the training points of a rollout, the loss of one point."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from flow_factory.config import SchedulerConfig, TrainConfig
from flow_factory.core.groups import best_of_n, pick
from flow_factory.types import Metrics, Point, Rollout, Velocity


class OnPolicyError(RuntimeError):
    """Training does not see what sampling saw."""


@dataclass(frozen=True)
class Average:
    """A kept copy that follows the policy: copy <- d copy + (1 - d) policy."""

    decay: Callable[[int], float]
    """d, from the number of optimiser steps taken."""
    after: Literal["update", "epoch"] = "epoch"
    device: str = "auto"


class Algorithm:
    """One RL algorithm; the trainer calls its methods in the order in which they stand here.

    Attributes:
        weights: names of the weights whose velocity the loss asks for beside the policy's: "ref" (untrained), "ema" (the run's average),
            one of `averages`, or "old", which without an average is the policy as it was when the epoch began, and costs no copy.
        averages: copies that follow the policy.
        scope: which points the loss compares: "group", the same noise level in all micro-batches of a group; "times", all noise levels
            of a micro-batch; None, none. `survey` sees them first, where they are more than one.
        with_mean: whether the transitions' means are kept.
        with_schedule: whether a rollout's noise levels are; an ODE rollout's always are.
        bound: the key of `train:` that says how far the policy may go from what sampled, where `on_policy_error` is a tenth of it.
    """

    Config: ClassVar[type[TrainConfig]]
    weights: tuple[str, ...] = ()
    averages: Mapping[str, Average] = {}
    scope: Literal["group", "times"] | None = None
    with_mean: ClassVar[bool] = False
    with_schedule: bool = False
    bound: ClassVar[str] = ""

    def __init__(self, config: TrainConfig, scheduler: SchedulerConfig, per_sample_times: bool = False):
        """`per_sample_times`: whether the model takes a time a sample, instead of one for all of a micro-batch."""
        self.config, self.scheduler, self.per_sample_times = config, scheduler, per_sample_times

    @property
    def compares_group(self) -> bool:
        """Whether a group must be whole where it is trained on."""
        return self.scope == "group" or self.config.best_of_n is not None or type(self).select is not Algorithm.select

    def guidance(self, weights: str) -> float | None:
        """Scale of the classifier-free guidance of these weights' velocity, 1 for none; None: the rollout's."""
        return None

    def rolls_out(self, updates: int) -> str:
        """The weights that sample, after so many optimiser steps."""
        return "policy"

    def noisy(self, epoch: int, group: int) -> tuple[int, ...]:
        """Indices of a group's stochastic steps, the same on every process; empty for an ODE rollout."""
        raise NotImplementedError(f"{type(self).__name__} does not say which steps are stochastic")

    def kept(self, epoch: int, group: int) -> tuple[int, ...]:
        """The steps whose transitions are kept, to be trained on; ODE steps may be among them."""
        return self.noisy(epoch, group)

    def select(self, group: Sequence[Rollout]) -> list[Rollout]:
        """The micro-batches that are trained on, of a whole group whose advantages are known."""
        keep = self.config.best_of_n
        if keep is None:
            return list(group)
        chosen = best_of_n(torch.cat([r.advantage for r in group]).cpu(), keep)
        return [pick(group, part.tolist()) for part in chosen.split(self.config.per_device_batch_size)]

    def points(self, rollout: Rollout) -> Iterator[Point]:
        """The micro-batch's training points, a forward and backward each; a pure function, which makes each when its turn comes."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it is trained on")

    def size(self, rollout: Rollout) -> int:
        """How many they are."""
        return self.config.points_per_batch(self.scheduler)

    def survey(self, points: Sequence[Point], velocity: Velocity) -> Sequence[Any]:
        """What the loss of each of these points must know of the others (`Point.peers`); without gradient, before an optimiser step."""
        raise NotImplementedError(f"{type(self).__name__} has a scope and no survey")

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        """The scalar loss of one point, and what to log of it. Asks for the policy's velocity before any other."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def on_policy_error(self, metrics: Metrics) -> tuple[Tensor, float] | None:
        """(how far the first point of an epoch is from what sampling saw, the largest distance that still can be trained on)."""
        return None
