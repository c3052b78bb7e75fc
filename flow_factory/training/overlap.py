"""`train.reward_optimization_overlap`: groups are trained on, in order, while the rewards of later ones are still computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_factory.training.context import TrainingContext
from flow_factory.training.rollout_scoring import RolloutScoring
from flow_factory.types import Metrics, Rollout
from flow_factory.utils.errors import UserError

Weigh = Callable[[Tensor], tuple[Tensor, Metrics]]
"""(groups, samples, R) scores of an epoch, NaN where one is missing -> (groups, samples) advantages, metrics."""


@dataclass
class AdvantagesInTime:
    """One epoch on one process: computes the advantages of a window's groups as soon as all their scores are known."""

    context: TrainingContext
    judging: RolloutScoring
    rollouts: Sequence[Rollout]
    """This process's micro-batches of the epoch, of whole groups."""
    weigh: Weigh

    def __post_init__(self) -> None:
        for rollout in self.rollouts:  # kept weights are asked for velocities, which no advantage changes, before any is known
            rollout.advantage = torch.full((len(rollout.ids),), torch.nan, device=self.context.accelerator.device)

    def __call__(self, window: Sequence[Rollout]) -> None:
        """Waits for the scores of these micro-batches' groups, and fills in `Rollout.advantage` of the groups.

        A group's are computed in a table of all groups, in which the others' scores are missing: to the bit as with all scores.

        Raises:
            UserError, Interrupted: see `all_or_none`.
        """
        groups = {batch.group for batch in window}
        upto = max(k for k, rollout in enumerate(self.rollouts) if rollout.group in groups) + 1
        with self.context.meter.phase("reward"):
            known = self.judging.first(sum(len(rollout.ids) for rollout in self.rollouts[:upto]))
        with self.context.meter.phase("advantage"):
            self.fill_in([rollout for rollout in self.rollouts[:upto] if rollout.group in groups], known)

    def fill_in(self, rollouts: Sequence[Rollout], known: dict[int, Tensor]) -> None:
        """Sets `Rollout.advantage` of whole groups from the scores of their samples."""
        plan = self.context.plan
        table = torch.full((plan.groups, plan.group_size, len(self.context.rewards.names)), torch.nan, dtype=torch.float64)
        places = [(rollout.group, [i - rollout.group * plan.group_size for i in rollout.ids]) for rollout in rollouts]
        for rollout, (group, members) in zip(rollouts, places, strict=True):
            table[group, members] = torch.stack([known[i] for i in rollout.ids]).double()
        found, _ = self.weigh(table)
        for rollout, (group, members) in zip(rollouts, places, strict=True):
            rollout.advantage = found[group, members].to(self.context.accelerator.device)


def require_independence(weigh: Weigh, shape: tuple[int, int, int], name: str) -> None:
    """Checks that a group's advantages are the same, to the bit, with and without the scores of other groups.

    Args:
        shape: of the table of an epoch's scores.
        name: what `train.advantage_aggregation` says.

    Raises:
        UserError: they are not.
    """
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = whole.clone()
    alone[1:] = torch.nan
    if not torch.equal(weigh(whole)[0][0], weigh(alone)[0][0]):
        text = f"a group's advantages depend on other groups' scores under advantage_aggregation: {name}"
        raise UserError(f"train.reward_optimization_overlap: {text}; write false, or advantage_aggregation: sum")
