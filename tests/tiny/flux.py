"""A tiny random FLUX.1 of stock classes, whole: tokenizers, text encoders, VAE, transformer, scheduler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import FluxPipeline, FluxTransformer2DModel

from tests.tiny.encoders import clip_text, t5
from tests.tiny.parts import euler, kl_vae, seeded
from tests.tiny.text import clip_tokenizer, t5_tokenizer


def flux_pipeline(guidance_embeds: bool = True, layers: int = 2, transformer: Mapping[str, Any] | None = None) -> FluxPipeline:
    """32 x 32 px are 4 latent tokens; text width 32. `transformer` overrides arguments of the transformer's constructor."""
    shape = {
        "patch_size": 1, "in_channels": 16, "num_layers": layers, "num_single_layers": layers, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32, "guidance_embeds": guidance_embeds,
        "axes_dims_rope": (4, 4, 8),
    }  # fmt: skip
    model = seeded(FluxTransformer2DModel, **{**shape, **(transformer or {})})
    return FluxPipeline(euler(use_dynamic_shifting=True), kl_vae(), clip_text(), clip_tokenizer(), t5(), t5_tokenizer(), model)


def save_flux(folder: Path, **kwargs: Any) -> Path:
    """The checkpoint on disk, as `FluxPipeline.from_pretrained` reads it."""
    flux_pipeline(**kwargs).save_pretrained(folder)
    return folder
