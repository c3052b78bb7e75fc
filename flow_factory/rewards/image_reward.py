"""ImageReward 1.0: BLIP that reads the prompt while it looks at the picture, trained on rankings by people (arXiv 2304.05977).

Source: github.com/THUDM/ImageReward (Apache-2.0), weights `THUDM/ImageReward`, whose BLIP names are those of transformers' BLIP here.
"""

import re
from collections.abc import Mapping
from math import isqrt

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

import flow_factory.rewards.pixels as differentiably
from flow_factory.hparams import RewardArguments
from flow_factory.rewards.aesthetic import mlp
from flow_factory.rewards.base import PointwiseRewardModel, RewardModelOutput
from flow_factory.rewards.media import CLIP_MEAN, CLIP_STD, cropped, normalised, scored
from flow_factory.rewards.sources import FILES, fill, lacking, named, processor_of, require_file, require_folder, tensors_in

KEYS = ("model_name_or_path", "processor_name_or_path")
PUBLISHED = ("THUDM/ImageReward/ImageReward.pt", "google-bert/bert-base-uncased")
"""The weights, and the tokenizer, which the published code takes from BERT."""
TOKENS = 35
HEAD_WIDTH = 64
"""Of an attention head, in BERT's base and in ViT's large: no tensor shows how many there are."""
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw score over the published validation set."""
VISION = {
    "cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding", "norm": "post_layernorm",
    "norm1": "layer_norm1", "norm2": "layer_norm2", "attn.qkv": "self_attn.qkv", "attn.proj": "self_attn.projection",
}  # fmt: skip


def vision_name(name: str) -> str:
    """A name inside the published ViT, as transformers' `BlipVisionModel` has it."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    layer, inside = (f"encoder.layers.{block[1]}.", block[2]) if block else ("", name)
    if inside in VISION:
        return layer + VISION[inside]
    stem, dot, kind = inside.rpartition(".")
    return layer + VISION.get(stem, stem) + dot + kind


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].partition(".")[0] for name in tensors if name.startswith(prefix)})


class Blip(nn.Module):
    """`BlipVisionModel`, `BlipTextModel` with cross-attention, and the head, of the sizes that the file's tensors have.

    Raises:
        KeyError: a tensor that shows a size is missing.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        patches, text = tensors["vision.embeddings.patch_embedding.weight"], tensors["text.embeddings.word_embeddings.weight"]
        vision_width, text_width = patches.shape[0], text.shape[1]
        side = isqrt(tensors["vision.embeddings.position_embedding"].shape[1] - 1)
        self.vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=vision_width, intermediate_size=tensors["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
                num_hidden_layers=_depth(tensors, "vision.encoder.layers."), num_attention_heads=vision_width // HEAD_WIDTH,
                image_size=side * patches.shape[-1], patch_size=patches.shape[-1], layer_norm_eps=1e-6,
            )
        )  # fmt: skip
        self.text = BlipTextModel(
            BlipTextConfig(
                vocab_size=text.shape[0], hidden_size=text_width, encoder_hidden_size=vision_width, layer_norm_eps=1e-12,
                intermediate_size=tensors["text.encoder.layer.0.intermediate.dense.weight"].shape[0],
                num_hidden_layers=_depth(tensors, "text.encoder.layer."), num_attention_heads=text_width // HEAD_WIDTH,
                max_position_embeddings=tensors["text.embeddings.position_embeddings.weight"].shape[0],
            ),
            add_pooling_layer=False,
        )  # fmt: skip
        self.head = mlp(text_width)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(n,) raw scores in float32: the head over the first token, of n pictures (n, 3, S, S) and texts (n, 35)."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        return self.head(read[:, 0].float())[:, 0]


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ImageReward.pt under the names of `Blip`; its projections, which nothing reads, are left out."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("blip.visual_encoder."):
            found["vision." + vision_name(name.removeprefix("blip.visual_encoder."))] = tensor
        elif name.startswith("blip.text_encoder."):
            found["text." + name.removeprefix("blip.text_encoder.")] = tensor
        elif name.startswith("mlp.layers."):
            found["head." + name.removeprefix("mlp.layers.")] = tensor
    return found


class ImageReward(PointwiseRewardModel):
    """(raw - 0.167) / 1.033, about -2 to 2, as published. A video's is the mean of its frames. Prompts are cut at 35 tokens.

    float32 unless the entry says another dtype; the head is float32 in any case. `model_name_or_path`: the file ImageReward.pt;
    `processor_name_or_path`: the folder of BERT's tokenizer. The picture's middle square is seen.
    """

    required_fields = ("prompt", "image", "video")
    extra_keys = ("model_name_or_path", "processor_name_or_path")
    loads_weights = True
    changes_inputs = False
    no_gradient = None

    @classmethod
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        require_file(config, KEYS[0], named(config, KEYS[0], PUBLISHED[0]), now)
        require_folder(config, KEYS[1], named(config, KEYS[1], PUBLISHED[1]), FILES["processor"], now)

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        file, words = (named(config, key, name) for key, name in zip(KEYS, PUBLISHED, strict=True))
        self.tokenizer = processor_of(AutoTokenizer, words, config, "tokenizer")
        tensors = from_published(tensors_in(config, KEYS[0], file))
        try:
            blip = Blip(tensors)
        except KeyError as error:
            raise lacking(config, KEYS[0], file, str(error.args[0])) from error
        fill(blip, tensors, config, KEYS[0], file)
        self.model = blip.to(self.device, config.dtype).requires_grad_(False)
        self.model.head.float()

    @torch.no_grad()
    def _score(self, prompts: list[str], pictures: list[Image.Image]) -> Tensor:
        return self._judged(prompts, torch.stack([normalised(cropped(p, self.model.vision.config.image_size)) for p in pictures]))

    def _judged(self, prompts: list[str], pixels: Tensor) -> Tensor:
        words = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").to(self.device)
        raw = self.model(pixels.to(self.device, self.config.dtype), words["input_ids"], words["attention_mask"])
        return (raw - MEAN) / STD

    def __call__(self, prompt: list[str], image: list | None = None, video: list | None = None) -> RewardModelOutput:
        return RewardModelOutput(scored(self._score, prompt, image, video, self.config.batch_size))

    def differentiable(self, prompt: list[str], pixels: Tensor) -> Tensor:
        seen = differentiably.cropped(pixels.to(self.device, torch.float32), self.model.vision.config.image_size)
        return self._judged(prompt, differentiably.normalised(seen, CLIP_MEAN, CLIP_STD))
