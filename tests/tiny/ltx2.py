"""A tiny random LTX-2: video and sound, with connectors between the text encoder and the transformer, an audio VAE and a vocoder."""

from typing import Any

from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2ImageToVideoPipeline, LTX2Pipeline, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

from tests.tiny.encoders import WIDTH, gemma3
from tests.tiny.parts import euler, lively, seeded
from tests.tiny.text import gemma_tokenizer


def _transformer() -> LTX2VideoTransformer3DModel:
    return lively(seeded(
        LTX2VideoTransformer3DModel, in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4, audio_cross_attention_dim=8,
        num_layers=2, caption_channels=WIDTH, vae_scale_factors=(2, 8, 8), rope_type="split"))  # fmt: skip


def _connectors() -> LTX2TextConnectors:
    """Padding is replaced by 8 learnt registers, so `max_sequence_length` must be a multiple of 8."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": WIDTH // 2, "num_layers": 1, "num_learnable_registers": 8}
    both = {f"{kind}_connector_{key}": value for kind in ("video", "audio") for key, value in sizes.items()}
    return lively(seeded(
        LTX2TextConnectors, caption_channels=WIDTH, text_proj_in_factor=3, connector_rope_base_seq_len=32, rope_type="split",
        **both))  # fmt: skip


def _vae() -> AutoencoderKLLTX2Video:
    """8 px and 2 frames to a latent position."""
    return lively(seeded(
        AutoencoderKLLTX2Video, latent_channels=4, block_out_channels=(8,), down_block_types=("LTX2VideoDownBlock3D",),
        decoder_block_out_channels=(8,), layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False), downsample_type=("spatiotemporal",),
        upsample_type=("spatiotemporal",), upsample_residual=(True,), upsample_factor=(2,)))  # fmt: skip


def _audio_vae() -> AutoencoderKLLTX2Audio:
    return seeded(AutoencoderKLLTX2Audio, base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8)


def _vocoder() -> LTX2Vocoder:
    return seeded(
        LTX2Vocoder, in_channels=16, hidden_channels=32, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2], resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]], output_sampling_rate=16000)  # fmt: skip


def _parts() -> dict[str, Any]:
    tokens = gemma_tokenizer()
    scheduler = euler(
        shift=1.0, use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096,
        shift_terminal=0.1)  # fmt: skip
    return {
        "scheduler": scheduler, "tokenizer": tokens, "text_encoder": gemma3(tokens), "connectors": _connectors(),
        "transformer": _transformer(), "vae": _vae(), "audio_vae": _audio_vae(), "vocoder": _vocoder()}  # fmt: skip


def ltx2_t2av() -> LTX2Pipeline:
    return LTX2Pipeline(**_parts())


def ltx2_i2av() -> LTX2ImageToVideoPipeline:
    return LTX2ImageToVideoPipeline(**_parts())
