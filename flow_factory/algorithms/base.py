"""The interface of an algorithm: its stochastic steps, the training points of a rollout, the loss of a point."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from flow_factory.config import SchedulerConfig, TrainConfig
from flow_factory.core.groups import best_of_n, pick
from flow_factory.types import Metrics, Point, Rollout, Velocity


class OnPolicyError(RuntimeError):
    """Training does not compute what sampling computed."""


@dataclass(frozen=True)
class Average:
    """A copy of the weights that follows the policy: copy <- d copy + (1 - d) policy."""

    decay: Callable[[int], float]
    """d as a function of the optimiser steps taken."""
    after: Literal["update", "epoch"] = "epoch"
    device: str = "auto"
    of: str = "policy"
    """The network whose weights it follows."""


@dataclass(frozen=True)
class LoraFile:
    """Weights from a file: a LoRA over the run's base."""

    path: str
    key: str
    """The config key that names it."""
    device: str = "auto"


@dataclass(frozen=True)
class Turn:
    """One optimiser step of an update: the network that it trains, on which points, by which loss."""

    network: str
    points: Callable[[Rollout], Iterator[Point]]
    """See `Algorithm.points`; `loss` and `precompute` likewise."""
    loss: Callable[[Point, Velocity], tuple[Tensor, Metrics]]
    precompute: Callable[[Sequence[Point], Velocity], Sequence[Any]] | None = None
    """None if the loss of a point does not depend on others."""
    needs: tuple[tuple[str, float | None], ...] = ()
    """(name of weights, guidance scale) of the velocities without gradient that the loss of a point needs, see `Velocity`."""


class Algorithm:
    """One RL algorithm. The trainer calls its methods in the order of their definition.

    Attributes:
        weights: names of other weights than the policy's whose velocities the loss needs: "ref" (untrained), "ema" (the run's average),
            one of `averages` or `files`, or "old", which without an average is the policy at the beginning of the epoch, and costs no copy.
        precomputes_velocities: whether these velocities are computed for all points of an epoch before its first update.
        averages: copies that follow the policy.
        files: weights from files, such as a teacher's. They never change.
        scope: which points the loss compares: "group", the same noise level in all micro-batches of a group; "times", all noise levels
            of a micro-batch; None, none. `precompute` gets them first, if there is more than one.
        with_mean: whether the transitions' means are stored.
        with_schedule: whether a rollout's noise levels are stored; for ODE rollouts they always are.
        bound: the key of `train:` that limits how far the policy may move from the sampling policy; `on_policy_error` may be a tenth of it.
        through_sampler: whether it learns from the gradient of the rewards: `objective` is back-propagated through the sampler's steps.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {"asks": "needs", "survey": "precompute", "looks_back": "precomputes_velocities"}
    """Members by the names that earlier versions called. A class that defines one would be ignored there, so it is refused."""
    Config: ClassVar[type[TrainConfig]]
    weights: tuple[str, ...] = ()
    averages: Mapping[str, Average] = {}
    files: Mapping[str, LoraFile] = {}
    scope: Literal["group", "times"] | None = None
    with_mean: ClassVar[bool] = False
    precomputes_velocities: ClassVar[bool] = True
    with_schedule: bool = False
    bound: ClassVar[str] = ""
    through_sampler: ClassVar[bool] = False

    def __init__(self, config: TrainConfig, scheduler: SchedulerConfig, per_sample_times: bool = False):
        """`per_sample_times`: whether the model takes a time per sample, instead of one per micro-batch."""
        self.config, self.scheduler, self.per_sample_times = config, scheduler, per_sample_times

    @property
    def compares_group(self) -> bool:
        """Whether an optimiser step must contain whole groups."""
        return self.scope == "group" or self.config.best_of_n is not None or type(self).select is not Algorithm.select

    def guidance(self, weights: str) -> float | None:
        """The classifier-free guidance scale of these weights' velocity: 1 for none, None for that of the rollout."""
        return None

    def needs(self, weights: str, rollout: Rollout) -> bool:
        """Whether the loss needs the velocities under these weights for this micro-batch."""
        return weights != "ref" or not rollout.unheld

    def rolls_out(self, updates: int) -> str:
        """The weights that sample after `updates` optimiser steps."""
        return "policy"

    def noisy(self, epoch: int, group: int) -> tuple[int, ...]:
        """Indices of a group's stochastic steps, the same on every process; empty for an ODE rollout."""
        raise NotImplementedError(f"{type(self).__name__} does not say which steps are stochastic")

    def kept(self, epoch: int, group: int) -> tuple[int, ...]:
        """The steps whose transitions are stored for training; they may include ODE steps."""
        return self.noisy(epoch, group)

    @property
    def reads_final(self) -> bool:
        """Whether it reads a rollout's final states, `Rollout.x0`."""
        return not self.config.stochastic

    def select(self, group: Sequence[Rollout]) -> list[Rollout]:
        """The micro-batches to train on, from a whole group with advantages."""
        keep = self.config.best_of_n
        if keep is None:
            return list(group)
        chosen = best_of_n(torch.cat([r.advantage for r in group]).cpu(), keep)
        return [pick(group, part.tolist()) for part in chosen.split(self.config.per_device_batch_size)]

    def turns(self, update: int) -> Sequence[Turn]:
        """The optimiser steps of an update, in their order: one for a single network."""
        others = tuple((name, None) for name in self.weights)
        return (Turn("policy", self.points, self.loss, self.precompute if self.scope is not None else None, others),)

    def points(self, rollout: Rollout) -> Iterator[Point]:
        """The micro-batch's training points, each one forward and backward. A pure function; it makes the points lazily."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it is trained on")

    def size(self, rollout: Rollout) -> int:
        """The number of training points."""
        return self.config.points_per_batch(self.scheduler)

    def objective(self, score: Tensor) -> Tensor:
        """(n,) loss of samples from their scores (n,), the weighted sum of the rewards. Differentiable; see `Rollout.slope`."""
        raise NotImplementedError(f"{type(self).__name__} has no objective of the final pictures")

    def precompute(self, points: Sequence[Point], velocity: Velocity) -> Sequence[Any]:
        """The values that the loss of each point needs from the others (`Point.peers`). Runs without gradient before an optimiser step."""
        raise NotImplementedError(f"{type(self).__name__} has a scope and no precompute")

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        """The scalar loss of one point, and its metrics. It must compute the policy's velocity before any other."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def on_policy_error(self, metrics: Metrics) -> tuple[Tensor, float] | None:
        """(distance of an epoch's first point from what sampling computed, the largest acceptable distance)."""
        return None
