"""Krea 2: Raw, which is made to be trained, and Turbo, which draws in 8 steps without guidance."""

from collections.abc import Mapping
from typing import Any, ClassVar

from flow_factory.models.named import Named
from flow_factory.models.qwen_image import QwenImage


class Krea2(Named):
    """https://huggingface.co/krea/Krea-2-Raw, under the Krea 2 Community License.

    The pipeline adds `guidance_scale` times what the prompt changes: 0 turns guidance off.
    """

    pipeline = "diffusers.pipelines.krea2.pipeline_krea2:Krea2Pipeline"
    encoders = ("text_encoder",)
    unguided = 0.0
    published: ClassVar[Mapping[str, float]] = {"transformer": 12.82e9, "text_encoder": 4.438e9, "vae": 0.127e9}
    tile: ClassVar[int] = QwenImage.tile

    @classmethod
    def decoding_of(cls, height: int, width: int, call: Mapping[str, Any]) -> float:
        return QwenImage.decoding_of(height, width, call)
