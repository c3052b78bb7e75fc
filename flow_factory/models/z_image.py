"""Z-Image (CFG) and Z-Image-Turbo (distilled: guidance_scale 0)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from flow_factory.models.base import ModelAdapter
from flow_factory.types import Cond


class ZImage(ModelAdapter):
    """https://github.com/Tongyi-MAI/Z-Image"""

    pipeline = "diffusers.pipelines.z_image.pipeline_z_image:ZImagePipeline"
    encoders = ("text_encoder",)
    encodes_media = None
    times_per_sample = True
    pads_prompts = False
    unguided = 0.0
    lora_targets: ClassVar[tuple[str, ...]] = (
        "attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3",
    )  # fmt: skip
    published: ClassVar[Mapping[str, float]] = {"transformer": 6.155e9, "text_encoder": 4.022e9, "vae": 0.084e9}

    def embed(self, text: str, pictures: Any, call: Mapping[str, Any]) -> Cond:
        length = call.get("max_sequence_length", self.text_length)
        embeds, _ = self.pipe.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=length)
        return {"prompt_embeds": embeds}  # a list, for prompts of different lengths
