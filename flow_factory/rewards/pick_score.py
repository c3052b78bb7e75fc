"""PickScore: CLIP ViT-H fine-tuned on human choices between pictures of one prompt (arXiv 2305.01569)."""

import torch
from accelerate import Accelerator
from torch import Tensor

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.base import BaseRewardModel, GroupwiseRewardModel, PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.clip import CLIPScorer

PUBLISHED = ("yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
"""Weights and processor."""


class _PickScore(BaseRewardModel):
    required_fields = ("prompt", "image", "video")
    extra_keys = ("model_name_or_path", "processor_name_or_path")
    loads_weights = True
    changes_inputs = False

    @classmethod
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        CLIPScorer.require(config, *PUBLISHED, now=now)

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        self.clip = CLIPScorer(config, self.device, *PUBLISHED)

    def score(self, prompt: list[str], image: list | None, video: list | None) -> Tensor:
        """(n,) exp(logit_scale) * cosine / 26."""
        return self.clip.scale / 26 * self.clip.cosines(prompt, image, video)


class PickScoreReward(_PickScore, PointwiseRewardModel):
    """exp(logit_scale) * cosine / 26, the scale of RL trainers: real pairs about 0.7 to 0.95. A video's is the mean of its frames.

    float32, as published, unless the entry says another dtype; the logit scale and the cosine are float32 in any case.
    """

    no_gradient = None

    def __call__(self, prompt: list[str], image: list | None = None, video: list | None = None) -> RewardModelOutput:
        return RewardModelOutput(self.score(prompt, image, video))

    def differentiable(self, prompt: list[str], pixels: Tensor) -> Tensor:
        return self.clip.scale / 26 * self.clip.alike(prompt, pixels)


class PickScoreRank(_PickScore, GroupwiseRewardModel):
    """Rank of the PickScore in its group / group size: 0, 1/n, ..., (n-1)/n from worst to best; equal scores share their mean rank."""

    no_gradient = "it is a rank"

    def __call__(self, prompt: list[str], image: list | None = None, video: list | None = None) -> RewardModelOutput:
        return RewardModelOutput(ranks(self.score(prompt, image, video)) / len(prompt))


def ranks(scores: Tensor) -> Tensor:
    """(n,) how many scores lie below each one, ties counted half."""
    lower = (scores[None] < scores[:, None]).sum(1)
    equal = (scores[None] == scores[:, None]).sum(1) - 1
    return torch.where(scores.isnan(), scores, lower + equal / 2)
