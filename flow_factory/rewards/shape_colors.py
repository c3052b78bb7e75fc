"""A reward with gradient for the quick start's world: does the picture have the colours that the caption names, and no others?"""

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.base import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.failures import number
from flow_factory.rewards.shapes_detector import PALETTE

ASKED = ("red", "green", "blue", "yellow")
WIDTH = 0.2
"""Distance of colours in [0, 1] at which a pixel counts 0.6."""
ENOUGH = 0.06
"""Default share of the picture that a colour must fill to count 0.63; a smaller one pays less for larger shapes."""


class ShapeColorsReward(PointwiseRewardModel):
    """Mean over the named colours of how much of each there is, less as much of those that are not named; in [-3, 1]. Blind to shapes.

    Key `enough`: the share of the picture that a colour must fill to count 0.63, `ENOUGH` by default.
    """

    required_fields = ("prompt", "image")
    extra_keys = ("enough",)
    changes_inputs = False
    no_gradient = None

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        self.enough = number(config, "enough", ENOUGH, 1e-3)

    def __call__(self, prompt: list[str], image: list[Image.Image]) -> RewardModelOutput:
        pixels = torch.stack([torch.from_numpy(np.array(i.convert("RGB"))).permute(2, 0, 1) for i in image])
        return RewardModelOutput(self.differentiable(prompt, pixels.float() / 255))

    def differentiable(self, prompt: list[str], pixels: Tensor) -> Tensor:
        colors = torch.tensor([PALETTE[name] for name in ASKED], device=pixels.device) / 255
        distance = (pixels.float()[:, None] - colors[:, :, None, None]).square().sum(2)
        filled = (-distance / (2 * WIDTH**2)).exp().mean((2, 3)) / self.enough
        named = torch.tensor([[name in text for name in ASKED] for text in prompt], device=pixels.device)
        much = 1 - (-filled).exp()
        return (much * named).sum(1) / named.sum(1).clamp(min=1) - (much * ~named).sum(1)
