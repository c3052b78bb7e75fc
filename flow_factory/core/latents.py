"""From the latents that a pipeline steps to the state that is trained on, and back."""

import torch
from torch import Tensor


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """x in the memory layout in which the pipeline made its latents: kernels round by layout, in the replay as in the rollout."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)


def part_of(x: Tensor, drawn: Tensor | None) -> Tensor:
    """The drawn dimensions of latents: all, or (n, D) of those at these positions.

    By number and not by a mask, for which the host would wait: it does not know how many a mask on a GPU has.
    """
    return x if drawn is None else x.flatten(1).index_select(1, drawn)


def filled(part: Tensor, x: Tensor, drawn: Tensor | None) -> Tensor:
    """The latents x with the drawn dimensions replaced, in their own memory layout."""
    whole = part if drawn is None else x.flatten(1).index_copy(1, drawn, part.to(x.dtype))
    return laid_out(whole.reshape(x.shape), x)


def joint(a: Tensor, b: Tensor) -> Tensor:
    """(n, ...) and (n, ...) as one (n, D): the state of a pipeline of two modalities."""
    return torch.cat([a.flatten(1), b.flatten(1)], dim=1)
