"""HPSv3: Qwen2-VL-7B that predicts how much people like a picture for a prompt, and how sure that is (arXiv 2508.03789).

Source: github.com/MizzenAI/HPSv3 (MIT), weights `MizzenAI/HPSv3` on `Qwen/Qwen2-VL-7B-Instruct` (Apache-2.0).
"""

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.base import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.instruction import Instruction
from flow_factory.rewards.media import scored
from flow_factory.rewards.qwen2_vl import KEYS, Qwen2VLScorer
from flow_factory.rewards.sources import lacking, named, tensors_in

PUBLISHED = ("MizzenAI/HPSv3/HPSv3.safetensors", "Qwen/Qwen2-VL-7B-Instruct")
INSTRUCTION = Instruction(
    where="hpsv3/dataset/data_collator_qwen.py of github.com/MizzenAI/HPSv3",
    names=("INSTRUCTION", "prompt_with_special_token"),
    tokens=("<|Reward|>",),
    sha256="f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c",
)
PIXELS = 256 * 28 * 28
"""Every picture has about as many, whatever its size was."""


def head_of(width: int, layers: tuple[int, int], out: int) -> nn.Sequential:
    """The head, whose dropout a score never sees: width -> layers -> (mu, log sigma)."""
    first, second = layers
    return nn.Sequential(nn.Linear(width, first), nn.ReLU(), nn.Dropout(0.05), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, out))


class HPSv3Reward(PointwiseRewardModel):
    """The mean mu that the head predicts, about -1 to 12, not rescaled. Its sigma is not part of the score, as published.

    A video's score is the mean of its frames, of which each is seen whole in about 200,000 pixels.

    `dtype: bf16` is what was published (16.5 GB); the head is float32. `model_name_or_path`: the file of weights;
    `processor_name_or_path`: the folder of Qwen2-VL-7B, of which config and processor are read; `instruction`: see `Instruction.read`.
    """

    required_fields = ("prompt", "image", "video")
    extra_keys = ("model_name_or_path", "processor_name_or_path", "instruction")
    loads_weights = True
    changes_inputs = False
    no_gradient = "its pictures are resized in 256 levels"

    @classmethod
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        Qwen2VLScorer.require(config, PUBLISHED, INSTRUCTION, now)

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        file = named(config, KEYS[0], PUBLISHED[0])
        tensors = tensors_in(config, KEYS[0], file)
        try:
            sizes = [tensors[f"rm_head.{k}.weight"].shape for k in (0, 3, 5)]
        except KeyError as error:
            raise lacking(config, KEYS[0], file, str(error.args[0])) from error
        head = head_of(sizes[0][1], (sizes[0][0], sizes[1][0]), sizes[2][0])
        self.scorer = Qwen2VLScorer(config, self.device, tensors, head, PUBLISHED, INSTRUCTION, "image")
        self.model = self.scorer.model

    def _score(self, prompts: list[str], pictures: list[Image.Image]) -> Tensor:
        found = [self.scorer(prompt, [picture] * 2, PIXELS, PIXELS)[0, 0] for prompt, picture in zip(prompts, pictures, strict=True)]
        return torch.stack(found)

    def __call__(self, prompt: list[str], image: list | None = None, video: list | None = None) -> RewardModelOutput:
        return RewardModelOutput(scored(self._score, prompt, image, video, self.config.batch_size))
