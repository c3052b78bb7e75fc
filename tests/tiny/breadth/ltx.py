"""LTX, LTX-2 and Mochi."""

from functools import partial
from typing import Any

import diffusers as d

from tests.tiny import ltx2
from tests.tiny.breadth.registry import IMAGE, PICTURE, VIDEO, also, case, made, reuse
from tests.tiny.encoders import t5
from tests.tiny.parts import euler, lively, seeded
from tests.tiny.text import t5_tokenizer

LTX2 = {**IMAGE, "num_frames": 5, "max_sequence_length": 16, "spatio_temporal_guidance_blocks": [1]}
reuse("ltx2_condition", "LTX2ConditionPipeline", ltx2.ltx2_t2av, call=LTX2, negative=True)
reuse("ltx2_ic_lora", "LTX2InContextPipeline", ltx2.ltx2_t2av, call=LTX2, negative=True)
reuse("ltx2_hdr", "LTX2HDRPipeline", ltx2.ltx2_t2av, call=LTX2, negative=True)


@case("ltx", "LTXPipeline", call={**VIDEO, "height": 32, "width": 32, "num_frames": 9}, negative=True)
def ltx() -> Any:
    transformer = lively(seeded(
        d.LTXVideoTransformer3DModel, in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=2, caption_channels=32))  # fmt: skip
    vae = lively(seeded(
        d.AutoencoderKLLTXVideo, latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1), patch_size=1, patch_size_t=1,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False)))  # fmt: skip
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return d.LTXPipeline(euler(use_dynamic_shifting=True, shift_terminal=0.1), vae, t5(), t5_tokenizer(), transformer)


def ltx_static() -> Any:
    """LTXCondition's checkpoint (0.9.7) has no dynamic shifting."""
    pipe = ltx()
    pipe.scheduler = euler(shift=1.0, shift_terminal=0.1)
    return pipe


LTX = {**VIDEO, "height": 32, "width": 32, "num_frames": 9}
reuse("ltx_i2v", "LTXImageToVideoPipeline", ltx, call=LTX, columns=PICTURE, negative=True)
reuse("ltx_condition", "LTXConditionPipeline", ltx_static, call=LTX, columns=PICTURE, negative=True)
also("ltx_condition_text", partial(made, "LTXConditionPipeline", ltx_static), "LTXConditionPipeline", LTX, negative=True)


@case("mochi", "MochiPipeline", call={**VIDEO, "num_frames": 7}, negative=True)
def mochi() -> Any:
    transformer = lively(seeded(
        d.MochiTransformer3DModel, patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
        in_channels=12, text_embed_dim=32, time_embed_dim=16, max_sequence_length=16))  # fmt: skip
    vae = lively(seeded(
        d.AutoencoderKLMochi, latent_channels=12, out_channels=3, encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32), layers_per_block=(1, 1, 1, 1, 1)))  # fmt: skip
    return d.MochiPipeline(euler(shift=1.0, invert_sigmas=True), vae, t5(), t5_tokenizer(), transformer)


reuse("ltx_long_multi_prompt", "LTXI2VLongMultiPromptPipeline", ltx_static, call=LTX, negative=True)
reuse("ltx2_dfr", "LTX2DFRPipeline", ltx2.ltx2_t2av, call={**IMAGE, "num_frames": 9, "max_sequence_length": 16})
