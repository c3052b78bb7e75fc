"""From the latents that a pipeline steps to the state that is trained on, and back."""

import torch
from torch import Tensor


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """x in the memory layout in which the pipeline made its latents: kernels round by layout, in the replay as in the rollout."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)


def part_of(x: Tensor, mask: Tensor | None) -> Tensor:
    """The drawn dimensions of latents: all, or (n, D) of those that a mask chooses."""
    return x if mask is None else x[:, mask]


def filled(part: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    """The latents x with the drawn dimensions replaced, in their own memory layout."""
    if mask is None:
        return laid_out(part.reshape(x.shape), x)
    whole = x.clone()
    whole[:, mask] = part.to(x.dtype)
    return whole


def joint(a: Tensor, b: Tensor) -> Tensor:
    """(n, ...) and (n, ...) as one (n, D): the state of a pipeline of two modalities."""
    return torch.cat([a.flatten(1), b.flatten(1)], dim=1)
