"""Stable Diffusion 3.5 Medium and Large (CFG); SD 3 has the same pipeline."""

from collections.abc import Mapping
from typing import Any, ClassVar

from flow_factory.models.base import ModelAdapter
from flow_factory.types import Cond, Row


class SD3(ModelAdapter):
    """arXiv 2403.03206. Skip-layer guidance depends on the step and cannot be replayed: the config refuses it."""

    pipeline = "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3:StableDiffusion3Pipeline"
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    encodes_by = ("max_sequence_length", "clip_skip")
    text_length = 256
    encodes_media = None
    times_per_sample = True
    lora_targets: ClassVar[tuple[str, ...]] = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    )  # fmt: skip
    dead_ends: ClassVar[tuple[str, ...]] = ("transformer_blocks.-1.attn.add_q_proj", "transformer_blocks.-1.attn.norm_added_q")
    published: ClassVar[Mapping[str, float]] = {
        "transformer": 2.244e9, "text_encoder": 0.124e9, "text_encoder_2": 0.695e9, "text_encoder_3": 4.762e9, "vae": 0.084e9,
    }  # fmt: skip
    variants: ClassVar[Mapping[str, tuple[Mapping[str, float], Mapping[str, Any]]]] = {
        "large": (
            {"transformer": 8.057e9},
            {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "dual_attention_layers": ()},
        ),
    }
    published_config: ClassVar[Mapping[str, Any]] = {
        "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048, "in_channels": 16, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)),
        "pos_embed_max_size": 1,  # 384; the table of sines is not a parameter, and takes 10 seconds to compute
    }  # fmt: skip

    @classmethod
    def embedded(cls, shape: Mapping[str, Any], tokens: int) -> int:
        """T5's behind the 77 tokens of the other two."""
        return super().embedded(shape, 77 + tokens)

    def embed(self, text: str, pictures: Any, call: Mapping[str, Any]) -> Cond:
        options = {"max_sequence_length": call.get("max_sequence_length", self.text_length), "clip_skip": call.get("clip_skip")}
        embeds, _, pooled, _ = self.pipe.encode_prompt(text, None, None, do_classifier_free_guidance=False, **options)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def tokens(self, row: Row, call: Mapping[str, Any]) -> tuple[int, int]:
        tokenizer = self.pipe.tokenizer_3 or self.pipe.tokenizer  # T5 may be left out
        return len(tokenizer(row.prompt).input_ids), call.get("max_sequence_length", self.text_length)
