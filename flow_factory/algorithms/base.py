"""What an algorithm is: which steps are stochastic, the training points of a rollout, the loss of one point."""

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from flow_factory.config import SchedulerConfig, TrainConfig
from flow_factory.types import Metrics, Point, Rollout, Velocity


class OnPolicyError(RuntimeError):
    """Training does not see what sampling saw."""


class Algorithm:
    """One RL algorithm; the trainer calls its methods in the order in which they stand here.

    Attributes:
        weights: names of the kept copies ("ref", "old") whose velocity the loss asks for.
    """

    weights: tuple[str, ...] = ()
    Config: ClassVar[type[TrainConfig]]

    def __init__(self, config: TrainConfig, scheduler: SchedulerConfig):
        self.config, self.scheduler = config, scheduler

    def noisy(self, epoch: int) -> tuple[int, ...]:
        """Indices of the epoch's stochastic steps, the same on every process; empty for an ODE rollout."""
        raise NotImplementedError

    def points(self, rollout: Rollout) -> Iterator[Point]:
        """The rollout's training points, a forward and backward each."""
        raise NotImplementedError

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        """The scalar loss of one point, and what to log of it."""
        raise NotImplementedError

    def on_policy_error(self, metrics: Metrics) -> tuple[Tensor, float]:
        """(how far the first point of an epoch is from what sampling saw, the largest distance that still can be trained on)."""
        raise NotImplementedError
