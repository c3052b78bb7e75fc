"""The rewards of a YAML, loaded for `ff-reward` in this process."""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from flow_factory.config.service import load_rewards_config
from flow_factory.hparams import RewardArguments
from flow_factory.rewards.loading import arguments, require_devices, require_files
from flow_factory.rewards.scoring import RewardSet, load_rewards


def entries_of(path: Path, overrides: Sequence[str]) -> list[RewardArguments]:
    """Raises:
    UserError: the config is wrong, or a device or what a reward reads is not there.
    """
    entries = arguments(load_rewards_config(path, overrides).rewards)
    require_devices(entries)
    require_files(entries, now=True)
    return entries


def loaded(entries: Sequence[RewardArguments]) -> RewardSet:
    """Raises:
    UserError: a reward does not load.
    """
    return load_rewards(entries, (), Accelerator(cpu=not torch.cuda.is_available()))[0]
