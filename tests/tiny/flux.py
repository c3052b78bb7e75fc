"""A tiny random FLUX.1 of stock classes, whole: tokenizers, text encoders, VAE, transformer, scheduler."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from tests.tiny.text import clip_tokenizer, t5_tokenizer


def seeded(make: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """A module in eval mode whose weights are the same in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*args, **kwargs).eval()


def flux_pipeline(guidance_embeds: bool = True, layers: int = 2, transformer: Mapping[str, Any] | None = None) -> FluxPipeline:
    """32 x 32 px are 4 latent tokens; text width 32. `transformer` overrides arguments of the transformer's constructor."""
    clip_tok, t5_tok = clip_tokenizer(), t5_tokenizer()
    clip = seeded(CLIPTextModel, CLIPTextConfig(
        vocab_size=len(clip_tok), hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2, projection_dim=32,
        bos_token_id=clip_tok.bos_token_id, eos_token_id=clip_tok.eos_token_id, pad_token_id=clip_tok.pad_token_id))  # fmt: skip
    t5 = seeded(T5EncoderModel, T5Config(
        vocab_size=len(t5_tok), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", dropout_rate=0.0,
        is_encoder_decoder=False))  # fmt: skip
    vae = seeded(
        AutoencoderKL, sample_size=32, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=2, use_quant_conv=False,
        use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159)  # fmt: skip
    shape = {
        "patch_size": 1, "in_channels": 16, "num_layers": layers, "num_single_layers": layers, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32, "guidance_embeds": guidance_embeds,
        "axes_dims_rope": (4, 4, 8),
    }  # fmt: skip
    model = seeded(FluxTransformer2DModel, **{**shape, **(transformer or {})})
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return FluxPipeline(scheduler, vae, clip, clip_tok, t5, t5_tok, model)


def save_flux(folder: Path, **kwargs: Any) -> Path:
    """The checkpoint on disk, as `FluxPipeline.from_pretrained` reads it."""
    flux_pipeline(**kwargs).save_pretrained(folder)
    return folder
