"""Random checkpoints of published sizes, and the settings that each is measured with.

Transformers and VAEs have the configs that the published checkpoints have; text encoders have two layers of the published width, and
tokenizers the few words that tests say: both only encode the prompts, once, before anything is measured.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml

from tests.tiny.encoders import clip_text, qwen25_vl, t5
from tests.tiny.parts import euler, unipc
from tests.tiny.pipelines import SMALL, build
from tests.tiny.text import clip_tokenizer, qwen_tokenizer, t5_tokenizer

PROMPTS = ("a red circle on the hill", "a blue square on the hill", "a green triangle on the hill", "a yellow sunset on the hill")
"""Of one length: Qwen-Image does not pad."""


def kl_vae(scaling: float, shift: float) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512),
        layers_per_block=2, latent_channels=16, norm_num_groups=32, sample_size=1024, scaling_factor=scaling, shift_factor=shift,
        use_quant_conv=False, use_post_quant_conv=False)  # fmt: skip


def flux1() -> Any:
    """black-forest-labs/FLUX.1-dev; the class's defaults are its sizes."""
    transformer = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    parts = (kl_vae(0.3611, 0.1159), clip_text(width=768), clip_tokenizer(), t5(width=4096), t5_tokenizer(), transformer)
    return diffusers.FluxPipeline(euler(use_dynamic_shifting=True, max_shift=1.15, base_shift=0.5), *parts)


def sd3_5() -> Any:
    """stabilityai/stable-diffusion-3.5-medium."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=16, num_layers=24, attention_head_dim=64, num_attention_heads=24,
        joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048, out_channels=16, pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)), qk_norm="rms_norm")  # fmt: skip
    clips = {f"text_encoder{k}": clip_text("CLIPTextModelWithProjection", width=width) for k, width in (("", 768), ("_2", 1280))}
    tokenizers = {"tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer(), "tokenizer_3": t5_tokenizer()}
    parts = (transformer, euler(), kl_vae(1.5305, 0.0609))
    return diffusers.StableDiffusion3Pipeline(*parts, text_encoder_3=t5(width=4096), **clips, **tokenizers)


def qwen_image() -> Any:
    """Qwen/Qwen-Image; the classes' defaults are its sizes."""
    scheduler = euler(shift=1.0, use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02)
    transformer = diffusers.QwenImageTransformer2DModel()
    return diffusers.QwenImagePipeline(scheduler, diffusers.AutoencoderKLQwenImage(), qwen25_vl(width=3584), qwen_tokenizer(), transformer)


def wan21() -> Any:
    """Wan-AI/Wan2.1-T2V-1.3B-Diffusers."""
    transformer = diffusers.WanTransformer3DModel(num_attention_heads=12, num_layers=30, ffn_dim=8960)
    parts = {"text_encoder": t5("UMT5", 4096), "tokenizer": t5_tokenizer(), "scheduler": unipc(), "vae": diffusers.AutoencoderKLWan()}
    return diffusers.WanPipeline(transformer=transformer, **parts)


@dataclass(frozen=True)
class Published:
    """A checkpoint that can be drawn, and what is measured of it."""

    model_type: str
    make: Callable[[], Any]
    tiny: str
    """Its twin at toy size, among the tests' pipelines."""
    keys: Mapping[str, Any] = field(default_factory=dict)
    """What its config says otherwise than `SETTINGS`."""


SETTINGS: Mapping[str, Any] = {
    "mixed_precision": "bf16",
    "model.finetune_type": "lora", "model.target_modules": "default", "model.lora_rank": 64, "model.lora_alpha": 64,
    "scheduler.num_sde_steps": 2,
    "train.trainer_type": "grpo", "train.resolution": 512, "train.num_inference_steps": 10, "train.guidance_scale": 3.5,
    "train.unique_sample_num_per_epoch": 1, "train.group_size": 16, "train.per_device_batch_size": 8,
    "train.gradient_step_per_epoch": 1, "train.ema_decay": 0, "train.enable_gradient_checkpointing": True,
    "log.logging_backend": "none", "log.save_freq": 0,
    "rewards": [{"reward_model": "benchmarks.gpu_variant.Free"}],
}  # fmt: skip
"""GRPO of a LoRA: 10 steps, 2 of them stochastic and trained, no EMA, a reward that costs nothing."""
PUBLISHED: Mapping[str, Published] = {
    "flux1-dev": Published("flux1", flux1, "flux1", {"train.max_sequence_length": 512}),
    "sd3.5-m": Published("sd3-5", sd3_5, "sd3", {
        "model.lora_rank": 32, "model.lora_alpha": 64, "train.guidance_scale": 4.5, "train.max_sequence_length": 256,
        "train.unique_sample_num_per_epoch": 4, "train.group_size": 32, "train.per_device_batch_size": 16,
    }),
    "qwen-image": Published("qwen-image", qwen_image, "qwen_image", {"train.guidance_scale": 4.0, "train.per_device_batch_size": 4}),
    "wan2.1-1.3b": Published("wan2_t2v", wan21, "wan21_t2v", {
        "train.guidance_scale": 4.5, "train.height": 240, "train.width": 416, "train.num_frames": 33, "train.max_sequence_length": 512,
        "train.group_size": 8, "train.per_device_batch_size": 4,
    }),
}  # fmt: skip
TOY = {"train.num_inference_steps": 3, "train.group_size": 4, "train.per_device_batch_size": 2, "train.unique_sample_num_per_epoch": 1}


def draw(name: str, folder: Path, toy: bool) -> None:
    """Random weights in bfloat16, drawn on the GPU where there is one; the data set and the config are beside them."""
    published = PUBLISHED[name]
    folder.mkdir(parents=True)
    if toy:
        pipe = build(published.tiny)
    else:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            pipe = published.make()
        torch.set_default_dtype(torch.float32)
    pipe.save_pretrained(folder / "checkpoint")
    (folder / "train.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    (folder / "config.yaml").write_text(config_of(name, folder, toy))


def config_of(name: str, folder: Path, toy: bool = False) -> str:
    """The YAML of the model's run, with its data set and checkpoint in this folder."""
    published = PUBLISHED[name]
    keys = {**SETTINGS, **published.keys, "model.model_type": published.model_type, "model.model_name_or_path": f"{folder}/checkpoint"}
    keys |= {"data.dataset_dir": str(folder), "data.cache_dir": f"{folder}/cache", "log.save_dir": f"{folder}/save"}
    if toy:
        keys |= TOY | {f"train.{key}": value for key, value in SMALL[published.tiny].items()}
        keys.pop("train.resolution")
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        section, _, rest = key.partition(".")
        if rest:
            tree.setdefault(section, {})[rest] = value
        else:
            tree[section] = value
    return yaml.safe_dump(json.loads(json.dumps(tree)), sort_keys=False)
