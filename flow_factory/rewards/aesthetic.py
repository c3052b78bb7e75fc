"""How much people like a picture, whatever it shows: LAION's improved aesthetic predictor, version 2, on CLIP ViT-L/14.

Source: github.com/christophschuhmann/improved-aesthetic-predictor (Apache-2.0), `sac+logos+ava1-l14-linearMSE`.
"""

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.base import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.clip import WEIGHTS, CLIPScorer
from flow_factory.rewards.media import scored
from flow_factory.rewards.sources import fill, named, require_file, tensors_in

HEAD = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"
KEY = "head_name_or_path"


def mlp(width: int) -> nn.Sequential:
    """width -> 1024 -> 128 -> 64 -> 16 -> 1, without activations; dropout stands at 1, 3 and 5 of the published files' numbering."""
    layers: list[nn.Module] = [nn.Linear(width, 1024), nn.Identity(), nn.Linear(1024, 128), nn.Identity()]
    return nn.Sequential(*layers, nn.Linear(128, 64), nn.Identity(), nn.Linear(64, 16), nn.Linear(16, 1))


class AestheticReward(PointwiseRewardModel):
    """Mean opinion of a picture, raw, 1 to 10 (generated ones about 4 to 7); the prompt is not read. A video's is the mean of its frames.

    An MLP without activations over the unit vector of CLIP ViT-L/14, in float32 unless the entry says another dtype.
    `head_name_or_path`: the head's .pth or .safetensors, a file or owner/repository/file of the hub.
    """

    required_fields = ("image", "video")
    extra_keys = ("model_name_or_path", "processor_name_or_path", "head_name_or_path")
    loads_weights = True
    changes_inputs = False
    no_gradient = None

    @classmethod
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        CLIPScorer.require(config, WEIGHTS, now=now)
        require_file(config, KEY, named(config, KEY, HEAD), now)

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        file = named(config, KEY, HEAD)
        tensors = {name.removeprefix("layers."): tensor for name, tensor in tensors_in(config, KEY, file).items()}
        self.clip = CLIPScorer(config, self.device, WEIGHTS)
        self.head = mlp(self.clip.model.config.projection_dim)
        fill(self.head, tensors, config, KEY, file)
        self.head.to(self.device, torch.float32).requires_grad_(False)

    @torch.no_grad()
    def _score(self, prompts: list[str], pictures: list[Image.Image]) -> Tensor:
        return self.head(self.clip.pictures(pictures))[:, 0]

    def __call__(self, prompt: list[str], image: list | None = None, video: list | None = None) -> RewardModelOutput:
        return RewardModelOutput(scored(self._score, prompt, image, video, self.config.batch_size))

    def differentiable(self, prompt: list[str], pixels: Tensor) -> Tensor:
        return self.head(self.clip.features(pixels))[:, 0]
