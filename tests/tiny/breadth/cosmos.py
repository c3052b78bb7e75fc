"""Cosmos Predict 2 and 2.5."""

from typing import Any

import diffusers as d

from tests.tiny.breadth.components import talking_qwen
from tests.tiny.breadth.registry import IMAGE, SMALL, VIDEO, case
from tests.tiny.encoders import WIDTH, qwen25_vl, t5
from tests.tiny.parts import euler, lively, seeded, unipc, wan_vae
from tests.tiny.text import t5_tokenizer


def _cosmos(**kwargs: Any) -> Any:
    return lively(
        seeded(
            d.CosmosTransformer3DModel,
            **{
                "in_channels": 16,
                "out_channels": 16,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 2,
                "mlp_ratio": 2,
                "text_embed_dim": 32,
                "adaln_lora_dim": 4,
                "max_size": (4, 32, 32),
                "patch_size": (1, 2, 2),
                "rope_scale": (2.0, 1.0, 1.0),
                "concat_padding_mask": True,
                "extra_pos_embed_type": "learnable",
            }
            | kwargs,
        )
    )


GUARDRAIL = ("cosmos_guardrail",)


class Harmless:
    """Stands for Cosmos' safety checker, which downloads several large models."""

    def to(self, *_: Any, **__: Any) -> "Harmless":
        return self

    def check_text_safety(self, *_: Any) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


@case("cosmos2_t2i", "Cosmos2TextToImagePipeline", call=IMAGE, negative=True, needs=GUARDRAIL)
def cosmos2_t2i() -> Any:
    return d.Cosmos2TextToImagePipeline(
        t5(), t5_tokenizer(), _cosmos(), wan_vae(), euler(use_karras_sigmas=True), safety_checker=Harmless()
    )


@case("cosmos2_v2w", "Cosmos2VideoToWorldPipeline", call=VIDEO, columns=SMALL, negative=True, needs=GUARDRAIL)
def cosmos2_v2w() -> Any:
    return d.Cosmos2VideoToWorldPipeline(
        t5(), t5_tokenizer(), _cosmos(in_channels=17), wan_vae(), euler(use_karras_sigmas=True), safety_checker=Harmless())  # fmt: skip


@case("cosmos25_predict", "Cosmos2_5_PredictBasePipeline", call=VIDEO, negative=True, needs=GUARDRAIL)
def cosmos25_predict() -> Any:
    from diffusers.pipelines.cosmos.pipeline_cosmos2_5_predict import Cosmos2_5_PredictBasePipeline

    transformer = _cosmos(in_channels=17, text_embed_dim=32, use_crossattn_projection=True, crossattn_proj_in_channels=2 * WIDTH,
                          encoder_hidden_states_channels=32, extra_pos_embed_type=None)  # fmt: skip
    return Cosmos2_5_PredictBasePipeline(qwen25_vl(), talking_qwen(), transformer, wan_vae(), unipc(), safety_checker=Harmless())
