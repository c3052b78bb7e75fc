"""Wan 2.1 VACE: videos after a control video, a mask and reference pictures, or after text alone."""

from collections.abc import Mapping
from typing import Any, ClassVar

from flow_factory.models.named import Named
from flow_factory.models.wan import WanT2V


class WanVACE(Named):
    """https://huggingface.co/Wan-AI/Wan2.1-VACE-14B-diffusers and -1.3B, under Apache-2.0. One sample a call."""

    pipeline = "diffusers.pipelines.wan.pipeline_wan_vace:WanVACEPipeline"
    encoders = ("text_encoder",)
    videos = (0, 1)
    draws = "video"
    evaluates_by = WanT2V.evaluates_by
    precise_vae = True
    default_frames: ClassVar[int] = WanT2V.default_frames
    tile: ClassVar[int] = WanT2V.tile
    published: ClassVar[Mapping[str, float]] = {**WanT2V.published, "transformer": 17.34e9}
    published_config: ClassVar[Mapping[str, Any]] = {"vace_in_channels": 96}
    variants: ClassVar[Mapping[str, tuple[Mapping[str, float], Mapping[str, Any]]]] = {
        "1.3B": (
            {"transformer": 2.154e9},
            {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960, "vace_layers": [*range(0, 30, 2)]},
        ),
    }

    @classmethod
    def decoding_of(cls, height: int, width: int, call: Mapping[str, Any]) -> float:
        return WanT2V.decoding_of(height, width, call)
