"""Modular pipelines: those whose parts are another pipeline's, and families that are blocks alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers

from tests.tiny import image_pipelines as images
from tests.tiny import wan
from tests.tiny.breadth import cosmos, flux_sd3, images_t2i, ltx, qwen, z_image
from tests.tiny.breadth.components import qwen3_vl, qwen3_vl_processor
from tests.tiny.breadth.registry import CASES, CONTROL, IMAGE, INPAINT, PICTURE, SMALL, VIDEO, Case
from tests.tiny.encoders import WIDTH, language
from tests.tiny.flux import flux_pipeline
from tests.tiny.parts import euler, flux2_vae, lively, qwen_vae, seeded
from tests.tiny.text import qwen_tokenizer, t5_tokenizer

__all__ = ["cosmos", "flux_sd3", "images_t2i", "ltx", "qwen", "z_image"]
SCALE = {"guidance_scale": 3.0}


def blocks(pipeline: str, build: Callable[[], Any], **others: Any) -> Any:
    """A modular pipeline of the parts of another pipeline, and of others."""
    pipe = getattr(diffusers, pipeline)()
    parts = {**build().components, **others}
    pipe.update_components(**{name: part for name, part in parts.items() if name in pipe.pretrained_component_names})
    return pipe


def add(name: str, pipeline: str, build: Callable[[], Any], parts: Callable[[], dict[str, Any]] = dict, **given: Any) -> None:
    CASES[f"modular_{name}"] = Case(f"modular_{name}", pipeline, lambda: blocks(pipeline, build, **parts()), **given)


def of(name: str) -> Callable[[], Any]:
    """The builder of another case."""
    return CASES[name].build


add("flux", "FluxModularPipeline", flux_pipeline)
add("flux_img2img", "FluxModularPipeline", flux_pipeline, columns=PICTURE)
add("flux2", "Flux2ModularPipeline", images.flux2)
add("flux2_klein", "Flux2KleinModularPipeline", images.flux2_klein)
add("flux2_klein_base", "Flux2KleinBaseModularPipeline", partial(images.flux2_klein, is_distilled=False), call=IMAGE | SCALE)
add("qwen", "QwenImageModularPipeline", images.qwen_image, call=IMAGE | SCALE, negative=True)
add("qwen_img2img", "QwenImageModularPipeline", images.qwen_image, call=IMAGE | SCALE, columns=PICTURE, negative=True)
add("qwen_inpaint", "QwenImageModularPipeline", images.qwen_image, call=IMAGE | SCALE, columns=INPAINT, negative=True)
add("qwen_control", "QwenImageModularPipeline", of("qwen_controlnet"), call=IMAGE | SCALE, columns=CONTROL, negative=True)
add("qwen21", "QwenImage21ModularPipeline", of("qwen_image21"), call={"height": 32, "width": 32} | SCALE)
add("sd3", "StableDiffusion3ModularPipeline", images.sd3, call=IMAGE | SCALE, negative=True)
add("z_image", "ZImageModularPipeline", images.z_image, call=IMAGE | SCALE, negative=True)
add("ernie", "ErnieImageModularPipeline", of("ernie_image"), call={"height": 32, "width": 32} | SCALE)
add("ideogram4", "Ideogram4ModularPipeline", of("ideogram4"), call=IMAGE | SCALE)
add("wan", "WanModularPipeline", wan.wan21_t2v, call=VIDEO | SCALE, negative=True)
add(
    "wan_i2v",
    "WanImage2VideoModularPipeline",
    wan.wan21_i2v,
    call=VIDEO | SCALE | {"max_sequence_length": 512},
    columns=SMALL,
    negative=True,
)
add("wan22", "Wan22ModularPipeline", wan.wan22_a14b_t2v, call=VIDEO | SCALE, negative=True)
add("wan22_i2v", "Wan22Image2VideoModularPipeline", wan.wan22_a14b_i2v, call=VIDEO | SCALE, columns=SMALL, negative=True)
add("ltx", "LTXModularPipeline", of("ltx"), call=CASES["ltx"].call | SCALE, negative=True)


def _anima() -> Any:
    """Blocks alone: Qwen3 reads the prompt, and a conditioner asks it for T5's tokens."""
    tokens, t5_tokens = qwen_tokenizer(), t5_tokenizer()
    conditioner = seeded(
        diffusers.AnimaTextConditioner, source_dim=WIDTH, target_dim=WIDTH, model_dim=32, num_layers=1, num_attention_heads=2,
        target_vocab_size=len(t5_tokens), min_sequence_length=16)  # fmt: skip
    transformer = cosmos._cosmos(
        extra_pos_embed_type=None, in_channels=4, out_channels=4, concat_padding_mask=False, text_embed_dim=WIDTH)  # fmt: skip
    pipe = diffusers.AnimaModularPipeline()
    pipe.update_components(
        text_encoder=language("Qwen3", "Model", tokens), tokenizer=tokens, t5_tokenizer=t5_tokens, text_conditioner=lively(conditioner),
        transformer=transformer, vae=qwen_vae(), scheduler=euler())  # fmt: skip
    return pipe


def _flux3(pipeline: str = "Flux3ModularPipeline", **transformer: Any) -> Any:
    """Blocks alone; its scheduler is theirs."""
    model = seeded(
        diffusers.Flux3Transformer2DModel, in_channels=16, cond_in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=8 * WIDTH, timestep_channels=16, axes_dims_rope=(4, 4, 4, 4), **transformer)  # fmt: skip
    pipe = getattr(diffusers, pipeline)()
    pipe.update_components(text_encoder=qwen3_vl(36), tokenizer=qwen3_vl_processor(), transformer=lively(model), vae=flux2_vae())
    return pipe


CASES["modular_anima"] = Case("modular_anima", "AnimaModularPipeline", _anima, call=IMAGE | SCALE, negative=True)
CASES["modular_flux3"] = Case("modular_flux3", "Flux3ModularPipeline", _flux3, call=IMAGE | SCALE, negative=True)
CASES["modular_flux3_reference"] = Case("modular_flux3_reference", "Flux3ModularPipeline", _flux3, IMAGE | SCALE, PICTURE)
