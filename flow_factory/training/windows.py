"""The division of an epoch's training points into windows, and as many forwards on every process."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch

from flow_factory.algorithms.base import Algorithm
from flow_factory.distributed.collectives import max_over_ranks
from flow_factory.training.context import TrainingContext
from flow_factory.types import Rollout

Work = TypeVar("Work")


class Window(NamedTuple):
    """The micro-batches between two optimiser steps."""

    batches: list[Rollout]
    """The micro-batches that are computed."""
    points: int
    """The number of training points of the window, with those that are left out. The loss is the mean over them."""


def windows_of(context: TrainingContext, chosen: dict[int, list[Rollout]]) -> list[Window]:
    """The windows of this process, in their order.

    Args:
        chosen: the micro-batches that the algorithm trains on, by group.
    """
    plan = context.plan
    order = [batch for batches in chosen.values() for batch in batches]
    if len(order) > plan.trained_batches_per_rank:  # processes share groups, and this process holds them whole
        order = [chosen[group][k] for group, k in plan.trained.of(context.accelerator.process_index)]
    size = plan.micro_batches_per_update
    return [_window(context, order[k : k + size], chosen) for k in range(0, len(order), size)]


def _window(context: TrainingContext, batches: list[Rollout], chosen: dict[int, list[Rollout]]) -> Window:
    """With `drop_zero_variance`, micro-batches without an advantage are left out. Every process computes the same number."""
    algorithm = context.algorithm
    points = sum(map(algorithm.size, batches))
    if not context.config.train.drop_zero_variance:
        return Window(batches, points)
    silent = [not any(bool(x.advantage.any()) for x in compared(algorithm, [b], chosen)) for b in batches]
    count = max(1, max_over_ranks(context.accelerator, silent.count(False)))
    kept = sorted(sorted(range(len(batches)), key=silent.__getitem__)[:count])
    context.meter.add({"dropped_share": torch.tensor(1 - len(kept) / len(batches))})
    return Window([batches[k] for k in kept], points)


def compared(algorithm: Algorithm, batches: Sequence[Rollout], chosen: dict[int, list[Rollout]]) -> list[Rollout]:
    """These micro-batches; with them the rest of their groups, if the loss compares the samples of a group."""
    if algorithm.scope != "group":
        return list(batches)
    return [b for group in dict.fromkeys(b.group for b in batches) for b in chosen[group]]


def as_many(context: TrainingContext, work: list[Work], others: Sequence[Work] = ()) -> list[Work]:
    """Pads the work to the largest number of any process, if the engine's forwards are collective.

    The numbers differ where processes share groups, or where the rows of a data set are all on one process. The last item is
    repeated, with the same result.

    Args:
        others: the work to repeat if this process has none.
    """
    if not context.engine.collective:
        return work
    return work + (work or list(others))[-1:] * (max_over_ranks(context.accelerator, len(work)) - len(work))
