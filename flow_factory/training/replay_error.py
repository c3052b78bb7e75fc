"""The difference of a replay from its rollout before any update, measured at the start if settings may cause one."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flow_factory.algorithms.base import Algorithm
from flow_factory.config import BatchPlan, RunConfig
from flow_factory.core.groups import cut
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.types import Metrics, Point
from flow_factory.utils.errors import UserError

if TYPE_CHECKING:
    from flow_factory.training.trainer import Trainer

REPLAYS = 3
FEW = 3
"""The tolerated multiple of the measured difference: the maximum of a few replays is not the maximum of all."""


def inexact(config: RunConfig, plan: BatchPlan) -> list[str]:
    """The settings, as written, under which a replay may differ from its rollout."""
    model, train = config.model, config.train
    found = ["model.compile: true"] if model.compile else []
    found += [f"model.attn_backend: {model.attn_backend}"] if model.attn_backend is not None else []
    alone = train.rollout_batch_size in (None, "auto") or plan.drawn_together == 1
    return found if alone else [*found, f"train.rollout_batch_size: {train.rollout_batch_size}"]


def measure(trainer: "Trainer") -> str | None:
    """Replays the transitions of the run's first micro-batch a few times. The learner uses the result as its tolerance.

    Returns:
        A line with the result; None if everything is exact, or the algorithm compares nothing.

    Raises:
        UserError: the algorithm's bound is below the measured difference.
    """
    settings = inexact(trainer.context.config, trainer.context.plan)
    compares = type(trainer.context.algorithm).on_policy_error is not Algorithm.on_policy_error
    if not settings or not compares or trainer.context.given is not None:
        return None
    errors = [found for found in replayed(trainer) if found is not None]
    if not errors:
        return None
    worst = torch.stack([error for error, _ in errors]).max().float().reshape(1)
    wait_for_everyone("replaying a rollout")
    floor = trainer.context.accelerator.gather(worst).max().item()
    bound, most = f"train.{trainer.context.algorithm.bound}", 10 * errors[0][1]
    if floor > most:
        works = f"{10 * floor:.0e}".replace("e-0", "e-")
        text = f"replays of one transition differ by {floor:.1e} under {', '.join(settings)}, more than its bound of {most:.1e}"
        raise UserError(f"{bound}: {text}: nothing could be learned; write {works} or more, or leave these settings out")
    trainer.learner.checks.floor = floor
    return f"on-policy floor: {floor:.1e} in {len(errors)} replays, under {', '.join(settings)}; {bound} is {most:.1e}"


def replayed(trainer: "Trainer") -> list[tuple[Tensor, float] | None]:
    """`Algorithm.on_policy_error` of each replay."""
    train, learner, algorithm = trainer.context.config.train, trainer.learner, trainer.context.algorithm
    epoch, (group, members) = trainer.context.progress.epoch, trainer.collector.draws()[0]
    row = trainer.collector.epoch_groups(epoch)[group]
    with torch.no_grad(), trainer.context.store.use(algorithm.rolls_out(trainer.context.progress.updates)):
        rollout = cut(trainer.collector.sample(row, members, epoch), train.per_device_batch_size)[0]
    rollout.advantage = torch.zeros(len(rollout.ids), device=trainer.context.accelerator.device)

    def error(point: Point) -> tuple[Tensor, float] | None:
        with trainer.context.engine.accumulating(last=False):  # with gradients as in training, but without their reduction
            v = learner.velocity_of(point).detach()
        metrics: Metrics = algorithm.loss(point, lambda point, weights="policy", guidance=None: v)[1]
        return algorithm.on_policy_error(metrics)

    return [error(point) for point in learner.points(rollout) for _ in range(REPLAYS)]
