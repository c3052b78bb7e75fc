"""Tiny random pipelines of every family, whole, offline: the stock classes with the parts that the published checkpoints have.

    build("flux2")        a pipeline, with the same weights at every call and in every process
    saved("flux2")        its checkpoint on disk, as `from_pretrained` reads it
    SMALL["flux2"]        call arguments of a small sample
    condition("flux2")    those that show it a picture or a video
    quick(pipe)           the context in which SMALL is small for every pipeline

Prompts, steps and guidance are the caller's.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from tests.tiny import generic_pipelines as generic
from tests.tiny import image_pipelines as images
from tests.tiny import ltx2, wan
from tests.tiny.flux import flux_pipeline

PIPELINES: dict[str, Callable[[], Any]] = {
    "flux1": flux_pipeline,
    "flux1_kontext": images.flux1_kontext,
    "flux2": images.flux2,
    "flux2_klein": images.flux2_klein,
    "flux2_klein_base": partial(images.flux2_klein, is_distilled=False),
    "z_image": images.z_image,
    "qwen_image": images.qwen_image,
    "qwen_image_edit_plus": images.qwen_image_edit_plus,
    "qwen_image_edit_2511": partial(images.qwen_image_edit_plus, zero_cond_t=True),
    "sd3": images.sd3,
    "wan21_t2v": wan.wan21_t2v,
    "wan21_i2v": wan.wan21_i2v,
    "wan21_flf2v": wan.wan21_flf2v,
    "wan21_v2v": wan.wan21_v2v,
    "wan22_a14b_t2v": wan.wan22_a14b_t2v,
    "wan22_a14b_i2v": wan.wan22_a14b_i2v,
    "wan22_5b_t2v": wan.wan22_5b_t2v,
    "wan22_5b_i2v": wan.wan22_5b_i2v,
    "ltx2_t2av": ltx2.ltx2_t2av,
    "ltx2_i2av": ltx2.ltx2_i2av,
    "chroma": generic.chroma,
    "sana": generic.sana,
    "lumina2": generic.lumina2,
    "cogview4": generic.cogview4,
    "hidream": generic.hidream,
    "hunyuan_video15": generic.hunyuan_video15,
}

IMAGE = {"height": 32, "width": 32, "max_sequence_length": 32}
WAN = {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 16}
LTX2 = {**IMAGE, "num_frames": 5, "max_sequence_length": 16, "spatio_temporal_guidance_blocks": [1]}
SMALL: dict[str, Mapping[str, Any]] = {
    **dict.fromkeys(PIPELINES, IMAGE),
    "flux1_kontext": {**IMAGE, "max_area": 32 * 32, "_auto_resize": False},
    "flux2": {**IMAGE, "max_sequence_length": 48},
    **{name: WAN for name in PIPELINES if name.startswith("wan")},
    **dict.fromkeys(("wan21_i2v", "wan21_flf2v"), {**WAN, "max_sequence_length": 512}),
    "wan21_v2v": {k: v for k, v in WAN.items() if k != "num_frames"},
    **dict.fromkeys(("wan22_5b_t2v", "wan22_5b_i2v"), {**WAN, "height": 32, "width": 32}),
    "ltx2_t2av": LTX2,
    "ltx2_i2av": {**LTX2, "image_crf": 0},
    "sana": {**IMAGE, "complex_human_instruction": None, "use_resolution_binning": False},
    "lumina2": {**IMAGE, "max_sequence_length": 48},
    "hunyuan_video15": {"height": 16, "width": 16, "num_frames": 5},
}

CONDITIONS: dict[str, tuple[str, int]] = {
    "flux1_kontext": ("image", 32),
    **dict.fromkeys(("flux2", "flux2_klein", "flux2_klein_base"), ("image", 64)),  # a smaller side is refused
    **dict.fromkeys(("qwen_image_edit_plus", "qwen_image_edit_2511", "wan22_5b_i2v", "ltx2_i2av"), ("image", 32)),
    **dict.fromkeys(("wan21_i2v", "wan21_flf2v", "wan22_a14b_i2v"), ("image", 16)),
    "wan21_v2v": ("video", 16),
}
"""(the argument of the call, pixels a side)"""


def condition(name: str, seed: int = 0) -> dict[str, Any]:
    """Call arguments that show a pipeline blurred noise: a picture or two, a video of 5 frames, or nothing where it takes nothing."""
    if name not in CONDITIONS:
        return {}
    argument, size = CONDITIONS[name]
    noise = np.random.default_rng(seed).integers(0, 256, (5, 4, 4, 3), np.uint8)
    frames = [Image.fromarray(frame).resize((size, size)) for frame in noise]
    last = {"last_image": frames[1]} if name == "wan21_flf2v" else {}
    return {argument: frames if argument == "video" else frames[0]} | last


def build(name: str) -> Any:
    """A pipeline of stock classes in float32, with the same weights at every call."""
    pipe = PIPELINES[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@lru_cache
def _saved(name: str) -> TemporaryDirectory:
    folder = TemporaryDirectory(prefix=f"tiny_{name}_")
    build(name).save_pretrained(folder.name)
    return folder


def saved(name: str) -> Path:
    """The checkpoint on disk, one for all tests; not to be written to, and removed when they end."""
    return Path(_saved(name).name)


def quick(pipe: Any) -> AbstractContextManager[Any]:
    """Within it, calls with `SMALL` are small also where the pipeline has sizes that are no arguments of the call."""
    name = type(pipe).__name__
    if name == "QwenImageEditPlusPipeline":
        return mock.patch.multiple(inspect.getmodule(type(pipe)), CONDITION_IMAGE_SIZE=32 * 32, VAE_IMAGE_SIZE=32 * 32)
    sizes = {
        "HiDreamImagePipeline": {"default_sample_size": 4},
        "HunyuanVideo15Pipeline": {"tokenizer_max_length": 16, "tokenizer_2_max_length": 16, "vision_num_semantic_tokens": 4},
    }
    return mock.patch.multiple(pipe, **sizes[name]) if name in sizes else nullcontext()
