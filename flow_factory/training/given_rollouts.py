"""Given media as if they had been sampled."""

from collections.abc import Sequence

import torch

from flow_factory.config import SFTConfig, TrainConfig
from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.core.randomness import generator
from flow_factory.data.given import GivenMedia
from flow_factory.types import Cond, Rollout, Row


def draws_targets(train: TrainConfig) -> bool:
    """Whether media are draws from the VAE's distribution. A pair's are its modes: equal files are to be equal states."""
    return isinstance(train, SFTConfig) and train.sample_targets


def given_rollout(
    given: GivenMedia, row: Row, cond: tuple[Cond, Cond], group: int, epoch: int, ids: Sequence[int], seed: int | None
) -> Rollout:
    """A micro-batch of a row's media: its target as often as there are ids; or of a pair, the chosen one first.

    Args:
        cond: on the device, and as the rollout keeps it.
        seed: of the draw from the VAE's distribution, keyed by row and epoch; None takes the mode.
    """
    here, kept = cond
    drawn = None if seed is None else generator(seed, "target", epoch, row.id)
    states, media = given.states(row, here, drawn)
    which = [k % len(media) for k in range(len(ids))]
    rollout = Rollout(row, kept, [], [media[k] for k in which], group, epoch, tuple(ids), states[which], memo=ConditionMemo())
    rollout.advantage = torch.tensor([-1.0 if k else 1.0 for k in which], device=states.device)
    rollout.rewards = (rollout.advantage.cpu() > 0).float()[:, None]
    return rollout
