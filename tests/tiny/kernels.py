"""Attention kernels that are wrong in one way each, in the place of torch's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as right


class Changed(torch.autograd.Function):
    """The identity, whose gradient is something else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.change(gradients[0]), None


def _no_backward(gradient: Tensor) -> Tensor:
    raise RuntimeError("no backward here\nof this kernel")


def _changing(change: Callable[[Tensor], Tensor], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return right(*(Changed.apply(x, change) for x in (query, key, value)), *args, **kwargs)


def _off(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return right(query * 1.5, key, value, *args, **kwargs)


def _forward_only(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return right(query, key, value, *args, **kwargs).detach()


WRONG: dict[str, Callable[..., Tensor]] = {
    "forward": _off, "scaled": partial(_changing, lambda g: g * 1.02), "scaled more": partial(_changing, lambda g: g * 1.1),
    "nan": partial(_changing, lambda g: g * torch.nan),
    "forward only": _forward_only, "raises": partial(_changing, _no_backward),
}  # fmt: skip


def named(name: str) -> Callable[..., Tensor]:
    """As a backend of diffusers: with its argument names, and (n, tokens, heads, d)."""

    def attend(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        kwargs = {k: v for k, v in kwargs.items() if k in ("attn_mask", "is_causal", "scale")}
        return WRONG[name](*(x.transpose(1, 2) for x in (query, key, value)), **kwargs).transpose(1, 2)

    return attend
