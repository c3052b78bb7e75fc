"""FLUX.1: dev (embedded guidance; true CFG where `true_cfg_scale` > 1) and Kontext (edits one picture)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Generator, Tensor

from flow_factory.models.base import ModelAdapter
from flow_factory.models.parts import fitted, fitted_size, too_small
from flow_factory.types import Cond, Row


class Flux1(ModelAdapter):
    """https://github.com/black-forest-labs/flux"""

    pipeline = "diffusers.pipelines.flux.pipeline_flux:FluxPipeline"
    encoders = ("text_encoder", "text_encoder_2")
    cfg = "true_cfg_scale"
    encodes_media = None
    splits = True
    times_per_sample = True
    lora_targets: ClassVar[tuple[str, ...]] = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
        "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    )  # fmt: skip
    published: ClassVar[Mapping[str, float]] = {"transformer": 11.90e9, "text_encoder": 0.123e9, "text_encoder_2": 4.762e9, "vae": 0.084e9}
    published_config: ClassVar[Mapping[str, Any]] = {"guidance_embeds": True}

    def embed(self, text: str, pictures: Any, call: Mapping[str, Any]) -> Cond:
        embeds, pooled, _ = self.pipe.encode_prompt(text, None, max_sequence_length=call.get("max_sequence_length", self.text_length))
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def state_of(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        z = super().state_of(x, generator)
        return self.pipe._pack_latents(z, *z.shape)

    def tokens(self, row: Row, call: Mapping[str, Any]) -> tuple[int, int]:
        return len(self.pipe.tokenizer_2(row.prompt).input_ids), call.get("max_sequence_length", self.text_length)


class Flux1Kontext(Flux1):
    """FLUX.1-Kontext-dev: the picture that is edited may be of any size.

    The pipeline brings it to one of its training sizes of about a megapixel, unless `auto_resize` is false or `condition_image_size` (a
    side, or height and width, whose area is the most that is kept) is given.
    """

    pipeline = "diffusers.pipelines.flux.pipeline_flux_kontext:FluxKontextPipeline"
    images = (1, 1)
    extra_call_arguments = ("auto_resize", "condition_image_size")
    encodes_by = ("max_sequence_length", "condition_image_size")

    def conditions(self, row: Row, call: Mapping[str, Any]) -> Cond:
        (picture,) = super().conditions(row, call)["image"]
        return {"image": fitted(picture, call.get("condition_image_size"))}

    def unusable(self, width: int, height: int, call: Mapping[str, Any]) -> str | None:
        least = self.size_step()  # the pipeline rounds sides down to multiples of it
        sides = fitted_size(width, height, call.get("condition_image_size"))
        return None if min(sides) >= least else f"{too_small(sides, width, height)}; Kontext wants at least {least} a side"

    def takes(self, call: Mapping[str, Any]) -> dict[str, Any]:
        resize = call.get("auto_resize", call.get("condition_image_size") is None)
        # the pipeline scales what is asked for to the area of max_area
        return super().takes(call) | {"_auto_resize": resize, "max_area": call["height"] * call["width"]}
