"""The learning rate schedule of a run."""

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from flow_factory.config import TrainConfig


def make_schedule(train: TrainConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> LambdaLR:
    """The schedule over the run's optimiser steps."""
    total = train.lr_total_steps or (steps_per_epoch * train.max_epochs if train.max_epochs else None)
    return LambdaLR(optimizer, lambda step: rate_share(train, step, total))


def rate_share(train: TrainConfig, step: int, total: int | None) -> float:
    """The learning rate of an optimiser step, counted from 0, as a share of train.learning_rate. It depends on config and step only.

    Args:
        total: the step at which linear and cosine schedules end.
    """
    warm = train.lr_warmup_steps
    if step < warm:
        return (step + 1) / warm
    if train.lr_scheduler == "constant":
        return 1.0
    assert total is not None  # the config's rules require it
    done = min(1.0, (step - warm) / max(1, total - warm))
    return 1 - done if train.lr_scheduler == "linear" else (1 + math.cos(math.pi * done)) / 2


def scale_rate(schedule: LambdaLR, factor: float) -> None:
    """From here on the learning rates are those of the config times a factor, the next step's included; 1 changes nothing."""
    groups = schedule.optimizer.param_groups
    schedule.base_lrs = [group["initial_lr"] * factor for group in groups]
    rates = [rate * share(schedule.last_epoch) for rate, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
