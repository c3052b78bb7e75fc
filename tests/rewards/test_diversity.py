"""The distance of a sample from the others of its group: of pictures and of videos, by pixels and by CLIP."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.diversity import DiversityReward
from flow_factory.utils.errors import UserError
from tests.rewards.reward_set import pictures


def reward(**keys: str) -> DiversityReward:
    entry = RewardArguments(name="apart", reward_model="diversity", batch_size=2, extra_kwargs=keys)
    return DiversityReward(entry, Accelerator(cpu=True))


@pytest.mark.parametrize("kind", ["pixels", pytest.param("clip", marks=pytest.mark.exhaustive)])
def test_two_that_are_the_same_are_at_no_distance(kind: str, keys: Any) -> None:
    model = reward(features=kind, **(keys("CLIP") if kind == "clip" else {}))
    one, two, three = pictures(3)
    scores = torch.as_tensor(model(["a"] * 4, image=[one, two, one, three]).rewards)
    assert scores.shape == (4,) and scores[0] == scores[2] == 0 and (scores[[1, 3]] > 0).all() and (scores <= 2).all()
    video = torch.as_tensor(model(["a"] * 3, video=[[one, two], [one, two], [three, three]]).rewards)
    assert video[0] == video[1] == 0 < video[2]


def test_a_flat_picture_has_no_direction_and_unknown_features_are_refused() -> None:
    grey = [Image.new("RGB", (16, 16), (k, k, k)) for k in (0, 90, 255)]
    assert torch.as_tensor(reward(features="pixels")(["a"] * 3, image=grey).rewards).isfinite().all()
    with pytest.raises(UserError, match="reward 'apart': features: wants clip or pixels, got 'dino'"):
        reward(features="dino")
