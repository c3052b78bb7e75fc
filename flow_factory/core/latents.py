"""Conversion between a pipeline's latents and the state that is trained on."""

import inspect
from typing import Any

import torch
from torch import Tensor


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """x in the memory layout of the pipeline's latents. Kernels round differently by layout, so the replay must have the rollout's."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)


def part_of(x: Tensor, drawn: Tensor | None) -> Tensor:
    """The drawn dimensions of latents: all of them, or (n, D), those at `positions`.

    Indices, not a mask: with a mask on a GPU the host would have to wait for its count.
    """
    return x if drawn is None else x.flatten(1).index_select(1, drawn)


def filled(part: Tensor, x: Tensor, drawn: Tensor | None) -> Tensor:
    """The latents x with the drawn dimensions replaced, in their own memory layout."""
    whole = part if drawn is None else x.flatten(1).index_copy(1, drawn, part.to(x.dtype))
    return laid_out(whole.reshape(x.shape), x)


def joint(a: Tensor, b: Tensor) -> Tensor:
    """(n, ...) and (n, ...) concatenated to (n, D): the state of a pipeline with two modalities."""
    return torch.cat([a.flatten(1), b.flatten(1)], dim=1)


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are views of one storage, without a look at their values."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def before_packing(pipe: Any, x: Tensor, like: Tensor) -> Tensor:
    """A state of tokens (n, h/2 w/2, 4 c) as the latents (n, c, h, w) that the pipeline packs into them; else x itself.

    Args:
        like: latents that the pipeline has not packed yet.
    """
    unpack = getattr(pipe, "_unpack_latents", None)
    if unpack is None or x.shape == like.shape or x.numel() != like.numel():
        return x
    if [*inspect.signature(unpack).parameters] != ["latents", "height", "width", "vae_scale_factor"]:
        return x
    return unpack(x, *like.shape[-2:], 1)
