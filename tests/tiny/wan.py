"""Tiny random Wan pipelines: 2.1, and of 2.2 the 14B ones with two experts and the 5B ones with a time for every token."""

from typing import Any

from diffusers import WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel, WanVideoToVideoPipeline

from tests.tiny.encoders import WIDTH, clip_images, clip_vision, t5
from tests.tiny.parts import lively, seeded, unipc, wan22_vae, wan_vae
from tests.tiny.text import t5_tokenizer


def _transformer(in_channels: int = 16, out_channels: int = 16, **kwargs: Any) -> WanTransformer3DModel:
    return lively(seeded(
        WanTransformer3DModel, num_attention_heads=2, attention_head_dim=12, in_channels=in_channels, out_channels=out_channels,
        text_dim=32, freq_dim=32, ffn_dim=32, num_layers=2, rope_max_seq_len=64, **kwargs))  # fmt: skip


def _parts(**others: Any) -> dict[str, Any]:
    parts = {"text_encoder": t5("UMT5"), "tokenizer": t5_tokenizer(), "scheduler": unipc(), "vae": wan_vae()}
    return parts | others


def _experts(boundary_ratio: float, in_channels: int = 16) -> dict[str, Any]:
    """The first is for the noise levels from the boundary up."""
    first, second = (_transformer(in_channels, weights_seed=k) for k in (0, 1))
    return _parts(transformer=first, transformer_2=second, boundary_ratio=boundary_ratio)


def _parts_5b() -> dict[str, Any]:
    return _parts(vae=wan22_vae(), scheduler=unipc(5.0), transformer=_transformer(48, 48), expand_timesteps=True)


def wan21_t2v() -> WanPipeline:
    return WanPipeline(**_parts(transformer=_transformer()))


def wan21_v2v() -> WanVideoToVideoPipeline:
    return WanVideoToVideoPipeline(**_parts(transformer=_transformer()))


def wan21_i2v(**kwargs: Any) -> WanImageToVideoPipeline:
    """With a CLIP image encoder. Its attention takes all but 512 tokens for the picture's: `max_sequence_length` must be 512."""
    transformer = _transformer(36, 16, image_dim=WIDTH, added_kv_proj_dim=24, **kwargs)
    return WanImageToVideoPipeline(**_parts(transformer=transformer, image_encoder=clip_vision(), image_processor=clip_images()))


def wan21_flf2v() -> WanImageToVideoPipeline:
    """Wants the first picture and the last: 17 tokens each."""
    return wan21_i2v(pos_embed_seq_len=2 * 17)


def wan22_a14b_t2v() -> WanPipeline:
    return WanPipeline(**_experts(0.875))


def wan22_a14b_i2v() -> WanImageToVideoPipeline:
    return WanImageToVideoPipeline(**_experts(0.9, in_channels=36))


def wan22_5b_t2v() -> WanPipeline:
    return WanPipeline(**_parts_5b())


def wan22_5b_i2v() -> WanImageToVideoPipeline:
    return WanImageToVideoPipeline(**_parts_5b())
