"""Wan and its relatives."""

from typing import Any

import diffusers as d

from tests.tiny import wan
from tests.tiny.breadth.registry import SMALL, VIDEO, Medium, also, case
from tests.tiny.encoders import WIDTH, clip_images, clip_vision, t5
from tests.tiny.parts import lively, seeded, wan_vae
from tests.tiny.text import t5_tokenizer


def _wan_sizes(**kwargs: Any) -> dict[str, Any]:
    return {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16, "out_channels": 16, "text_dim": 32, "freq_dim": 32,
            "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 64} | kwargs  # fmt: skip


@case("wan_vace", "WanVACEPipeline", call=VIDEO, negative=True)
def wan_vace() -> Any:
    transformer = lively(seeded(d.WanVACETransformer3DModel, **_wan_sizes(vace_layers=[0], vace_in_channels=96)))
    return d.WanVACEPipeline(**wan._parts(transformer=transformer))


also(
    "wan_vace_reference",
    wan_vace,
    "WanVACEPipeline",
    VIDEO,
    columns={"reference_images": Medium(side=16, listed=True)},
    negative=True,
)


@case("lucy_edit", "LucyEditPipeline", call=VIDEO, columns={"video": Medium("video", 16)}, negative=True)
def lucy_edit() -> Any:
    transformer = lively(seeded(d.WanTransformer3DModel, **_wan_sizes(in_channels=32)))
    return d.LucyEditPipeline(**wan._parts(transformer=transformer))


@case("chronoedit", "ChronoEditPipeline", call={**VIDEO, "max_sequence_length": 512}, columns=SMALL, negative=True)
def chronoedit() -> Any:
    transformer = lively(seeded(
        d.ChronoEditTransformer3DModel, **_wan_sizes(in_channels=36, image_dim=WIDTH, added_kv_proj_dim=24)))  # fmt: skip
    return d.ChronoEditPipeline(**wan._parts(transformer=transformer, image_encoder=clip_vision(), image_processor=clip_images()))


@case(
    "wan_animate",
    "WanAnimatePipeline",
    call={"height": 16, "width": 16, "max_sequence_length": 512, "segment_frame_length": 5, "prev_segment_conditioning_frames": 1},
    columns=SMALL | {"pose_video": Medium("video", 16), "face_video": Medium("video", 16)},
    negative=True,
)
def wan_animate() -> Any:
    transformer = lively(
        seeded(
            d.WanAnimateTransformer3DModel,
            **_wan_sizes(
                in_channels=36,
                latent_channels=16,
                image_dim=WIDTH,
                added_kv_proj_dim=24,
                num_layers=4,
                motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
                motion_encoder_size=16,
                motion_style_dim=8,
                motion_dim=4,
                motion_encoder_dim=16,
                face_encoder_hidden_dim=16,
                face_encoder_num_heads=2,
                inject_face_latents_blocks=2,
            ),
        )
    )
    return d.WanAnimatePipeline(**wan._parts(transformer=transformer, image_encoder=clip_vision(), image_processor=clip_images()))


def _skyreels(**kwargs: Any) -> Any:
    return lively(seeded(d.SkyReelsV2Transformer3DModel, **_wan_sizes(**kwargs)))


@case("skyreels_v2", "SkyReelsV2Pipeline", call=VIDEO, negative=True)
def skyreels_v2() -> Any:
    return d.SkyReelsV2Pipeline(**wan._parts(transformer=_skyreels()))


@case("skyreels_v2_i2v", "SkyReelsV2ImageToVideoPipeline", call={**VIDEO, "max_sequence_length": 512}, columns=SMALL, negative=True)
def skyreels_v2_i2v() -> Any:
    transformer = _skyreels(in_channels=36, image_dim=WIDTH, added_kv_proj_dim=24)
    return d.SkyReelsV2ImageToVideoPipeline(
        **wan._parts(transformer=transformer, image_encoder=clip_vision(), image_processor=clip_images())
    )


@case("skyreels_v2_df", "SkyReelsV2DiffusionForcingPipeline", call=VIDEO, negative=True)
def skyreels_v2_df() -> Any:
    return d.SkyReelsV2DiffusionForcingPipeline(**wan._parts(transformer=_skyreels()))


@case("anyflow", "AnyFlowPipeline", call=VIDEO, negative=True)
def anyflow() -> Any:
    transformer = lively(
        seeded(
            d.AnyFlowTransformer3DModel,
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=64,
        )
    )
    return d.AnyFlowPipeline(t5_tokenizer(), t5("UMT5"), transformer, wan_vae(), d.FlowMapEulerDiscreteScheduler(shift=5.0))


@case(
    "wan_v2v_generic",
    "WanVideoToVideoPipeline",
    call={"height": 16, "width": 16, "max_sequence_length": 16},
    columns={"video": Medium("video", 16)},
    negative=True,
)
def wan_v2v_generic() -> Any:
    return wan.wan21_v2v()


@case("wan22_t2v_generic", "WanPipeline", call=VIDEO, negative=True)
def wan22_t2v_generic() -> Any:
    return wan.wan22_a14b_t2v()


@case("skyreels_v2_df_i2v", "SkyReelsV2DiffusionForcingImageToVideoPipeline", call=VIDEO, columns=SMALL, negative=True)
def skyreels_v2_df_i2v() -> Any:
    return d.SkyReelsV2DiffusionForcingImageToVideoPipeline(**wan._parts(transformer=_skyreels()))


@case(
    "skyreels_v2_df_v2v",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    call=VIDEO | {"overlap_history": 1},
    columns={"video": Medium("video", 16)},
    negative=True,
)
def skyreels_v2_df_v2v() -> Any:
    return d.SkyReelsV2DiffusionForcingVideoToVideoPipeline(**wan._parts(transformer=_skyreels()))
