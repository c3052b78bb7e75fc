"""Qwen2-VL with a head that reads scores at tokens of its own, as HPSv3 and VideoReward are, from one file of weights.

Two things are as in the code that trained both: positions are counted one after another through picture and text (`position_ids` was
never passed), and the rotary frequencies are rounded to bfloat16 (`model.to(torch.bfloat16)` rounds buffers too).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from PIL import Image
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import AutoConfig, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.instruction import PROMPT, Instruction
from flow_factory.rewards.judges.local import vision_processor
from flow_factory.rewards.media import normalised
from flow_factory.rewards.sources import FILES, fill, lacking, named, processor_of, require_file, require_folder
from flow_factory.utils.errors import UserError

KEYS = ("model_name_or_path", "processor_name_or_path")
WORDS = "backbone.language_model.embed_tokens.weight"


def of_backbone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names under those of `Scored`: transformers 4 has `visual.` beside `model.`, transformers 5 both inside `model.`."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        inside = re.fullmatch(r"(?:model\.)?(visual|language_model)\.(.+)|model\.(.+)", name)
        if inside is not None:
            name = f"backbone.{inside[1]}.{inside[2]}" if inside[1] else f"backbone.language_model.{inside[3]}"
        elif name.startswith("rm_head."):
            name = "head." + name.removeprefix("rm_head.")
        found[name] = tensor
    return found


class Scored(nn.Module):
    """`Qwen2VLModel` of a base's sizes, with as many words as the file has, and the head. It has no weights yet."""

    def __init__(self, base: Any, words: int, head: nn.Module):
        super().__init__()
        base.text_config.vocab_size = words
        with init_empty_weights():
            self.backbone = Qwen2VLModel(base)
        self.head = head


def patches(frames: Tensor, part: Any) -> tuple[Tensor, Tensor]:
    """What the vision tower takes of frames (T, 3, H, W), T and the sides multiples of what a token sees.

    Args:
        part: its config.

    Returns:
        (tokens * merge^2, values of a patch), and (1, 3) how many patches there are in time, height and width.
    """
    size, merge, time = part.patch_size, part.spatial_merge_size, part.temporal_patch_size
    t, channels, height, width = frames.shape
    grid = (t // time, height // size, width // size)
    cut = frames.reshape(grid[0], time, channels, grid[1] // merge, merge, size, grid[2] // merge, merge, size)
    cut = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return cut.reshape(grid[0] * grid[1] * grid[2], -1), torch.tensor([grid])


class Qwen2VLScorer:
    """Scores one sample at a time: what it is given does not depend on the others, and no padding moves it."""

    def __init__(
        self,
        config: RewardArguments,
        device: torch.device,
        tensors: Mapping[str, Tensor],
        head: nn.Module,
        published: tuple[str, str],
        instruction: Instruction,
        media: Literal["image", "video"],
    ):
        self.config, self.media, self.tokens = config, media, instruction.tokens
        self.text = instruction.read(config)
        instruction.compare(config, self.text)
        file, base = named(config, KEYS[0], published[0]), named(config, KEYS[1], published[1])
        tensors = of_backbone(tensors)
        if WORDS not in tensors:
            raise lacking(config, KEYS[0], file, "model.embed_tokens.weight")
        words = tensors[WORDS].shape[0]
        self.processor = vision_processor(base, config)
        self.processor.tokenizer.add_tokens([AddedToken(token, special=True) for token in self.tokens])
        if len(self.processor.tokenizer) != words:
            message = f"{base!r} has {len(self.processor.tokenizer)} words with {', '.join(self.tokens)}, and {file!r} {words}"
            raise UserError(f"reward {config.name!r}: {KEYS[1]}: {message}: it is not what the weights were trained from")
        self.model = Scored(processor_of(AutoConfig, base, config, "VLM config"), words, head)
        fill(self.model, tensors, config, KEYS[0], file, assign=True)
        for name, buffer in self.model.named_buffers():
            if name.endswith("inv_freq"):
                buffer.copy_(buffer.bfloat16())
        for parameter in self.model.backbone.parameters():
            parameter.data = parameter.data.to(device, config.dtype)
        self.model.to(device)
        self.model.head.float()

    @classmethod
    def require(cls, config: RewardArguments, published: tuple[str, str], instruction: Instruction, now: bool) -> None:
        """See `BaseRewardModel.require_files`."""
        require_file(config, KEYS[0], named(config, KEYS[0], published[0]), now)
        require_folder(config, KEYS[1], named(config, KEYS[1], published[1]), FILES["processor"], now)
        instruction.read(config)

    def _ids(self, prompt: str, seen: int) -> Tensor:
        """(tokens,) of the chat, with `seen` places for the picture. No prompt can name a token of the model's own."""
        text = self.text.replace(PROMPT, prompt.replace("<|", "< |"))
        chat = [{"role": "user", "content": [{"type": self.media}, {"type": "text", "text": text}]}]
        whole = self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        place = f"<|{self.media}_pad|>"
        ids: Tensor = self.processor.tokenizer(whole.replace(place, place * seen), return_tensors="pt")["input_ids"][0]
        return ids

    def _frames(self, images: Sequence[Image.Image], least: int, most: int) -> Tensor:
        """(T, 3, H, W) of nearly the same proportion: sides are multiples of what a token sees, and H * W is from `least` to `most`."""
        part: Any = self.model.backbone.config.vision_config
        width, height = images[0].size
        try:
            high, wide = smart_resize(height, width, part.patch_size * part.spatial_merge_size, least, most)
        except ValueError as error:
            raise UserError(f"reward {self.config.name!r}: a picture of {width} x {height} pixels: {error}") from error
        fitted = [image.convert("RGB").resize((wide, high), Image.Resampling.BICUBIC) for image in images]
        return torch.stack([normalised(image) for image in fitted])

    @torch.no_grad()
    def __call__(self, prompt: str, images: Sequence[Image.Image], least: int, most: int) -> Tensor:
        """(scoring tokens, numbers of the head) in float32, of one picture (T of them alike) or the frames of a video."""
        backbone = self.model.backbone
        device = next(backbone.parameters()).device
        pixels, grid = patches(self._frames(images, least, most), backbone.config.vision_config)
        seen = backbone.visual(pixels.to(device, self.config.dtype), grid_thw=grid.to(device)).pooler_output
        ids = self._ids(prompt, len(seen)).to(device)
        read = backbone.language_model.embed_tokens(ids)
        read[ids == self.processor.tokenizer.convert_tokens_to_ids(f"<|{self.media}_pad|>")] = seen.to(read.dtype)
        hidden = backbone.language_model(inputs_embeds=read[None], use_cache=False).last_hidden_state[0]
        at = [(ids == self.processor.tokenizer.convert_tokens_to_ids(token)).nonzero()[0, 0] for token in self.tokens]
        return self.model.head(hidden[torch.stack(at)].float())
