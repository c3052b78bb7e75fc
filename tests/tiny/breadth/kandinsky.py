"""Kandinsky 5 and 6."""

from typing import Any

import diffusers as d

from tests.tiny.breadth.components import hunyuan10_vae, qwen25_vl_processor, talking_processor
from tests.tiny.breadth.registry import IMAGE, PICTURE, SMALL, VIDEO, also, case
from tests.tiny.encoders import WIDTH, clip_text, qwen25_vl
from tests.tiny.parts import euler, kl_vae, lively, seeded
from tests.tiny.text import clip_tokenizer


def _kandinsky(cls: str, vae: Any, channels: int, **transformer: Any) -> Any:
    model = lively(seeded(
        d.Kandinsky5Transformer3DModel, in_visual_dim=channels, out_visual_dim=channels, in_text_dim=WIDTH, in_text_dim2=32, time_dim=32,
        model_dim=32, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 2, 2), **transformer))  # fmt: skip
    return getattr(d, cls)(model, vae, qwen25_vl(), talking_processor(), clip_text(), clip_tokenizer(), euler(shift=5.0))


@case("kandinsky5_t2i", "Kandinsky5T2IPipeline", negative=True, attributes={"resolutions": [(32, 32)]})
def kandinsky5_t2i() -> Any:
    return _kandinsky("Kandinsky5T2IPipeline", kl_vae(), 4)


@case("kandinsky5_t2v", "Kandinsky5T2VPipeline", call=VIDEO, negative=True)
def kandinsky5_t2v() -> Any:
    return _kandinsky("Kandinsky5T2VPipeline", hunyuan10_vae(), 4)


@case("kandinsky5_i2v", "Kandinsky5I2VPipeline", call={**VIDEO, "num_frames": 17}, columns=SMALL, negative=True)
def kandinsky5_i2v() -> Any:
    return _kandinsky("Kandinsky5I2VPipeline", hunyuan10_vae(), 4, visual_cond=True)


LONG = IMAGE | {"max_sequence_length": 400}  # the template alone, of a tokenizer of letters


@case("kandinsky5_i2i", "Kandinsky5I2IPipeline", call=LONG, columns=PICTURE, negative=True, attributes={"resolutions": [(32, 32)]})
def kandinsky5_i2i() -> Any:
    return _kandinsky("Kandinsky5I2IPipeline", kl_vae(), 4, visual_cond=True)


@case("kandinsky6", "Kandinsky6TI2VAPipeline", call={**VIDEO, "sample_audio": False}, negative=True)
def kandinsky6() -> Any:
    transformer = lively(seeded(
        d.Kandinsky6Transformer3DModel, in_visual_dim=4, out_visual_dim=4, in_text_dim=WIDTH, in_text_dim2=32, time_dim=32, model_dim=32,
        ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 2, 2), in_audio_dim=4, out_audio_dim=4,
        visual_token_type_num_embeddings=2))  # fmt: skip
    return d.Kandinsky6TI2VAPipeline(
        transformer, hunyuan10_vae(), qwen25_vl(), qwen25_vl_processor(), clip_text(), clip_tokenizer(), euler(shift=5.0))  # fmt: skip


also("kandinsky6_i2v", kandinsky6, "Kandinsky6TI2VAPipeline", {**VIDEO, "sample_audio": False}, columns=SMALL, negative=True)
