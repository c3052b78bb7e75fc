"""Rewards that stand out when they are asked beside the sampling: slow ones, failing ones, ones that note their calls."""

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from flow_factory.hparams import RewardArguments
from flow_factory.rewards import GroupwiseRewardModel, PointwiseRewardModel
from flow_factory.rewards.scoring import RewardSet, load_rewards
from flow_factory.types import Row
from tests.rewards.test_reward_scoring import CALLS, colours

HERE = __name__
LONG = 60.0
"""Seconds after which a test that would hang fails."""


class Net(PointwiseRewardModel):
    """Sums whose last bits depend on the mode that torch is in, and a draw of each global generator."""

    use_tensor_inputs = True

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.model = nn.Conv2d(3, 4, 3)

    def __call__(self, image: list, **columns: Any) -> list[float]:
        drawn = float(torch.rand(())) + random.random() + float(np.random.rand())
        return [float(self.model(i[None]).float().sin().mean()) + drawn + torch.is_grad_enabled() for i in image]


class Ranks(GroupwiseRewardModel):
    def __call__(self, image: list, **columns: Any) -> list[float]:
        CALLS.setdefault(self.config.name, []).append(colours(image))
        return [c / len(image) for c in colours(image)]


class Listed(PointwiseRewardModel):
    def __call__(self, image: list, **columns: Any) -> list[float]:
        CALLS.setdefault(self.config.name, []).append(colours(image))
        return [float(c) for c in colours(image)]


class Waits(PointwiseRewardModel):
    """Until the class's `until` is true."""

    until: Callable[[], bool] = staticmethod(lambda: True)

    def __call__(self, image: list, **columns: Any) -> list[float]:
        ends = time.monotonic() + LONG
        while not type(self).until() and time.monotonic() < ends:
            time.sleep(0.005)
        assert time.monotonic() < ends, "nothing went on beside the reward"
        return [float(c) for c in colours(image)]


class Fails(PointwiseRewardModel):
    def __call__(self, image: list, **columns: Any) -> list[float]:
        raise ValueError("the model is gone")


class Lags(Ranks):
    """On the last process, and fails there in the epoch of the key `fails`."""

    def __call__(self, image: list, **columns: Any) -> list[float]:
        if self.accelerator.process_index == self.accelerator.num_processes - 1:
            time.sleep(0.05)
            if self.config.extra_kwargs.get("fails"):
                raise ValueError("the model is gone")
        return super().__call__(image)


def loaded(*entries: tuple[str, dict[str, Any]], beside: bool) -> RewardSet:
    """Of (class, keys), the names of the entries being their numbers."""
    named = [
        RewardArguments(name=f"r{k}", reward_model=f"{HERE}:{cls}", device="cpu", **{"async_reward": beside} | keys)
        for k, (cls, keys) in enumerate(entries)
    ]
    return load_rewards(named, None, Accelerator(cpu=True))[0]


def groups(rows: int, size: int) -> tuple[list[Row], list[list[Image.Image]]]:
    media = [[Image.new("RGB", (4, 4), (r * size + k, 5, 9)) for k in range(size)] for r in range(rows)]
    return [Row(k, "x") for k in range(rows)], media


def seeded(call: Callable[[], Any]) -> Any:
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    return call()
