"""Kandinsky 5.0: pictures, edits and videos."""

from collections.abc import Mapping
from typing import Any, ClassVar

from flow_factory.models.named import Named
from flow_factory.utils.errors import UserError


class Kandinsky5T2I(Named):
    """Kandinsky-5.0-T2I-Lite. https://github.com/kandinskylab/kandinsky-5, under the MIT License."""

    pipeline = "diffusers.pipelines.kandinsky5.pipeline_kandinsky_t2i:Kandinsky5T2IPipeline"
    encoders = ("text_encoder", "text_encoder_2")
    published: ClassVar[Mapping[str, float]] = {"transformer": 6.022e9, "text_encoder": 8.292e9, "text_encoder_2": 0.123e9, "vae": 0.084e9}
    published_config: ClassVar[Mapping[str, Any]] = {
        "in_visual_dim": 16, "out_visual_dim": 16, "model_dim": 2560, "ff_dim": 10240, "num_visual_blocks": 50, "axes_dims": (32, 48, 48),
    }  # fmt: skip


class Kandinsky5I2I(Kandinsky5T2I):
    """Kandinsky-5.0-I2I-Lite: one picture and an instruction."""

    pipeline = "diffusers.pipelines.kandinsky5.pipeline_kandinsky_i2i:Kandinsky5I2IPipeline"
    images = (1, 1)
    text_length = 1024
    published_config: ClassVar[Mapping[str, Any]] = {**Kandinsky5T2I.published_config, "visual_cond": True}


class Kandinsky5T2V(Named):
    """Kandinsky-5.0-T2V-Lite (2B) and -Pro (19B)."""

    pipeline = "diffusers.pipelines.kandinsky5.pipeline_kandinsky:Kandinsky5T2VPipeline"
    encoders = ("text_encoder", "text_encoder_2")
    draws = "video"
    fps = 24
    default_frames: ClassVar[int] = 121
    tile: ClassVar[int] = 256
    published: ClassVar[Mapping[str, float]] = {**Kandinsky5T2I.published, "transformer": 2.008e9, "vae": 0.246e9}
    published_config: ClassVar[Mapping[str, Any]] = {
        "in_visual_dim": 16, "out_visual_dim": 16, "model_dim": 1792, "ff_dim": 7168, "visual_cond": True,
    }  # fmt: skip
    variants: ClassVar[Mapping[str, tuple[Mapping[str, float], Mapping[str, Any]]]] = {
        "Pro": (
            {"transformer": 19.31e9},
            {"model_dim": 4096, "ff_dim": 16384, "time_dim": 1024, "num_text_blocks": 4, "num_visual_blocks": 60,
             "axes_dims": (32, 48, 48)},
        ),
    }  # fmt: skip

    @classmethod
    def decoding_of(cls, height: int, width: int, call: Mapping[str, Any]) -> float:
        return 600.0 * height * width * min(call.get("num_frames") or cls.default_frames, 33)  # longer ones are decoded piece by piece


class Kandinsky5I2V(Kandinsky5T2V):
    """Kandinsky-5.0-I2V-Lite and -Pro: a video that begins with a picture."""

    pipeline = "diffusers.pipelines.kandinsky5.pipeline_kandinsky_i2v:Kandinsky5I2VPipeline"
    images = (1, 1)

    def check_call(self, call: Mapping[str, Any]) -> None:
        super().check_call(call)
        if (frames := self.frames(call)) < (least := 4 * self.frame_step() + 1):
            reason = "the pipeline levels out its first 4 latent frames by those after them, and without any it draws black"
            raise UserError(f"num_frames {frames}: {reason}; write {least} or more")
