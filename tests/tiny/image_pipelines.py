"""Tiny random image pipelines of the families that have an adapter of their own, FLUX.1 apart."""

from typing import Any

from diffusers import (
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from tests.tiny.encoders import WIDTH, clip_text, language, mistral3, pixtral_processor, qwen25_vl, qwen_processor, t5
from tests.tiny.flux import flux_pipeline
from tests.tiny.parts import euler, flux2_vae, kl_vae, lively, qwen_vae, seeded
from tests.tiny.text import clip_tokenizer, qwen_tokenizer, t5_tokenizer


def flux1_kontext() -> FluxKontextPipeline:
    parts = flux_pipeline().components
    return FluxKontextPipeline(**parts | {name: lively(parts[name]) for name in ("transformer", "vae")})


def _flux2_parts(guidance_embeds: bool) -> dict[str, Any]:
    transformer = lively(seeded(
        Flux2Transformer2DModel, patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=3 * WIDTH, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=guidance_embeds))  # fmt: skip
    return {"scheduler": euler(use_dynamic_shifting=True), "vae": flux2_vae(), "transformer": transformer}


def flux2() -> Flux2Pipeline:
    return Flux2Pipeline(text_encoder=mistral3(), tokenizer=pixtral_processor(), **_flux2_parts(guidance_embeds=True))


def flux2_klein(is_distilled: bool = True) -> Flux2KleinPipeline:
    """28 layers of the text encoder: it is read at the 9th, 18th and 27th."""
    tokens = qwen_tokenizer()
    encoder = language("Qwen3", "ForCausalLM", tokens, layers=28)
    return Flux2KleinPipeline(text_encoder=encoder, tokenizer=tokens, is_distilled=is_distilled, **_flux2_parts(guidance_embeds=False))


def z_image() -> ZImagePipeline:
    tokens = qwen_tokenizer()
    transformer = seeded(
        ZImageTransformer2DModel, in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4], axes_lens=[1536, 512, 512])  # fmt: skip
    return ZImagePipeline(euler(), kl_vae(), language("Qwen3", "Model", tokens), tokens, transformer)


def _qwen_parts(**transformer: Any) -> dict[str, Any]:
    model = lively(seeded(
        QwenImageTransformer2DModel, patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(8, 4, 4), **transformer))  # fmt: skip
    scheduler = euler(shift=1.0, use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02)
    return {"scheduler": scheduler, "vae": qwen_vae(), "text_encoder": qwen25_vl(), "tokenizer": qwen_tokenizer(), "transformer": model}


def qwen_image() -> QwenImagePipeline:
    return QwenImagePipeline(**_qwen_parts())


def qwen_image_edit_plus(**transformer: Any) -> QwenImageEditPlusPipeline:
    return QwenImageEditPlusPipeline(processor=qwen_processor(), **_qwen_parts(**transformer))


def sd3() -> StableDiffusion3Pipeline:
    transformer = seeded(
        SD3Transformer2DModel, sample_size=32, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64, out_channels=4, pos_embed_max_size=32,
        dual_attention_layers=(0,), qk_norm="rms_norm")  # fmt: skip
    clips = {f"text_encoder{k}": clip_text("CLIPTextModelWithProjection") for k in ("", "_2")}
    tokenizers = {"tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer(), "tokenizer_3": t5_tokenizer()}
    return StableDiffusion3Pipeline(transformer, euler(), kl_vae(), text_encoder_3=t5(width=64), **clips, **tokenizers)
