"""How far a sample is from the others of its group: what GARDO (arXiv 2512.24138) scales advantages by; not a measure of quality."""

from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from flow_factory.core.uncertainty import nearest
from flow_factory.hparams import RewardArguments
from flow_factory.rewards.base import GroupwiseRewardModel, RewardModelOutput
from flow_factory.rewards.clip import WEIGHTS, CLIPScorer
from flow_factory.rewards.media import fold, unfold
from flow_factory.utils.errors import UserError

SIDE = 8
"""Of the picture that `features: pixels` sees."""


class DiversityReward(GroupwiseRewardModel):
    """1 - the largest cosine to another sample of the group, in [0, 2]; 0: the two are alike. Of a video, the frames' mean counts.

    Keys:
        features: clip, those of CLIP's picture tower; pixels, the 8 x 8 colours, less their mean, without a model.
        model_name_or_path, processor_name_or_path: of CLIP.
    """

    required_fields = ("image", "video")
    extra_keys = ("features", "model_name_or_path", "processor_name_or_path")
    loads_weights = True
    changes_inputs = False
    no_gradient = "it compares the samples of a group"
    FEATURES: ClassVar[tuple[str, ...]] = ("clip", "pixels")

    @classmethod
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        if cls.kind(config) == "clip":
            CLIPScorer.require(config, WEIGHTS, now=now)

    @classmethod
    def kind(cls, config: RewardArguments) -> str:
        """Raises:
        UserError: no such features.
        """
        kind = config.extra_kwargs.get("features", "clip")
        if kind not in cls.FEATURES:
            raise UserError(f"reward {config.name!r}: features: wants clip or pixels, got {kind!r}")
        return kind

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        self.clip = CLIPScorer(config, self.device, WEIGHTS) if self.kind(config) == "clip" else None

    def __call__(self, prompt: list[str], image: list | None = None, video: list | None = None, **_: Any) -> RewardModelOutput:
        pictures, counts = unfold(image, video)
        size = self.config.batch_size
        features = torch.cat([self.features(pictures[k : k + size]) for k in range(0, len(pictures), size)])
        samples = torch.stack([fold(column, counts) for column in features.cpu().unbind(1)], 1)
        return RewardModelOutput(nearest(samples))

    def features(self, pictures: list[Image.Image]) -> Tensor:
        """(n, d) of n pictures."""
        if self.clip is not None:
            return self.clip.pictures(pictures)
        small = [torch.tensor(list(p.convert("RGB").resize((SIDE, SIDE)).tobytes()), dtype=torch.float32) for p in pictures]
        return torch.stack([colours - colours.mean() for colours in small])
