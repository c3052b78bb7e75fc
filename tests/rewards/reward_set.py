"""A reward as a run has it, and pictures for it."""

from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.scoring import RewardSet, load_rewards
from flow_factory.types import Row


def pictures(n: int, seed: int = 0) -> list[Image.Image]:
    """Coarse patches, which resizing does not average away."""
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize((48, 40), Image.Resampling.NEAREST) for _ in range(n)]


def rewards(model: str, batch_size: int = 16, **extra: Any) -> RewardSet:
    config = RewardArguments(name="it", reward_model=model, batch_size=batch_size, extra_kwargs=extra)
    return load_rewards([config], None, Accelerator(cpu=True))[0]


def judged(*classes: type, **extra: Any) -> RewardSet:
    """Of a test's own classes, by their names."""
    entries = [RewardArguments(name=c.__name__.lower(), reward_model=f"{c.__module__}:{c.__name__}", extra_kwargs=extra) for c in classes]
    return load_rewards(entries, None, Accelerator(cpu=True))[0]


def scores(rewards: RewardSet, media: list, **columns: Any) -> Tensor:
    """(n,) of one group."""
    return rewards.score([Row(0, 'a red circle "stop"', columns=columns)], [media])[0][:, 0]
