"""Qwen-Image-2.1: one checkpoint for pictures from text and for edits of pictures."""

from collections.abc import Mapping
from typing import Any, ClassVar

from flow_factory.models.named import Named


class QwenImage21(Named):
    """https://huggingface.co/Qwen/Qwen-Image-2.1, under the Qwen Research License.

    Guidance (`true_cfg_scale` above 1) is on for rows with a negative prompt; Qwen recommends none.
    """

    pipeline = "diffusers.pipelines.qwenimage21.pipeline_qwenimage21:QwenImage21Pipeline"
    encoders = ("text_encoder",)
    images = (0, 10)
    guidance = "true_cfg_scale"
    cfg = "true_cfg_scale"
    published: ClassVar[Mapping[str, float]] = {"transformer": 7.115e9, "text_encoder": 8.767e9, "vae": 0.338e9}
    tile: ClassVar[int] = 256

    @classmethod
    def decoding_of(cls, height: int, width: int, call: Mapping[str, Any]) -> float:
        return 3071.0 * height * width
