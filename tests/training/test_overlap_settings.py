"""Settings under which training cannot overlap with rewards."""

from pathlib import Path

import pytest
import torch

from flow_factory.config import ConfigError, load_config
from flow_factory.core.advantage import gdpo, group_advantage
from flow_factory.training.overlap import require_independence
from flow_factory.utils.errors import UserError
from tests.tiny.run import write_run
from tests.training.overlapping import KEYS, OVERLAP


@pytest.mark.parametrize(("overrides", "text"), [
    (["rewards.async_reward=false"], "no reward runs asynchronously; write async_reward: true"),
    (["train.global_std=true"], "train.global_std: true divides by a deviation of all groups; write global_std: false"),
    (["train.num_inner_epochs=2"], "train.num_inner_epochs: 2 goes over the epoch several times; write 1"),
    (["train.drop_zero_variance=true"], "train.drop_zero_variance leaves out samples by their scores"),
    (["train.best_of_n=2", "train.per_device_batch_size=1"], "best_of_n: 2 chooses what is trained on by the scores; write false"),
    (["train.trainer_type=dpo"], "trainer_type: dpo chooses what is trained on by the scores; write false"),
    (["train.unique_sample_num_per_epoch=1", "train.gradient_step_per_epoch=2"], "a group is shared among processes or optimiser steps"),
])  # fmt: skip
def test_what_needs_the_whole_epochs_scores_is_refused(tmp_path: Path, overrides: list[str], text: str) -> None:
    write_run(tmp_path)
    keys = [*KEYS, OVERLAP, "rewards.async_reward=true"]
    assert load_config("tiny.yaml", keys).train.reward_optimization_overlap
    with pytest.raises(ConfigError, match=f"train.reward_optimization_overlap: {text}"):
        load_config("tiny.yaml", [*keys, *overrides])


def test_advantages_that_look_at_other_groups_are_found_out() -> None:
    weights = torch.ones(2, dtype=torch.float64)
    require_independence(lambda scores: group_advantage(scores, weights, False), (3, 4, 2), "sum")
    for across in (lambda scores: gdpo(scores, weights, False), lambda scores: ((scores - scores.nanmean((0, 1))).sum(-1), {})):
        with pytest.raises(UserError, match="a group's advantages depend on other groups' scores under advantage_aggregation: mine.all"):
            require_independence(across, (3, 4, 2), "mine.all")
