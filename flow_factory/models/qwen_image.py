"""Qwen-Image and Qwen-Image-Edit-Plus (2509, 2511); true CFG, which the config's `guidance_scale` stands for."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit
from torch import Generator, Tensor

from flow_factory.models.base import ModelAdapter
from flow_factory.models.parts import area_of
from flow_factory.types import Cond
from flow_factory.utils.errors import UserError

MOST_ASPECT = 200
"""Of the picture that the text encoder sees, in its processor."""


class QwenImage(ModelAdapter):
    """https://github.com/QwenLM/Qwen-Image"""

    pipeline = "diffusers.pipelines.qwenimage.pipeline_qwenimage:QwenImagePipeline"
    encoders: tuple[str, ...] = ("text_encoder",)
    guidance = "true_cfg_scale"
    cfg = "true_cfg_scale"
    negative = " "
    encodes_media = None
    times_per_sample = True
    pads_prompts = False
    lora_targets: ClassVar[tuple[str, ...]] = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
        "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
    )  # fmt: skip
    dead_ends: ClassVar[tuple[str, ...]] = (
        "transformer_blocks.-1.attn.to_add_out", "transformer_blocks.-1.attn.add_q_proj", "transformer_blocks.-1.attn.norm_added_q",
        "transformer_blocks.-1.txt_mlp",
    )  # fmt: skip
    published: ClassVar[Mapping[str, float]] = {"transformer": 20.43e9, "text_encoder": 8.292e9, "vae": 0.127e9}
    tile: ClassVar[int] = 256

    @classmethod
    def decoding_of(cls, height: int, width: int, call: Mapping[str, Any]) -> float:
        return 1730.0 * height * width

    def embed(self, text: str, pictures: Any, call: Mapping[str, Any]) -> Cond:
        return self._named(self.pipe.encode_prompt(text, max_sequence_length=call.get("max_sequence_length", self.text_length)))

    @staticmethod
    def _named(encoded: tuple[Any, Any]) -> Cond:
        embeds, mask = encoded
        return {"prompt_embeds": embeds} | ({} if mask is None else {"prompt_embeds_mask": mask})

    def state_of(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        z = super().state_of(x[:, :, None], generator)[:, :, 0]  # its VAE is one of videos
        return self.pipe._pack_latents(z, *z.shape)


class QwenImageEditPlus(QwenImage):
    """Qwen-Image-Edit-2509 and -2511: one to three pictures of any size; the prompt's embeddings depend on them.

    The pipeline brings each picture to about a megapixel for the VAE, or to the area of `condition_image_size` (a side, or height and
    width) where that is given.
    """

    pipeline = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus:QwenImageEditPlusPipeline"
    images = (1, 32)
    extra_call_arguments = ("condition_image_size", "auto_resize")

    def check_call(self, call: Mapping[str, Any]) -> None:
        super().check_call(call)
        if call.get("auto_resize") is False:
            raise UserError("auto_resize: false: Qwen-Image-Edit always resizes its pictures; condition_image_size says to which area")

    def unusable(self, width: int, height: int, call: Mapping[str, Any]) -> str | None:
        """The pipeline scales to an area in steps of 32 pixels, and the encoder's picture processor has a limit of its own."""
        shown = edit.calculate_dimensions(edit.CONDITION_IMAGE_SIZE, width / height)
        size = call.get("condition_image_size")
        encoded = edit.calculate_dimensions(edit.VAE_IMAGE_SIZE if size is None else area_of(size), width / height)
        if min(*shown, *encoded) > 0 and max(shown) < MOST_ASPECT * min(shown):
            return None
        return f"too narrow: scaled to {encoded[0]} x {encoded[1]} and {shown[0]} x {shown[1]}; crop it, or raise condition_image_size"

    def embed(self, text: str, pictures: Any, call: Mapping[str, Any]) -> Cond:
        sizes = [edit.calculate_dimensions(edit.CONDITION_IMAGE_SIZE, p.width / p.height) for p in pictures]
        small = [self.pipe.image_processor.resize(p, h, w) for p, (w, h) in zip(pictures, sizes, strict=True)]
        length = call.get("max_sequence_length", self.text_length)
        return self._named(self.pipe.encode_prompt(text, image=small, max_sequence_length=length))

    def repeat(self, cond: Cond, n: int) -> Cond:
        return {**cond, "num_images_per_prompt": n}  # the pipeline takes one prompt at a time

    def sample(self, cond: Cond, call: Mapping[str, Any], *rest: Any, **named: Any) -> Any:
        with sized(call):
            return super().sample(cond, call, *rest, **named)

    def velocity(self, x: Any, t: Any, s: Any, cond: Cond, call: Mapping[str, Any], *rest: Any, **named: Any) -> Any:
        with sized(call):
            return super().velocity(x, t, s, cond, call, *rest, **named)

    def evaluate(self, cond: Cond, call: Mapping[str, Any], *rest: Any, **named: Any) -> Any:
        with sized(call):
            return super().evaluate(cond, call, *rest, **named)


@contextmanager
def sized(call: Mapping[str, Any]) -> Iterator[None]:
    """The area to which the pipeline brings pictures is a constant of its module."""
    before, side = edit.VAE_IMAGE_SIZE, call.get("condition_image_size")
    if side is not None:
        edit.VAE_IMAGE_SIZE = area_of(side)
    try:
        yield
    finally:
        edit.VAE_IMAGE_SIZE = before
