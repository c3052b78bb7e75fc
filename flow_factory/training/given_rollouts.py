"""Rollouts from the media of the data set instead of samples."""

from collections.abc import Sequence

import torch

from flow_factory.config import SFTConfig, TrainConfig
from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.core.randomness import generator
from flow_factory.data.given import GivenMedia
from flow_factory.types import Cond, Rollout, Row


def draws_targets(train: TrainConfig) -> bool:
    """Whether latents are drawn from the VAE's distribution. For pairs its mode is used, so that equal files give equal states."""
    return isinstance(train, SFTConfig) and train.sample_targets


def given_rollout(
    given: GivenMedia, row: Row, cond: tuple[Cond, Cond], group: int, epoch: int, ids: Sequence[int], seed: int | None
) -> Rollout:
    """A micro-batch of a row's media: its target, once for each id; or its pair, the chosen one first.

    Args:
        cond: the condition on the device, and as the rollout stores it.
        seed: the seed of the draw from the VAE's distribution, keyed by row and epoch; None for the mode.
    """
    here, kept = cond
    drawn = None if seed is None else generator(seed, "target", epoch, row.id)
    states, media = given.states(row, here, drawn)
    which = [k % len(media) for k in range(len(ids))]
    rollout = Rollout(row, kept, [], [media[k] for k in which], group, epoch, tuple(ids), states[which], memo=ConditionMemo())
    rollout.advantage = torch.tensor([-1.0 if k else 1.0 for k in which], device=states.device)
    rollout.rewards = (rollout.advantage.cpu() > 0).float()[:, None]
    return rollout
