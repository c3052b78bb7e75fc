"""Image pipelines from text: Krea, Hunyuan, LongCat, Ovis, Ernie, Bria and more."""

from typing import Any

import diffusers as d
import transformers

from tests.tiny.breadth.components import kl_vae16, llama_with_pad, qwen3_vl, qwen3_vl_processor, talking_processor, talking_qwen
from tests.tiny.breadth.registry import IMAGE, PICTURE, Medium, also, case, made
from tests.tiny.encoders import WIDTH, language, mistral3, qwen25_vl, t5
from tests.tiny.parts import euler, flux2_vae, kl_vae, lively, qwen_vae, seeded, wan22_vae
from tests.tiny.text import gemma_tokenizer, mistral_tokenizer, qwen_tokenizer, t5_tokenizer


@case("krea2", "Krea2Pipeline", negative=True)
def krea2() -> Any:
    transformer = lively(seeded(
        d.Krea2Transformer2DModel, in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=WIDTH, num_text_layers=2, text_num_attention_heads=2,
        text_num_key_value_heads=1, text_intermediate_size=32, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(8, 4, 4)))  # fmt: skip
    scheduler = euler(shift=1.0, use_dynamic_shifting=True)
    return d.Krea2Pipeline(scheduler, qwen_vae(), qwen3_vl(model="Model"), qwen_tokenizer(), transformer, text_encoder_select_layers=(1, 2))


@case(
    "hunyuan_image",
    "HunyuanImagePipeline",
    call={"height": 32, "width": 32},
    negative=True,
    attributes={"tokenizer_max_length": 16, "tokenizer_2_max_length": 16},
)
def hunyuan_image() -> Any:
    glyphs = transformers.ByT5Tokenizer()
    transformer = lively(
        seeded(
            d.HunyuanImageTransformer2DModel,
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1),
            text_embed_dim=WIDTH,
            text_embed_2_dim=32,
            rope_axes_dim=(8, 8),
        )
    )
    vae = seeded(
        d.AutoencoderKLHunyuanImage,
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=8,
        sample_size=32,
        scaling_factor=0.75,
    )
    guiders = [d.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1, enabled=True) for _ in range(2)]
    return d.HunyuanImagePipeline(
        euler(shift=5.0), vae, qwen25_vl(), qwen_tokenizer(), t5(vocabulary=len(glyphs)), glyphs, transformer, *guiders)  # fmt: skip


@case(
    "hunyuan_image_plain_cfg",
    "HunyuanImagePipeline",
    call={"height": 32, "width": 32},
    negative=True,
    attributes={"tokenizer_max_length": 16, "tokenizer_2_max_length": 16},
)
def hunyuan_image_plain() -> Any:
    pipe = hunyuan_image()
    pipe.register_modules(guider=d.ClassifierFreeGuidance(), ocr_guider=d.ClassifierFreeGuidance())
    return pipe


@case(
    "longcat_image",
    "LongCatImagePipeline",
    call={"height": 32, "width": 32, "enable_prompt_rewrite": False},
    negative=True,
    attributes={"tokenizer_max_length": 32},
)
def longcat_image() -> Any:
    transformer = lively(seeded(
        d.LongCatImageTransformer2DModel, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=[8, 4, 4]))  # fmt: skip
    return d.LongCatImagePipeline(
        euler(use_dynamic_shifting=True), kl_vae16(), qwen25_vl(), qwen_tokenizer(), talking_processor(), transformer
    )


also(
    "longcat_image_rewritten",
    longcat_image,
    "LongCatImagePipeline",
    {"height": 32, "width": 32},
    attributes={"tokenizer_max_length": 32},
    negative=True,
)


@case(
    "longcat_edit",
    "LongCatImageEditPipeline",
    call={"height": 32, "width": 32},
    columns=PICTURE,
    negative=True,
    attributes={"tokenizer_max_length": 32},
    constants={"calculate_dimensions": lambda area, ratio: (32, 32)},
)
def longcat_edit() -> Any:
    return made("LongCatImageEditPipeline", longcat_image)


@case("ovis_image", "OvisImagePipeline", negative=True)
def ovis_image() -> Any:
    transformer = lively(seeded(
        d.OvisImageTransformer2DModel, in_channels=16, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(8, 4, 4)))  # fmt: skip
    tokens = qwen_tokenizer()
    return d.OvisImagePipeline(euler(use_dynamic_shifting=True), kl_vae(), language("Qwen3", "Model", tokens), tokens, transformer)


@case("ernie_image", "ErnieImagePipeline", call={"height": 32, "width": 32, "use_pe": False}, negative=True)
def ernie_image() -> Any:
    transformer = lively(seeded(
        d.ErnieImageTransformer2DModel, hidden_size=32, num_attention_heads=2, num_layers=2, ffn_hidden_size=32, in_channels=16,
        out_channels=16, text_in_dim=WIDTH, rope_axes_dim=(8, 4, 4)))  # fmt: skip
    return d.ErnieImagePipeline(transformer, flux2_vae(), mistral3().model, mistral_tokenizer(), euler())


@case("bria", "BriaPipeline", negative=True)
def bria() -> Any:
    transformer = lively(seeded(
        d.BriaTransformer2DModel, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=[8, 4, 4]))  # fmt: skip
    return d.BriaPipeline(transformer, euler(use_dynamic_shifting=True), kl_vae(), t5(), t5_tokenizer())


def _smol() -> Any:
    tokens = llama_with_pad()
    return language("SmolLM3", "ForCausalLM", tokens, layers=3), tokens


@case("bria_fibo", "BriaFiboPipeline", call={**IMAGE, "height": 64, "width": 64}, negative=True)
def bria_fibo() -> Any:
    transformer = lively(seeded(
        d.BriaFiboTransformer2DModel, in_channels=48, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, text_encoder_dim=WIDTH, axes_dims_rope=[8, 4, 4]))  # fmt: skip
    encoder, tokens = _smol()
    return d.BriaFiboPipeline(transformer, euler(use_dynamic_shifting=True), wan22_vae(), encoder, tokens)


@case("ideogram4", "Ideogram4Pipeline", call={**IMAGE, "guidance_scale": 4.0, "guidance_schedule": None})
def ideogram4() -> Any:
    def transformer(seed: int) -> Any:
        return lively(seeded(
            d.Ideogram4Transformer2DModel, weights_seed=seed, in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
            intermediate_size=32, adaln_dim=16, llm_features_dim=13 * WIDTH, mrope_section=(4, 2, 2)))  # fmt: skip

    return d.Ideogram4Pipeline(euler(), flux2_vae(), qwen3_vl(36, "Model"), talking_qwen(), transformer(0), transformer(1))


@case("prx", "PRXPipeline", call={"height": 32, "width": 32}, negative=True)
def prx() -> Any:
    tokens = gemma_tokenizer()
    side = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 8, "vocab_size": len(tokens), "max_position_embeddings": 512, "query_pre_attn_scalar": 8}  # fmt: skip
    config = transformers.T5GemmaConfig(encoder=dict(side), decoder=dict(side), is_encoder_decoder=False, vocab_size=len(tokens))

    tokens.model_max_length = 32
    transformer = lively(
        seeded(
            d.PRXTransformer2DModel,
            in_channels=4,
            patch_size=2,
            context_in_dim=WIDTH,
            hidden_size=32,
            num_heads=2,
            depth=2,
            axes_dim=[8, 8],
        )
    )
    return d.PRXPipeline(transformer, euler(), seeded(transformers.T5GemmaEncoderModel, config), tokens, kl_vae())


@case(
    "bria_fibo_edit",
    "BriaFiboEditPipeline",
    call={**IMAGE, "height": 64, "width": 64, "_auto_resize": False},
    columns={"image": Medium(side=64)},
    wording='{"edit_instruction": "PROMPT"}',
    negative=True,
)
def bria_fibo_edit() -> Any:
    return made("BriaFiboEditPipeline", bria_fibo)


LAYERS = {"text_encoder_out_layers": ((0, 1, 2), (1, 2, 0))}


@case("bria_fibo2", "BriaFibo2Pipeline", call={"height": 64, "width": 64}, negative=True, attributes=LAYERS)
def bria_fibo2() -> Any:
    transformer = lively(seeded(
        d.BriaFibo2Transformer2DModel, in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=3 * WIDTH,
        injection_layer_ids=(1,), perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=8, gist_step=2, gist_min_text_len=4,
        gist_max_text_len=64, axes_dims=(4, 6, 6)))  # fmt: skip
    return d.BriaFibo2Pipeline(transformer, euler(use_dynamic_shifting=True), flux2_vae(), qwen3_vl(), qwen3_vl_processor())


also(
    "bria_fibo2_edit",
    bria_fibo2,
    "BriaFibo2Pipeline",
    {"height": 64, "width": 64},
    columns={"image": Medium(side=64)},
    negative=True,
    attributes=LAYERS,
)


@case(
    "hunyuan_image_refiner",
    "HunyuanImageRefinerPipeline",
    call={"height": 32, "width": 32},
    columns=PICTURE,
    attributes={"tokenizer_max_length": 16},
)
def hunyuan_image_refiner() -> Any:
    transformer = lively(seeded(
        d.HunyuanImageTransformer2DModel, in_channels=16, out_channels=8, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=(1, 1, 1), text_embed_dim=WIDTH, guidance_embeds=True,
        rope_axes_dim=(4, 6, 6)))  # fmt: skip
    vae = seeded(
        d.AutoencoderKLHunyuanImageRefiner, latent_channels=4, block_out_channels=(16, 16), layers_per_block=1, spatial_compression_ratio=4,
        temporal_compression_ratio=2, downsample_match_channel=False, upsample_match_channel=False)  # fmt: skip
    return d.HunyuanImageRefinerPipeline(euler(shift=4.0), vae, qwen25_vl(), qwen_tokenizer(), transformer)
