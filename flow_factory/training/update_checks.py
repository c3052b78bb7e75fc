"""Checks of updates: that each epoch begins on-policy, and that the first update has an effect."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_factory.algorithms.base import OnPolicyError
from flow_factory.training.context import TrainingContext
from flow_factory.training.health import no_numbers
from flow_factory.training.replay_error import FEW
from flow_factory.types import Point
from flow_factory.utils.errors import NumbersError

logger = logging.getLogger(__name__)


@dataclass
class UpdateChecks:
    """The checks of one run on one process."""

    context: TrainingContext
    floor: float = 0.0
    """The difference of replays from their rollout at the start, see `replay_error.measure`."""
    first: tuple[Point, Tensor] | None = None
    """The run's first training point, and its velocity before any update."""

    def saw(self, point: Point, velocity: Tensor) -> None:
        """Stores the run's first point and velocity."""
        if self.context.progress.updates == 0 and self.first is None:
            self.first = point, velocity.detach()

    def on_policy(self, metrics: dict[str, Tensor]) -> None:
        """Checks before the first update of an epoch that training computes what sampling computed.

        Raises:
            OnPolicyError: the difference is larger than a tenth of the algorithm's bound, and than a few times `floor`.
            NumbersError: the model's output is not finite.
        """
        context, progress = self.context, self.context.progress
        found = context.algorithm.on_policy_error(metrics)
        if found is None:
            return
        error, tenth = found
        most = max(tenth, FEW * self.floor)
        context.meter.add({"on_policy_error": error})
        if not error.isfinite():
            raise NumbersError(f"epoch {progress.epoch + 1}: {no_numbers(context.engine, progress.updates)}")
        if not error.item() <= most:
            bound = context.algorithm.bound
            floors = f" and {FEW} floors" if most > tenth else ""
            raise OnPolicyError(
                f"epoch {progress.epoch + 1}: before any update the policy differs from the rollout by {error.item():.2e}, more than a "
                f"tenth of train.{bound}{floors} ({most:.1e}): training does not compute what sampling computed. On a GPU whose kernels "
                "differ with and without gradient, no smaller bound can work: try model.attn_backend: _native_math, "
                f"compile: false, or a larger train.{bound}"
            )

    def effect(self, velocity: Callable[[Point], Tensor], moves: bool) -> None:
        """Checks that the run's first update has changed the velocity of a point: a stale copy of the weights would not.

        Args:
            velocity: returns the velocity under the present weights.
            moves: whether the learning rate and the gradient were not 0.
        """
        if self.first is None:
            return
        (point, before), self.first = self.first, None
        with torch.no_grad():
            change = (velocity(point).float() - before.float()).abs().max()
        self.context.meter.add({"first_update_effect": change})
        if moves and change.item() == 0:
            logger.warning("the first optimiser step changed no velocity: the learning rate is too small for the weights' dtype")
