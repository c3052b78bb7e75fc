"""Rewards that are smooth in the weights: where a sum in another order moves a picture a little, they move a little, and no more.

The size of a file, a rank and a detector jump there. Each is exact in whatever order and batch it is asked.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flow_factory.rewards import GroupwiseRewardModel, PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.media import scored, to_tensor


def brightness(frames: Sequence[Image.Image]) -> float:
    """From 0 to 255."""
    return float(np.mean([np.asarray(frame, np.float64) for frame in frames]))


class Bright(PointwiseRewardModel):
    """Of a picture or a clip."""

    required_fields = ("image", "video")

    def __call__(self, image: Any = None, video: Any = None, **columns: Any) -> RewardModelOutput:  # type: ignore[override]
        clips = [[picture] for picture in image] if video is None else video
        return RewardModelOutput(rewards=[brightness(frames) for frames in clips])


class Outshines(GroupwiseRewardModel):
    """By how much each picture is brighter than its group."""

    required_fields = ("image",)

    def __call__(self, image: list[Image.Image], **columns: Any) -> RewardModelOutput:
        assert len(image) == 4, "the whole group"
        light = np.array([np.asarray(picture, np.int64).sum() for picture in image])  # integers: a mean in any order
        return RewardModelOutput(rewards=((light - light.mean()) / image[0].width ** 2).tolist())


class Warm(PointwiseRewardModel):
    """A smooth function of pixels: more red than blue, and not too bright."""

    no_gradient = None

    def differentiable(self, prompt: list[str], pixels: Tensor) -> Tensor:
        pixels = pixels.double()
        return pixels[:, 0].mean((1, 2)) - pixels[:, 2].mean((1, 2)) - pixels.square().mean((1, 2, 3))

    def __call__(self, prompt: list[str], image: list | None = None, video: list | None = None) -> RewardModelOutput:
        return RewardModelOutput(scored(self._score, prompt, image, video, 16))

    def _score(self, prompts: list[str], pictures: list[Image.Image]) -> Tensor:
        return self.differentiable(prompts, torch.stack([to_tensor(picture, self.device) for picture in pictures]))
