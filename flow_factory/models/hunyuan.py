"""HunyuanImage 2.1 and HunyuanVideo 1.5: their guidance is a part of the pipeline, its guider, which `guidance_scale` sets here."""

from collections.abc import Mapping
from typing import Any, ClassVar

from flow_factory.models.call_forms import CallForm
from flow_factory.models.guiders import GUIDER
from flow_factory.models.named import Named
from flow_factory.types import Cond


class HunyuanImage(Named):
    """https://huggingface.co/tencent/HunyuanImage-2.1, under the Tencent Hunyuan Community License."""

    pipeline = "diffusers.pipelines.hunyuan_image.pipeline_hunyuanimage:HunyuanImagePipeline"
    encoders = ("text_encoder", "text_encoder_2")
    guidance = GUIDER
    cfg = GUIDER
    text_length = 1128
    token: ClassVar[tuple[int, int]] = (32, 4)
    published: ClassVar[Mapping[str, float]] = {"transformer": 17.43e9, "text_encoder": 8.292e9, "text_encoder_2": 0.22e9, "vae": 0.406e9}
    published_config: ClassVar[Mapping[str, Any]] = {"text_embed_2_dim": 1472}

    @classmethod
    def decoding_of(cls, height: int, width: int, call: Mapping[str, Any]) -> float:
        return 448.0 * height * width

    def guider_scale(self, call: Mapping[str, Any]) -> float | None:
        return call.get(GUIDER, call.get("guidance_scale"))

    def takes(self, call: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in super().takes(call).items() if k != GUIDER}


class HunyuanVideo15T2V(HunyuanImage):
    """https://huggingface.co/tencent/HunyuanVideo-1.5, under the Tencent Hunyuan Community License."""

    pipeline = "diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5:HunyuanVideo15Pipeline"
    draws = "video"
    fps = 24
    text_length = 1256
    token: ClassVar[tuple[int, int]] = (16, 4)
    default_frames: ClassVar[int] = 121
    tile: ClassVar[int] = 256
    published: ClassVar[Mapping[str, float]] = {"transformer": 8.327e9, "text_encoder": 7.071e9, "text_encoder_2": 0.22e9, "vae": 1.261e9}
    published_config: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def decoding_of(cls, height: int, width: int, call: Mapping[str, Any]) -> float:
        return 770.0 * height * width * (call.get("num_frames") or cls.default_frames)


class HunyuanVideo15I2V(HunyuanVideo15T2V):
    """A video that begins with a picture. The pipeline takes no size and would choose one by the picture's shape: here it is the call's."""

    pipeline = "diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5_image2video:HunyuanVideo15ImageToVideoPipeline"
    images = (1, 1)
    published: ClassVar[Mapping[str, float]] = {**HunyuanVideo15T2V.published, "image_encoder": 0.428e9}

    def _called(self, cond: Cond, n: int, form: CallForm, call: Mapping[str, Any]) -> dict[str, Any]:
        size = call["height"], call["width"]
        self.pipe.video_processor.calculate_default_height_width = lambda **_: size  # crops the picture to it
        return super()._called(cond, n, form, call)
