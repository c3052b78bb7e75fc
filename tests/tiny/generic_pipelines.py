"""Tiny random pipelines of families without an adapter of their own: what the generic one is tried on."""

from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    ClassifierFreeGuidance,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DPMSolverMultistepScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)
from transformers import ByT5Tokenizer

from tests.tiny.encoders import WIDTH, clip_text, language, qwen25_vl_text, t5
from tests.tiny.parts import dc_vae, euler, hunyuan_vae, kl_vae, lively, seeded, unipc
from tests.tiny.text import clip_tokenizer, gemma_tokenizer, glm_tokenizer, llama_tokenizer, qwen_tokenizer, t5_tokenizer


def chroma() -> ChromaPipeline:
    transformer = seeded(
        ChromaTransformer2DModel, patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 4, 8), approximator_hidden_dim=32, approximator_layers=1,
        approximator_num_channels=16)  # fmt: skip
    return ChromaPipeline(euler(shift=1.0, use_beta_sigmas=True), kl_vae(), t5(), t5_tokenizer(), transformer)


def sana() -> SanaPipeline:
    tokens = gemma_tokenizer()
    transformer = seeded(
        SanaTransformer2DModel, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=WIDTH)  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    encoder = language("Gemma2", "Model", tokens, query_pre_attn_scalar=WIDTH // 2)
    return SanaPipeline(tokens, encoder, dc_vae(), transformer, scheduler)


def lumina2() -> Lumina2Pipeline:
    tokens = gemma_tokenizer()
    transformer = lively(seeded(
        Lumina2Transformer2DModel, sample_size=4, in_channels=4, hidden_size=32, num_layers=2, num_attention_heads=4, num_kv_heads=2,
        multiple_of=16, axes_dim_rope=[4, 2, 2], cap_feat_dim=WIDTH))  # fmt: skip
    encoder = language("Gemma2", "Model", tokens, query_pre_attn_scalar=WIDTH // 2)
    return Lumina2Pipeline(transformer, euler(shift=6.0), kl_vae(), encoder, tokens)


def cogview4() -> CogView4Pipeline:
    tokens = glm_tokenizer()
    transformer = seeded(
        CogView4Transformer2DModel, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        text_embed_dim=WIDTH, time_embed_dim=8, condition_dim=4)  # fmt: skip
    scheduler = euler(shift=1.0, use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear")
    return CogView4Pipeline(tokens, language("Glm", "Model", tokens), kl_vae(), transformer, scheduler)


def hidream() -> HiDreamImagePipeline:
    """Its Llama is asked for attention weights, which only the eager implementation gives."""
    tokens, clip = llama_tokenizer(), "CLIPTextModelWithProjection"
    transformer = seeded(
        HiDreamImageTransformer2DModel, patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1,
        attention_head_dim=8, num_attention_heads=4, caption_channels=[32, WIDTH], text_emb_dim=64, num_routed_experts=4,
        num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(32, 32), llama_layers=(0, 1))  # fmt: skip
    clips = [part for _ in range(2) for part in (clip_text(clip, positions=248), clip_tokenizer())]
    llama = language("Llama", "ForCausalLM", tokens, attn_implementation="eager")
    return HiDreamImagePipeline(unipc(), kl_vae(), *clips, t5(), t5_tokenizer(), llama, tokens, transformer)


def hunyuan_video15() -> HunyuanVideo15Pipeline:
    """17 of its 18 MB are a projection whose width the class does not let one choose."""
    glyphs = ByT5Tokenizer()
    transformer = lively(seeded(
        HunyuanVideo15Transformer3DModel, in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=WIDTH, text_embed_2_dim=32, image_embed_dim=12, rope_axes_dim=(2, 2, 4),
        target_size=16))  # fmt: skip
    return HunyuanVideo15Pipeline(
        qwen25_vl_text(), qwen_tokenizer(), transformer, hunyuan_vae(), euler(shift=7.0), t5(vocabulary=len(glyphs)), glyphs,
        ClassifierFreeGuidance(guidance_scale=6.0))  # fmt: skip
