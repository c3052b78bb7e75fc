"""Pictures from dark to light, and their scores by a judge on a server."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flow_factory.types import Row
from tests.rewards.reward_set import rewards
from tests.tiny.judge_server import brightness

SHADES = [Image.new("RGB", (8, 8), (k, k, k)) for k in (10, 60, 110, 160, 210)]
LIGHT = torch.tensor([brightness(shade) for shade in SHADES])
VQA = [["How many dogs are in the image?", "one"], ["Is the dog red?", "Yes"]]


def scored(name: str, address: str, media: list[Any] = SHADES, row: Row | None = None, **extra: Any) -> Tensor:
    """(n,) scores of a group."""
    reward = rewards(name, api_base_url=address, **extra)
    return reward.score([row or Row(0, "a dog", columns={"vqa_list": VQA})], [media])[0][:, 0]
