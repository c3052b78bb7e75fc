"""FLUX.1: FLUX.1-dev (embedded guidance), with true CFG where `true_cfg_scale` > 1."""

from collections.abc import Mapping
from typing import Any, ClassVar

from flow_factory.models.base import ModelAdapter
from flow_factory.types import Cond, Row


class Flux1(ModelAdapter):
    """https://github.com/black-forest-labs/flux"""

    pipeline = "diffusers.pipelines.flux.pipeline_flux:FluxPipeline"
    encoders = ("text_encoder", "text_encoder_2")
    encodes_by = ("max_sequence_length", "true_cfg_scale")
    lora_targets: ClassVar[tuple[str, ...]] = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
        "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    )  # fmt: skip
    published: ClassVar[Mapping[str, float]] = {"transformer": 11.90e9, "text_encoder": 0.123e9, "text_encoder_2": 4.762e9, "vae": 0.084e9}

    def encode(self, row: Row, call: Mapping[str, Any]) -> Cond:
        cond = self._embed("", row.prompt, call)
        if call.get("true_cfg_scale", 1.0) > 1:
            cond |= self._embed("negative_", row.negative_prompt or "", call)
        return cond

    def tokens(self, row: Row, call: Mapping[str, Any]) -> tuple[int, int]:
        return len(self.pipe.tokenizer_2(row.prompt).input_ids), call.get("max_sequence_length", 512)

    def _embed(self, prefix: str, text: str, call: Mapping[str, Any]) -> Cond:
        embeds, pooled, _ = self.pipe.encode_prompt(text, None, max_sequence_length=call.get("max_sequence_length", 512))
        return {f"{prefix}prompt_embeds": embeds, f"{prefix}pooled_prompt_embeds": pooled}
