"""Rules about what may be trained on before all is scored. Each yields what breaks it."""

from collections.abc import Iterator

from flow_factory.config.algorithm_rules import Rule
from flow_factory.config.algorithms import DPOConfig
from flow_factory.config.nodes import Problem
from flow_factory.config.plan import micro_batches_per_update
from flow_factory.config.run import RunConfig


def scores_come_in_time(config: RunConfig) -> Iterator[Problem]:
    if config.train.reward_optimization_overlap and (text := _too_early(config)) is not None:
        yield Problem(("train", "reward_optimization_overlap"), text)


def _too_early(config: RunConfig) -> str | None:
    """Why no group can be trained on before all have their scores."""
    train, weighed = config.train, [reward for reward in config.rewards or () if reward.weight]
    rows, here = train.unique_sample_num_per_epoch, train.trained_batches_per_group
    if not any(reward.async_reward for reward in config.rewards or ()):
        return "no reward runs asynchronously; write async_reward: true in an entry of rewards:, or false here"
    if train.global_std:
        return "train.global_std: true divides by a deviation of all groups; write global_std: false, or false here"
    if train.num_inner_epochs > 1:
        return f"train.num_inner_epochs: {train.num_inner_epochs} goes over the epoch several times; write 1, or false here"
    if len(weighed) > 1 and train.advantage_aggregation == "gdpo":
        return "advantage_aggregation: gdpo divides the sum of several rewards by its deviation in all groups; write sum, or false here"
    if train.drop_zero_variance:
        return "train.drop_zero_variance leaves out samples by their scores; write drop_zero_variance: false, or false here"
    if train.best_of_n is not None or isinstance(train, DPOConfig):
        what = f"best_of_n: {train.best_of_n}" if train.best_of_n is not None else f"trainer_type: {train.trainer_type}"
        return f"{what} chooses what is trained on by the scores; write false"
    if config.model.context_parallel > 1:
        return "processes that share a sequence also share its scores; write context_parallel: 1, or false here"
    if rows % config.teams or micro_batches_per_update(config) % here:
        return "a group is shared among processes or optimiser steps, which then need its scores; write more rows an epoch, or false here"
    return None


OVERLAP_RULES: tuple[Rule, ...] = (scores_come_in_time,)
