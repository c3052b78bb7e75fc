"""VideoReward of VideoAlign: Qwen2-VL-2B that scores a video's looks, its motion and whether it shows the prompt (arXiv 2501.13918).

Source: github.com/KwaiVGI/VideoAlign (MIT), weights `KwaiVGI/VideoReward` (Apache-2.0 on its card) on `Qwen/Qwen2-VL-2B-Instruct`.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.base import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.instruction import Instruction
from flow_factory.rewards.qwen2_vl import KEYS, Qwen2VLScorer
from flow_factory.rewards.sources import lacking, named, tensors_in
from flow_factory.utils.errors import UserError

PUBLISHED = ("KwaiVGI/VideoReward/checkpoint-11352/model.pth", "Qwen/Qwen2-VL-2B-Instruct")
INSTRUCTION = Instruction(
    where="prompt_template.py of github.com/KwaiVGI/VideoAlign",
    names=("DETAILED_PROMPT_WITH_SPECIAL_TOKEN",),
    tokens=("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"),
    sha256="fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700",
)
ASPECTS = {"VQ": (3.6757, 2.2476), "MQ": (1.1646, 1.3811), "TA": (2.8105, 2.5121)}
"""Visual quality, motion quality, text alignment: mean and deviation of the raw scores (model_config.json of the weights)."""
LORA_ALPHA = 128
LEAST, MOST = 128 * 28 * 28, 256 * 28 * 28
"""Pixels of a frame, at 2 frames a second and 4 to 768 frames."""
FRAMES = (4, 768)


def merged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint that PEFT wrapped, with its LoRA added to the weights: W + alpha / r B A, in float32."""
    plain = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        stem, inside, kind = name.partition(".base_layer.")
        a, b = (plain.get(f"{stem}.lora_{part}.default.weight") for part in "AB")
        if inside and kind == "weight" and a is not None and b is not None:
            tensor = tensor.float() + LORA_ALPHA / a.shape[0] * (b.float() @ a.float())
        if ".lora_" not in name:
            found[f"{stem}.{kind}" if inside else name] = tensor
    return found


def chosen(total: int, shown: float, fps: float) -> list[int]:
    """Which of `total` frames at `shown` a second are looked at: an even number, about `fps` a second, from the first to the last."""
    most = min(FRAMES[1], total) // 2 * 2
    count = round(min(max(total / shown * fps, FRAMES[0]), most) / 2) * 2
    return [round(place) for place in torch.linspace(0, total - 1, max(count, 2)).tolist()]


class VideoAlignReward(PointwiseRewardModel):
    """The sum of (raw - mean) / deviation of visual quality VQ, motion quality MQ and text alignment TA, each about -3 to 3.

    `aspects: [VQ, TA]` sums these alone. `video_fps`: how many frames a second the model's videos have (16), of which `fps` (2) are seen.
    `dtype: bf16` is what was published. `model_name_or_path`: the file of weights; `processor_name_or_path`: the folder of Qwen2-VL-2B, of
    which config and processor are read; `instruction`: see `Instruction.read`. The weights' LoRA (alpha 128) is merged.
    """

    required_fields = ("prompt", "video")
    extra_keys = ("model_name_or_path", "processor_name_or_path", "instruction", "aspects", "fps", "video_fps")
    loads_weights = True
    changes_inputs = False
    no_gradient = "its pictures are resized in 256 levels"

    @classmethod
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        cls.settings(config)
        Qwen2VLScorer.require(config, PUBLISHED, INSTRUCTION, now)

    @classmethod
    def settings(cls, config: RewardArguments) -> tuple[list[int], float, float]:
        """Which aspects, by their places, `video_fps` and `fps`.

        Raises:
            UserError: one is not what it can be.
        """
        extra: dict[str, Any] = config.extra_kwargs
        aspects = extra.get("aspects", list(ASPECTS))
        if not isinstance(aspects, list) or not aspects or len({str(a) for a in aspects} & ASPECTS.keys()) != len(aspects):
            raise UserError(f"reward {config.name!r}: aspects: {aspects!r}; write some of {', '.join(ASPECTS)}, e.g. [VQ, MQ]")
        rates = []
        for key, default in (("video_fps", 16.0), ("fps", 2.0)):
            value = extra.get(key, default)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise UserError(f"reward {config.name!r}: {key}: {value!r}; write a number of frames a second above 0")
            rates.append(float(value))
        return [list(ASPECTS).index(aspect) for aspect in aspects], rates[0], rates[1]

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        self.aspects, self.video_fps, self.fps = self.settings(config)
        file = named(config, KEYS[0], PUBLISHED[0])
        tensors = merged(tensors_in(config, KEYS[0], file))
        if "rm_head.weight" not in tensors:
            raise lacking(config, KEYS[0], file, "rm_head.weight")
        out, width = tensors["rm_head.weight"].shape
        head = nn.Linear(width, out, bias=False)
        self.scorer = Qwen2VLScorer(config, self.device, tensors, head, PUBLISHED, INSTRUCTION, "video")
        self.model = self.scorer.model

    def _score(self, prompt: str, frames: list[Image.Image]) -> Tensor:
        seen = [frames[k] for k in chosen(len(frames), self.video_fps, self.fps)]
        found = self.scorer(prompt, seen, LEAST, MOST)
        raw = found.diagonal() if found.shape[1] == len(ASPECTS) else found[:, 0]  # a number for all tokens, or one for each
        mean, deviation = torch.tensor(list(ASPECTS.values()), device=raw.device).unbind(1)
        return ((raw - mean) / deviation)[self.aspects].sum()

    def __call__(self, prompt: list[str], video: list[list[Image.Image]]) -> RewardModelOutput:
        return RewardModelOutput(torch.stack([self._score(text, frames) for text, frames in zip(prompt, video, strict=True)]))
