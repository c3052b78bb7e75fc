"""HunyuanVideo, SkyReels, EasyAnimate and Sana-Video."""

from typing import Any

import diffusers as d
import transformers

from tests.tiny import generic_pipelines as generic
from tests.tiny.breadth.components import hunyuan10_vae, llama_with_pad, talking_qwen
from tests.tiny.breadth.registry import HUNYUAN, SMALL, Medium, also, case, made, reuse
from tests.tiny.encoders import WIDTH, _qwen25_vl_config, clip_images, clip_text, image_processor, language, llava
from tests.tiny.parts import euler, lively, seeded, wan_vae
from tests.tiny.text import clip_tokenizer, gemma_tokenizer, llava_tokenizer


def _hunyuan(**kwargs: Any) -> Any:
    return lively(seeded(
        d.HunyuanVideoTransformer3DModel, **{"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8,
        "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 1, "patch_size_t": 1, "guidance_embeds": True,
        "text_embed_dim": WIDTH, "pooled_projection_dim": 32, "rope_axes_dim": (4, 2, 2)} | kwargs))  # fmt: skip


@case("hunyuan_video", "HunyuanVideoPipeline", call=HUNYUAN)
def hunyuan_video() -> Any:
    tokens = llama_with_pad()
    return d.HunyuanVideoPipeline(
        language("Llama", "Model", tokens, layers=4), tokens, _hunyuan(), hunyuan10_vae(), euler(shift=7.0), clip_text(), clip_tokenizer()
    )


also("hunyuan_video_true_cfg", hunyuan_video, "HunyuanVideoPipeline", {**HUNYUAN, "true_cfg_scale": 3.0}, negative=True)


HUNYUAN15: dict[str, Any] = {
    "call": {"height": 16, "width": 16, "num_frames": 5}, "negative": True,
    "attributes": {"tokenizer_max_length": 16, "tokenizer_2_max_length": 16, "vision_num_semantic_tokens": 4},
}  # fmt: skip
reuse("hunyuan_video15", "HunyuanVideo15Pipeline", generic.hunyuan_video15, **HUNYUAN15)


@case("hunyuan_video15_i2v", "HunyuanVideo15ImageToVideoPipeline", columns=SMALL, **HUNYUAN15)
def hunyuan_video15_i2v() -> Any:
    size = {"hidden_size": 12, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    vision = seeded(transformers.SiglipVisionModel, transformers.SiglipVisionConfig(image_size=16, patch_size=8, **size))
    processor = image_processor("SiglipImageProcessor", size={"height": 16, "width": 16})
    return made("HunyuanVideo15ImageToVideoPipeline", generic.hunyuan_video15, image_encoder=vision, feature_extractor=processor)


def _sana_video() -> dict[str, Any]:
    transformer = seeded(
        d.SanaVideoTransformer3DModel, in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=12, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=WIDTH,
        patch_size=(1, 2, 2), sample_size=2)  # fmt: skip
    tokens = gemma_tokenizer()
    return {"tokenizer": tokens, "text_encoder": language("Gemma2", "Model", tokens, query_pre_attn_scalar=WIDTH // 2), "vae": wan_vae(),
            "transformer": transformer}  # fmt: skip


SANA_VIDEO = {"height": 32, "width": 32, "frames": 5, "max_sequence_length": 16, "complex_human_instruction": None,
              "use_resolution_binning": False}  # fmt: skip


@case("sana_video", "SanaVideoPipeline", call=SANA_VIDEO, negative=True)
def sana_video() -> Any:
    scheduler = d.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    return d.SanaVideoPipeline(scheduler=scheduler, **_sana_video())


@case("sana_video_i2v", "SanaImageToVideoPipeline", call=SANA_VIDEO, columns=SMALL, negative=True)
def sana_video_i2v() -> Any:
    return d.SanaImageToVideoPipeline(scheduler=euler(), **_sana_video())


@case("framepack", "HunyuanVideoFramepackPipeline", call={**HUNYUAN, "latent_window_size": 2}, columns=SMALL)
def framepack() -> Any:
    transformer = lively(seeded(
        d.HunyuanVideoFramepackTransformer3DModel, in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=2, text_embed_dim=WIDTH, pooled_projection_dim=32, rope_axes_dim=(4, 2, 2),
        has_image_proj=True, image_proj_dim=16, has_clean_x_embedder=True))  # fmt: skip
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    vision = seeded(transformers.SiglipVisionModel, transformers.SiglipVisionConfig(image_size=16, patch_size=8, **size))
    parts = hunyuan_video().components | {"transformer": transformer, "image_encoder": vision}
    return d.HunyuanVideoFramepackPipeline(
        **parts, feature_extractor=image_processor("SiglipImageProcessor", size={"height": 16, "width": 16}))  # fmt: skip


@case("hunyuan_skyreels_i2v", "HunyuanSkyreelsImageToVideoPipeline", call=HUNYUAN, columns=SMALL)
def hunyuan_skyreels_i2v() -> Any:
    return d.HunyuanSkyreelsImageToVideoPipeline(**hunyuan_video().components | {"transformer": _hunyuan(in_channels=8)})


@case("easyanimate", "EasyAnimatePipeline", call={"height": 16, "width": 16, "num_frames": 5}, negative=True)
def easyanimate() -> Any:
    config = _qwen25_vl_config().get_text_config()
    tokens = talking_qwen()
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    qwen2 = transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokens), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096, "initializer_range": WIDTH**-0.5,
            "rope_parameters": rope, "pad_token_id": config.pad_token_id},
        vision_config={"depth": 1, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 1})  # fmt: skip
    transformer = lively(seeded(
        d.EasyAnimateTransformer3DModel, num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, patch_size=2,
        num_layers=2, mmdit_layers=2, time_embed_dim=16, text_embed_dim=WIDTH, norm_eps=1e-5))  # fmt: skip
    vae = seeded(
        d.AutoencoderKLMagvit, latent_channels=4, block_out_channels=[8, 8, 8, 8], layers_per_block=1, norm_num_groups=2,
        spatial_group_norm=False)  # fmt: skip
    encoder = seeded(transformers.Qwen2VLForConditionalGeneration, qwen2)
    return d.EasyAnimatePipeline(vae, encoder, tokens, transformer, euler(shift=5.0))


EASY = {"height": 16, "width": 16, "num_frames": 5}


def _easyanimate(pipeline: str, **transformer: Any) -> Any:
    """A kind of EasyAnimate whose transformer takes conditions beside the latents."""
    parts = easyanimate().components
    config = {**parts["transformer"].config, **transformer}
    return getattr(d, pipeline)(**parts | {"transformer": lively(seeded(d.EasyAnimateTransformer3DModel, **config))})


@case("easyanimate_control", "EasyAnimateControlPipeline", call=EASY, columns={"control_video": Medium("video", 16)}, negative=True)
def easyanimate_control() -> Any:
    return _easyanimate("EasyAnimateControlPipeline", in_channels=8)


@case("easyanimate_inpaint", "EasyAnimateInpaintPipeline", call=EASY, columns={"video": Medium("video", 16)}, negative=True)
def easyanimate_inpaint() -> Any:
    return _easyanimate("EasyAnimateInpaintPipeline", in_channels=9)


LLAVA = {"template": "<image> a<|end_header_id|> a<|end_header_id|>{}<|eot_id|> a a a<|end_header_id|>", "crop_start": 6,
         "image_emb_start": 1, "image_emb_end": 5, "image_emb_len": 4}  # fmt: skip


def _hunyuan_i2v(kind: str, **transformer: Any) -> Any:
    parts = hunyuan_video().components | {"text_encoder": llava(), "tokenizer": llava_tokenizer()}
    return d.HunyuanVideoImageToVideoPipeline(
        **parts | {"transformer": _hunyuan(image_condition_type=kind, **transformer)}, image_processor=clip_images(16)
    )


@case("hunyuan_video_i2v", "HunyuanVideoImageToVideoPipeline", call={**HUNYUAN, "prompt_template": LLAVA}, columns=SMALL)
def hunyuan_video_i2v() -> Any:
    return _hunyuan_i2v("latent_concat", in_channels=9)


@case("hunyuan_video_i2v_replaced", "HunyuanVideoImageToVideoPipeline", call={**HUNYUAN, "prompt_template": LLAVA}, columns=SMALL)
def hunyuan_video_i2v_replaced() -> Any:
    return _hunyuan_i2v("token_replace")
