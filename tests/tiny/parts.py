"""What the tiny pipelines share, encoders apart: VAEs, schedulers, and weights that are the same in every run."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def seeded(make: Callable[..., Module], *args: Any, weights_seed: int = 0, **kwargs: Any) -> Module:
    """A module in eval mode whose weights are the same in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(weights_seed)
        return make(*args, **kwargs).eval()


def lively(module: Module) -> Module:
    """Makes a module's layers keep the variance of their input: torch's own keep a third, and prompts and conditions drown on their way.

    Parameters that begin as 0 (pad tokens, gates) become noise.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any() and parameter.ndim > 1:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            elif parameter.ndim > 1 and parameter.std(correction=0) > 0:  # not the gains of norms that have dimensions to broadcast over
                parameter.mul_(3**0.5)
    return module


def euler(**kwargs: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **kwargs})


def unipc(flow_shift: float = 3.0) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift)


def _kl(make: Callable[..., Module], **kwargs: Any) -> Module:
    """8 px to a latent position, of 4 channels."""
    return seeded(
        make, sample_size=32, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=2, use_quant_conv=False,
        use_post_quant_conv=False, **kwargs)  # fmt: skip


def kl_vae() -> AutoencoderKL:
    return _kl(AutoencoderKL, scaling_factor=0.3611, shift_factor=0.1159)


def flux2_vae() -> AutoencoderKLFlux2:
    return _kl(AutoencoderKLFlux2)


VIDEO: dict[str, Any] = {"dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}


def qwen_vae() -> AutoencoderKLQwenImage:
    return lively(seeded(AutoencoderKLQwenImage, base_dim=12, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4, **VIDEO))


def wan_vae() -> AutoencoderKLWan:
    """Of Wan 2.1 and the 14B ones of Wan 2.2: 8 px and 4 frames to a latent position."""
    return lively(seeded(AutoencoderKLWan, base_dim=3, z_dim=16, **VIDEO))


def wan22_vae() -> AutoencoderKLWan:
    """Of Wan 2.2 5B: 16 px and 4 frames to a latent position."""
    return lively(seeded(
        AutoencoderKLWan, base_dim=3, z_dim=48, in_channels=12, out_channels=12, is_residual=True, patch_size=2,
        latents_mean=[0.0] * 48, latents_std=[1.0] * 48, scale_factor_spatial=16, scale_factor_temporal=4, **VIDEO))  # fmt: skip


def hunyuan_vae() -> AutoencoderKLHunyuanVideo15:
    """4 px and 2 frames to a latent position."""
    return seeded(
        AutoencoderKLHunyuanVideo15, latent_channels=4, block_out_channels=(16, 16), layers_per_block=1, spatial_compression_ratio=4,
        temporal_compression_ratio=2, downsample_match_channel=False, upsample_match_channel=False)  # fmt: skip


def dc_vae() -> AutoencoderDC:
    """Of Sana: 2 px to a latent position (32 in the real one)."""
    side = {
        "block_types": ("ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 8), "qkv_multiscales": ((), (5,)),
        "layers_per_block": (1, 1)}  # fmt: skip
    sides = {f"{name}_{key}": value for name in ("encoder", "decoder") for key, value in side.items()}
    return seeded(
        AutoencoderDC, in_channels=3, latent_channels=4, attention_head_dim=2, downsample_block_type="conv",
        upsample_block_type="interpolate", scaling_factor=0.41407, **sides)  # fmt: skip
