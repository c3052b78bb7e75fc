"""States of the sampler from media: VAE latents of images and videos, with the pipeline's own normalisation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from flow_factory.types import Clip
from flow_factory.utils.errors import UserError


def check_media(media: Sequence[Any], height: int, width: int, frames: int | None) -> None:
    """Raises:
    UserError: one is not what is drawn: a clip of so many `frames`, or a picture where that is None, of this size.
    """
    wanted = "a picture" if frames is None else f"a clip of num_frames {frames}"
    for k, one in enumerate(media):
        pictures = one.frames if isinstance(one, Clip) else [one]
        given = f"a clip of {len(pictures)} frames" if isinstance(one, Clip) else "a picture"
        if isinstance(one, Clip) != (frames is not None) or len(pictures) != (frames or 1):
            raise UserError(f"sample {k} is {given}, where {wanted} is drawn")
        size = next((p.size for p in pictures if p.size != (width, height)), None)
        if size is not None:
            raise UserError(f"sample {k} has height {size[1]}, width {size[0]}, where height {height}, width {width} is drawn")


def pixels(pipe: Any, one: Any) -> Tensor:
    """A picture as (1, 3, h, w), or a clip as (1, 3, frames, h, w), in [-1, 1]; where and in the dtype in which the VAE computes."""
    pictures = [p.convert("RGB") for p in (one.frames if isinstance(one, Clip) else [one])]
    made = pipe.video_processor.preprocess_video(pictures) if isinstance(one, Clip) else pipe.image_processor.preprocess(pictures)
    return made.to(pipe._execution_device, pipe.vae.dtype)  # the VAE itself may be waiting in main memory


def encoded(vae: Any, x: Tensor, generator: Generator | None = None) -> Tensor:
    """What the VAE makes of pixels x: a draw from its distribution, or without a generator its mode."""
    found = vae.encode(x).latent_dist
    return found.mode() if generator is None else found.sample(generator)


def latents(vae: Any, x: Tensor, generator: Generator | None = None) -> Tensor:
    """`encoded`, normalised by the numbers of the VAE's config; float32."""
    z, config = encoded(vae, x, generator).float(), vae.config
    if "shift_factor" in config:
        return (z - config.shift_factor) * config.scaling_factor
    mean, std = (torch.tensor(config[k], device=z.device).view(-1, *[1] * (z.ndim - 2)) for k in ("latents_mean", "latents_std"))
    return (z - mean) / std
