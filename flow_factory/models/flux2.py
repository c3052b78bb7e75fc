"""FLUX.2: dev (embedded guidance) and klein (distilled, or base with CFG); both take any number of pictures to edit or to go by."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from flow_factory.models.base import ModelAdapter
from flow_factory.models.parts import fitted, fitted_size, too_small
from flow_factory.models.states import encoded
from flow_factory.types import Cond, Row

UPSAMPLING_SEED = 0
LEAST_SIDE, MOST_ASPECT = 64, 8
"""Of a condition picture, as the pipeline asks."""


class Flux2(ModelAdapter):
    """https://github.com/black-forest-labs/flux2

    The pipeline keeps a megapixel of each picture, or the area of `condition_image_size` (a side, or height and width) where that is given.
    """

    pipeline = "diffusers.pipelines.flux2.pipeline_flux2:Flux2Pipeline"
    encoders: tuple[str, ...] = ("text_encoder",)
    extra_call_arguments: ClassVar[tuple[str, ...]] = ("condition_image_size",)
    encodes_by: ClassVar[tuple[str, ...]] = (
        "max_sequence_length", "text_encoder_out_layers", "caption_upsample_temperature", "condition_image_size",
    )  # fmt: skip
    images = (0, 32)
    cfg: str | None = None
    encodes_media = None
    splits = True
    times_per_sample = True
    lora_targets: ClassVar[tuple[str, ...]] = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
        "ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out", "attn.to_qkv_mlp_proj", "attn.to_out",
    )  # fmt: skip
    published: ClassVar[Mapping[str, float]] = {"transformer": 32.22e9, "text_encoder": 24.01e9, "vae": 0.084e9}

    def conditions(self, row: Row, call: Mapping[str, Any]) -> Cond:
        return {k: [fitted(p, call.get("condition_image_size")) for p in v] for k, v in super().conditions(row, call).items()}

    def unusable(self, width: int, height: int, call: Mapping[str, Any]) -> str | None:
        """The limits of the pipeline's `check_image_input`."""
        sides = fitted_size(width, height, call.get("condition_image_size"))
        if min(sides) < LEAST_SIDE:
            return f"{too_small(sides, width, height)}; FLUX.2 wants at least {LEAST_SIDE} a side"
        return None if max(sides) <= MOST_ASPECT * min(sides) else f"too narrow; FLUX.2 takes sides of at most {MOST_ASPECT} to 1"

    def embed(self, text: str, pictures: Any, call: Mapping[str, Any]) -> Cond:
        options = {k: call[k] for k in ("max_sequence_length", "text_encoder_out_layers") if k in call}
        if call.get("caption_upsample_temperature"):
            text = self._upsampled(text, pictures, call["caption_upsample_temperature"])
        return {"prompt_embeds": self.pipe.encode_prompt(text, **options)[0]}

    def takes(self, call: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in super().takes(call).items() if k != "caption_upsample_temperature"}  # done in `embed`

    def state_of(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Normalised channel by channel of a patch, by what its VAE has measured, as `_encode_vae_image` does with the mode."""
        z, vae = self.pipe._patchify_latents(encoded(self.pipe.vae, x, generator)), self.pipe.vae
        mean, var = (a.view(1, -1, 1, 1) for a in (vae.bn.running_mean, vae.bn.running_var))
        z = (z - mean.to(z)) / (var + vae.config.batch_norm_eps).sqrt().to(z)
        return self.pipe._pack_latents(z).float()

    def _upsampled(self, text: str, pictures: Any, temperature: float) -> str:
        """The prompt as the text encoder rewrites it; always the same way."""
        device = self.pipe.text_encoder.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(UPSAMPLING_SEED)
            return self.pipe.upsample_prompt(text, images=pictures, temperature=temperature, device=device)[0]


class Flux2Klein(Flux2):
    """FLUX.2-klein: the distilled checkpoints have no guidance; the base ones take a negative prompt."""

    pipeline = "diffusers.pipelines.flux2.pipeline_flux2_klein:Flux2KleinPipeline"
    encodes_by = ("max_sequence_length", "text_encoder_out_layers", "condition_image_size")
    cfg = "guidance_scale"
    published: ClassVar[Mapping[str, float]] = {"transformer": 3.876e9, "text_encoder": 4.022e9, "vae": 0.084e9}
    published_config: ClassVar[Mapping[str, Any]] = {
        "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680, "guidance_embeds": False,
    }  # fmt: skip
    variants: ClassVar[Mapping[str, tuple[Mapping[str, float], Mapping[str, Any]]]] = {
        "9B": (
            {"transformer": 9.079e9, "text_encoder": 8.191e9},
            {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288},
        ),
    }

    def guided(self, call: Mapping[str, Any]) -> bool:
        return super().guided(call) and not self.pipe.config.is_distilled
