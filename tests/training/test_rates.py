"""The learning rate over a run's optimiser steps, against diffusers' own schedules."""

from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from flow_factory.config import TRAIN_CONFIGS
from flow_factory.training.schedule import make_schedule, rate_share

RATE = 0.1


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=RATE)


def rates(schedule: Any, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_without_a_warm_up_it_is_diffusers_schedule_up_to_its_end(name: str) -> None:
    train = TRAIN_CONFIGS["grpo"](learning_rate=RATE, lr_scheduler=name, max_epochs=4)
    ours, its = make_schedule(train, optimizer(), 3), get_scheduler(name, optimizer(), num_warmup_steps=0, num_training_steps=12)
    assert rates(ours, 12) == pytest.approx(rates(its, 12))


@pytest.mark.parametrize("warm", [0, 5])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_it_stays_at_its_end_in_a_run_that_is_longer(name: str, warm: int) -> None:
    train = TRAIN_CONFIGS["grpo"](learning_rate=RATE, lr_scheduler=name, lr_total_steps=20, lr_warmup_steps=warm, max_epochs=50)
    found = rates(make_schedule(train, optimizer(), 2), 100)
    assert found[20:] == [0] * 80 and all(rate > 0 for rate in found[:20])
    assert found[warm:] == sorted(found[warm:], reverse=True)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warm", [1, 4])
def test_a_warm_up_begins_above_0_and_ends_at_the_full_rate(name: str, warm: int) -> None:
    train = TRAIN_CONFIGS["grpo"](lr_scheduler=name, lr_warmup_steps=warm)
    assert [rate_share(train, step, 10) for step in range(warm)] == pytest.approx([(k + 1) / warm for k in range(warm)])
    assert rate_share(train, warm, 10) == 1
