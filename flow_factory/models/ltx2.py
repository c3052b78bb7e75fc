"""LTX-2: text, or a picture, to video and sound together; the state is the latents of both as one vector."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf, resolve_default_image_crf
from PIL import Image
from torch import Tensor

from flow_factory.models.base import ModelAdapter
from flow_factory.types import Clip, Cond, Row
from flow_factory.utils.errors import UserError


class LTX2(ModelAdapter):
    """https://github.com/Lightricks/LTX-2"""

    pipeline = "diffusers.pipelines.ltx2.pipeline_ltx2:LTX2Pipeline"
    encoders: tuple[str, ...] = ("text_encoder", "connectors")
    text_length = 1024
    draws = "video"
    sounds = True
    encodes_media = "diffusers makes no spectrogram of a clip's sound for the audio VAE of LTX-2"
    lora_targets: ClassVar[tuple[str, ...]] = (
        "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
        "audio_attn1.to_q", "audio_attn1.to_k", "audio_attn1.to_v", "audio_attn1.to_out.0", "audio_attn2.to_q", "audio_attn2.to_k",
        "audio_attn2.to_v", "audio_attn2.to_out.0", "ff.net.0.proj", "ff.net.2", "audio_ff.net.0.proj", "audio_ff.net.2",
    )  # fmt: skip
    published: ClassVar[Mapping[str, float]] = {"transformer": 18.88e9, "text_encoder": 12.19e9, "connectors": 2.9e9, "vae": 1.2e9}
    variants: ClassVar[Mapping[str, tuple[Mapping[str, float], Mapping[str, Any]]]] = {
        "LTX-2.3": (
            {"transformer": 18.99e9, "connectors": 3.172e9, "vae": 0.726e9},
            dict.fromkeys(("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod", "perturbed_attn"), True)
            | {"use_prompt_embeddings": False},
        ),
    }
    default_frames: ClassVar[int] = 121
    tile: ClassVar[int] = 512

    @classmethod
    def tokens_of(cls, height: int, width: int, call: Mapping[str, Any]) -> int:
        frames = ((call.get("num_frames") or cls.default_frames) - 1) // 8 + 1
        return frames * (height // 32) * (width // 32) + call.get("max_sequence_length", cls.text_length)

    @classmethod
    def embedded(cls, shape: Mapping[str, Any], tokens: int) -> int:
        """What the connectors make of them, for video and for sound."""
        return sum(_widths(shape)) * tokens

    @classmethod
    def decoding_of(cls, height: int, width: int, call: Mapping[str, Any]) -> float:
        return 45.0 * height * width * (call.get("num_frames") or cls.default_frames)

    @classmethod
    def passes(cls, call: Mapping[str, Any]) -> int:
        """Beside the prompt: the negative prompt, spatio-temporal guidance, and the modalities apart; the pipeline's defaults are on."""
        scales = {"guidance_scale": (7.0, 1), "stg_scale": (1.0, 0), "modality_scale": (3.0, 1)}
        scales_given = {k: (call.get(k, d), call.get(f"audio_{k}", d), off) for k, (d, off) in scales.items()}
        return 1 + sum(max(own or 0, (own if audio is None else audio) or 0) > off for own, audio, off in scales_given.values())

    def guided(self, call: Mapping[str, Any]) -> bool:
        """Picture and sound have a scale each; the pipeline has its own for one that is not given."""
        return any((call.get(k, self.parameters[k].default) or 0) > 1 for k in ("guidance_scale", "audio_guidance_scale"))

    def with_guidance(self, call: Mapping[str, Any], scale: float) -> dict[str, Any]:
        """Picture and sound alike; the guidance of blocks left out and of modalities apart is off."""
        off = {"stg_scale": 0.0, "audio_stg_scale": 0.0, "modality_scale": 1.0, "audio_modality_scale": 1.0}
        return {**call, "guidance_scale": scale, "audio_guidance_scale": scale, **off}

    def __init__(self, pipe: Any):
        super().__init__(pipe)
        self.video_width, _ = _widths(pipe.transformer.config)

    def embed(self, text: str, pictures: Any, call: Mapping[str, Any]) -> Cond:
        length = call.get("max_sequence_length", self.text_length)
        if length % (registers := self.pipe.connectors.config.video_connector_num_learnable_registers or 1):
            near = max(1, round(length / registers)) * registers
            raise UserError(f"max_sequence_length: {length}: LTX-2 pads texts to a multiple of {registers}; write {near}")
        embeds, mask, _, _ = self.pipe.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=length)
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def encode(self, row: Row, call: Mapping[str, Any]) -> Cond:
        """With what the connectors make of the text encoder's 49 states, a thirtieth of their size; video and sound side by side.

        They see the negative prompt and the prompt in one batch, as in the pipeline: alone, a prompt has other bits in 16 bits.
        """
        cond = super().encode(row, call)
        kinds = ("negative_", "") if "negative_prompt_embeds" in cond else ("",)
        embeds, mask = (torch.cat([cond[f"{kind}prompt_{name}"] for kind in kinds]) for name in ("embeds", "attention_mask"))
        padded = getattr(self.pipe.tokenizer, "padding_side", "left")
        video, sound, mask = self.pipe.connectors(embeds, mask, padding_side=padded)
        for kind, one, its in zip(kinds, torch.cat([video, sound], dim=-1).chunk(len(kinds)), mask.chunk(len(kinds)), strict=True):
            cond |= {f"{kind}prompt_embeds": one, f"{kind}prompt_attention_mask": its}
        return cond

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """The pipeline's connectors have done their work, and take its results apart."""
        parts = vars(self.pipe)

        def apart(embeds: Tensor, mask: Tensor, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
            video, sound = embeds[..., : self.video_width], embeds[..., self.video_width :]
            return video.contiguous(), sound.contiguous(), mask

        connectors, parts["connectors"] = parts["connectors"], apart
        try:
            yield
        finally:
            parts["connectors"] = connectors

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        with self._connected():
            return super().sample(*args, **kwargs)

    def velocity(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._connected():
            return super().velocity(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._connected():
            return super().decode(*args, **kwargs)

    def evaluate(self, cond: Cond, call: Mapping[str, Any], num_steps: int, generators: Any) -> list[Any]:
        with self._connected():
            return super().evaluate(cond, call, num_steps, generators)

    def takes(self, call: Mapping[str, Any]) -> dict[str, Any]:
        return {"num_frames": self.default_frames} | super().takes(call)

    def size_step(self) -> int:
        return math.lcm(32, self.pipe.vae_spatial_compression_ratio)  # the pipeline wants 32 whatever the VAE does

    def frame_step(self) -> int:
        return self.pipe.vae_temporal_compression_ratio

    def media(self, out: tuple[Any, ...], call: Mapping[str, Any]) -> list[Any]:
        videos, sounds = out
        rate = self.pipe.vocoder.config.output_sampling_rate
        fps = call.get("frame_rate", 24.0)
        return [Clip(list(v), fps, a.float().cpu().numpy(), rate) for v, a in zip(videos, sounds, strict=True)]


def _widths(shape: Mapping[str, Any]) -> tuple[int, int]:
    """Of the embeddings that the transformer takes for video and for sound."""
    if shape["use_prompt_embeddings"]:  # LTX-2.0 projects them itself
        return shape["caption_channels"], shape["caption_channels"]
    return shape["cross_attention_dim"], shape["audio_cross_attention_dim"]


class LTX2I2AV(LTX2):
    """LTX-2 whose video begins with a picture."""

    pipeline = "diffusers.pipelines.ltx2.pipeline_ltx2_image2video:LTX2ImageToVideoPipeline"
    also_loads = ("LTX2Pipeline",)
    images = (1, 1)
    encodes_by = ("max_sequence_length", "image_crf")

    def conditions(self, row: Row, call: Mapping[str, Any]) -> Cond:
        """The picture as a video codec would leave it: the pipeline can do this to a single one only."""
        (picture,) = super().conditions(row, call)["image"]
        crf = call.get("image_crf")
        crf = resolve_default_image_crf(self.pipe.text_encoder) if crf is None else crf
        return {"image": Image.fromarray(apply_image_conditioning_crf(np.array(picture), crf)) if crf else picture}

    def unusable(self, width: int, height: int, call: Mapping[str, Any]) -> str | None:
        return "too small; LTX-2 wants at least 2 a side" if min(width, height) < 2 else None  # the codec rounds down to even sides

    def repeat(self, cond: Cond, n: int) -> Cond:
        return super().repeat(cond, n) | {"image": [cond["image"]] * n, "image_crf": 0}

    def evaluate(self, cond: Cond, call: Mapping[str, Any], num_steps: int, generators: Any) -> list[Any]:
        return super().evaluate(cond | {"image_crf": 0}, call, num_steps, generators)
