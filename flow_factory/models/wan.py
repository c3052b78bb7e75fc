"""Wan 2.1 and 2.2: text, image and video to video, with one transformer or two (A14B: one for each end of the schedule)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from flow_factory.models.base import ModelAdapter
from flow_factory.types import Clip, Cond, Row
from flow_factory.utils.errors import UserError


class WanT2V(ModelAdapter):
    """Wan2.1-T2V 1.3B and 14B, Wan2.2-TI2V-5B, Wan2.2-T2V-A14B. https://github.com/Wan-Video/Wan2.2"""

    pipeline = "diffusers.pipelines.wan.pipeline_wan:WanPipeline"
    components: ClassVar[tuple[str, ...]] = ("transformer", "transformer_2")
    encoders = ("text_encoder",)
    draws = "video"
    evaluates_by = "UniPC of second order"
    precise_vae = True
    splits = True
    encodes_media = None
    lora_targets: ClassVar[tuple[str, ...]] = (
        "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
        "ffn.net.0.proj", "ffn.net.2",
    )  # fmt: skip
    published: ClassVar[Mapping[str, float]] = {"transformer": 14.29e9, "text_encoder": 5.681e9, "vae": 0.127e9}
    variants: ClassVar[Mapping[str, tuple[Mapping[str, float], Mapping[str, Any]]]] = {
        "1.3B": ({"transformer": 1.419e9}, {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}),
        "5B": (
            {"transformer": 5.0e9, "vae": 0.705e9},
            {"num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48},
        ),
        "A14B": ({"transformer_2": 14.29e9}, {}),
    }
    default_frames: ClassVar[int] = 81
    tile: ClassVar[int] = 256

    @classmethod
    def tokens_of(cls, height: int, width: int, call: Mapping[str, Any]) -> int:
        frames = (call.get("num_frames", cls.default_frames) - 1) // 4 + 1
        return frames * (height // 16) * (width // 16)

    @classmethod
    def decoding_of(cls, height: int, width: int, call: Mapping[str, Any]) -> float:
        return 5100.0 * height * width  # four frames at a time, however many there are

    def __init__(self, pipe: Any):
        super().__init__(pipe)
        small = getattr(pipe.config, "expand_timesteps", False)  # TI2V-5B
        self.fps = 24 if small else 16

    def embed(self, text: str, pictures: Any, call: Mapping[str, Any]) -> Cond:
        length = call.get("max_sequence_length", self.text_length)
        embeds, _ = self.pipe.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=length)
        return {"prompt_embeds": embeds}

    def size_step(self) -> int:
        return self.pipe.vae_scale_factor_spatial * next(iter(self.field.bare.values())).config.patch_size[1]

    def frame_step(self) -> int:
        return self.pipe.vae_scale_factor_temporal


class WanI2V(WanT2V):
    """Wan2.1-I2V, Wan2.2-TI2V-5B, Wan2.2-I2V-A14B: the first picture of the video, and maybe the last."""

    pipeline = "diffusers.pipelines.wan.pipeline_wan_i2v:WanImageToVideoPipeline"
    also_loads = ("WanPipeline",)
    memoised = ("vae.encode", "encode_image")
    images = (1, 2)
    published: ClassVar[Mapping[str, float]] = {
        "transformer": 16.40e9, "text_encoder": 5.681e9, "image_encoder": 0.632e9, "vae": 0.127e9,
    }  # fmt: skip
    published_config: ClassVar[Mapping[str, Any]] = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
    variants: ClassVar[Mapping[str, tuple[Mapping[str, float], Mapping[str, Any]]]] = {
        name: ({"transformer": 14.29e9, **parts, "image_encoder": 0}, {**config, "image_dim": None, "added_kv_proj_dim": None})
        for name, (parts, config) in WanT2V.variants.items()
    }
    """Of Wan 2.2 none has an image encoder."""

    def check_call(self, call: Mapping[str, Any]) -> None:
        super().check_call(call)
        length = call.get("max_sequence_length", self.text_length)
        if next(iter(self.field.bare.values())).config.added_kv_proj_dim is not None and length != 512:
            raise UserError(f"max_sequence_length: {length}: the attention of Wan 2.1 I2V needs 512 tokens of text; write 512")

    def conditions(self, row: Row, call: Mapping[str, Any]) -> Cond:
        first, *last = super().conditions(row, call)["image"]
        return {"image": first} | ({"last_image": last[0]} if last else {})

    def check_conditions(self, row: Row, sizes: Mapping[str, tuple[int, int, int]], call: Mapping[str, Any]) -> None:
        if (n := len(row.images)) not in (takes := self._takes()):
            wants = "the first and the last picture of the video" if takes == (2,) else "the first picture of the video only"
            raise UserError(f"{row.source}: {n} condition image{'s' * (n - 1)}; this checkpoint takes {wants}")

    def sampled(self, x: Tensor) -> Tensor | None:
        """TI2V-5B puts the picture's own latents in the place of the first frame's, whatever is drawn there."""
        if not self.pipe.config.expand_timesteps:
            return None
        return torch.arange(x[0].numel(), device=x.device).view(x.shape[1:])[:, 1:].flatten()

    def _takes(self) -> tuple[int, ...]:
        """How many pictures: of Wan 2.1 the first-last-frame checkpoint wants both, and of 2.2 only A14B takes a last one; the others
        would ignore it or fail."""
        config = next(iter(self.field.bare.values())).config
        if config.image_dim is not None:
            return (1,) if config.pos_embed_seq_len is None else (2,)
        return (1,) if self.pipe.config.expand_timesteps else (1, 2)


class WanV2V(WanT2V):
    """A video that is noised to `strength` of the schedule and drawn anew."""

    pipeline = "diffusers.pipelines.wan.pipeline_wan_video2video:WanVideoToVideoPipeline"
    also_loads = ("WanPipeline",)
    components = ("transformer",)
    videos = (1, 1)
    in_velocity: ClassVar[Mapping[str, Any]] = {"strength": 1.0}

    def check_conditions(self, row: Row, sizes: Mapping[str, tuple[int, int, int]], call: Mapping[str, Any]) -> None:
        frames, by = sizes[row.videos[0]][2], self.frame_step()
        if (frames - 1) % by:
            below = (frames - 1) // by * by + 1
            raise UserError(
                f"{row.source}: {row.videos[0]} has {frames} frames; the VAE takes {below} or {below + by}: cut it, or add some"
            )

    def to_state(self, media: Sequence[Any], call: Mapping[str, Any], generator: Generator | None = None) -> Tensor:
        """Clips must have as many frames as the row's video; the call does not say how many."""
        frames = next((len(one.frames) for one in media if isinstance(one, Clip)), 1)
        return super().to_state(media, {**call, "num_frames": frames}, generator)

    def joinable(self, cond: Cond) -> Any:
        return None
