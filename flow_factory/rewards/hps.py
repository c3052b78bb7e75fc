"""HPSv2.1: CLIP ViT-H/14 fine-tuned on human choices between pictures of one prompt (arXiv 2306.09341).

Source: github.com/tgxs002/HPSv2 (Apache-2.0), weights `xswu/HPSv2`, whose open_clip names are those of transformers' CLIP here.
"""

import re
from collections.abc import Mapping

import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, CLIPModel

from flow_factory.hparams import RewardArguments
from flow_factory.rewards.clip import CLIPReward, CLIPScorer
from flow_factory.rewards.pixels import padded
from flow_factory.rewards.sources import FILES, fill, named, processor_of, require_file, require_folder, tensors_in

PUBLISHED = ("xswu/HPSv2/HPS_v2.1_compressed.pt", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
"""The weights, and what they are fine-tuned from: its config and its processor."""
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
TOWER = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}


def from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an open_clip checkpoint under the names of transformers' `CLIPModel`; others are left out."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if block is None:
            stem, dot, kind = name.rpartition(".")
            if name in TOWER:
                found[TOWER[name]] = tensor.T.contiguous() if name in ("visual.proj", "text_projection") else tensor
            elif stem in TOWER:
                found[TOWER[stem] + dot + kind] = tensor
            continue
        layer = f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}."
        if block[3].startswith("attn.in_proj_"):
            kind = block[3].removeprefix("attn.in_proj_")
            found |= {f"{layer}self_attn.{p}_proj.{kind}": part for p, part in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            stem, dot, kind = block[3].rpartition(".")
            found[layer + BLOCK.get(stem, stem) + dot + kind] = tensor
    return found


class HPSScorer(CLIPScorer):
    """A CLIP from one file of open_clip weights and the folder of what it was fine-tuned from, which has its config and processor."""

    def __init__(self, config: RewardArguments, device: torch.device):
        file, base = self.sources(config)
        require_folder(config, self.KEYS[1], base, FILES["processor"], now=True)
        clip = CLIPModel(processor_of(AutoConfig, base, config, "CLIP config"))
        fill(clip, from_open_clip(tensors_in(config, self.KEYS[0], file)), config, self.KEYS[0], file)
        self.processor = processor_of(AutoProcessor, base, config, "CLIP processor")
        self._hold(clip, config, device)

    @classmethod
    def sources(cls, config: RewardArguments) -> tuple[str, str]:
        """The file of weights, and the folder or hub name of what they are fine-tuned from."""
        return named(config, cls.KEYS[0], PUBLISHED[0]), named(config, cls.KEYS[1], PUBLISHED[1])

    def pictures(self, images: list[Image.Image]) -> Tensor:
        """See `CLIPScorer`. Pictures that are not square are seen whole between black bars, as in the published code."""
        side = self.model.config.vision_config.image_size
        return super().pictures([ImageOps.pad(i.convert("RGB"), (side, side), Image.Resampling.BICUBIC, color="black") for i in images])

    def framed(self, pixels: Tensor) -> Tensor:
        return padded(pixels, self.model.config.vision_config.image_size)


class HPSv2Reward(CLIPReward):
    """Raw cosine of prompt and picture under HPSv2.1, about 0.20 to 0.35, never rescaled. A video's is the mean of its frames.

    float32 unless the entry says another dtype; the published code runs under float16 autocast.
    `model_name_or_path`: a file of open_clip weights; `processor_name_or_path`: the folder with CLIP ViT-H's config and processor.
    """

    @classmethod
    def require_files(cls, config: RewardArguments, now: bool) -> None:
        file, base = HPSScorer.sources(config)
        require_file(config, HPSScorer.KEYS[0], file, now)
        require_folder(config, HPSScorer.KEYS[1], base, FILES["processor"], now)

    def scorer(self, config: RewardArguments) -> CLIPScorer:
        return HPSScorer(config, self.device)
