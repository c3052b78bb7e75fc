"""How what a pipeline returns for a prompt grows with the number of prompts: found from its answers to one and to several."""

from typing import Any

import torch
from torch import Tensor

Growth = Any
"""None: it is the same for any number; d, an int: the dimension along which a tensor has one entry a prompt; "each": a list with one entry
a prompt; "ends": a tensor of cumulative lengths; a list or a dict: that of each entry of a list, tuple or dict."""


def growth_of(one: Any, many: Any, n: int) -> Growth:
    """
    Args:
        one: the answer to one prompt.
        many: the answer to the same prompt n times, n at least 2.

    Raises:
        ValueError: it grows in another way.
    """
    if isinstance(one, Tensor):
        return _of_tensor(one, many, n)
    if type(one) is not type(many):
        raise ValueError(f"a {type(one).__name__} becomes a {type(many).__name__}")
    if isinstance(one, dict) and one.keys() == many.keys():
        return {k: growth_of(v, many[k], n) for k, v in one.items()}
    if isinstance(one, list | tuple):
        if len(many) == len(one):
            return [growth_of(a, b, n) for a, b in zip(one, many, strict=True)]
        if len(many) == n * len(one):
            return "each"
        raise ValueError(f"a list of {len(one)} becomes one of {len(many)}")
    return None


def _of_tensor(one: Tensor, many: Any, n: int) -> int | str | None:
    if not isinstance(many, Tensor) or one.ndim != many.ndim:
        raise ValueError(f"a tensor of {one.ndim} dimensions becomes something else")
    grown = [d for d, (a, b) in enumerate(zip(one.shape, many.shape, strict=True)) if a != b]
    if not grown:
        return None
    if len(grown) == 1 and many.shape[grown[0]] == n * one.shape[grown[0]]:
        return grown[0]
    if one.ndim == 1 and len(one) == 2 and torch.equal(many, _ends(one, n)):
        return "ends"
    raise ValueError(f"a tensor {tuple(one.shape)} becomes {tuple(many.shape)}")


def _ends(one: Tensor, n: int) -> Tensor:
    """Cumulative lengths [0, l, 2 l, ...] of n prompts, of those of one."""
    return torch.arange(n + 1, dtype=one.dtype, device=one.device) * one[1]


def grown(one: Any, growth: Growth, n: int) -> Any:
    """What the pipeline would return for n times the prompt."""
    if growth is None:
        return one
    if growth == "each":
        return type(one)(entry for entry in one for _ in range(n))
    if growth == "ends":
        return _ends(one, n)
    if isinstance(growth, int):
        return one.repeat_interleave(n, growth)
    if isinstance(growth, dict):
        return {k: grown(v, growth[k], n) for k, v in one.items()}
    return type(one)(grown(a, b, n) for a, b in zip(one, growth, strict=True))
