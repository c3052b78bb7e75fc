"""Attention by its formula in higher precision, a few queries at a time: the reference of `attention_proof`."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

TILE = 2**26
"""The number of entries of the attention matrix that are computed at a time."""


def wider(dtype: torch.dtype, rounds: bool) -> torch.dtype:
    """The dtype of sums: float32 as in a kernel with `rounds`, else a wider one than the kernel's."""
    return torch.float64 if dtype == torch.float32 and not rounds else torch.float32


class Formula(torch.autograd.Function):
    """softmax(scale q k^T + mask) v, with sums in the `wider` dtype.

    With `rounds`, factors of products are rounded to the inputs' dtype, as in FlashAttention-2 (arXiv 2307.08691, algorithms 1 and 2),
    and results are rounded twice. The error is then about that of a correct kernel.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, rounds: bool) -> Tensor:
        """Args:
        q: (..., n, d); k: (..., m, d); v: (..., m, e), the leading dimensions alike.
        mask: (..., n or 1, m), boolean, or added to the logits.
        """
        out = v.new_empty(*q.shape[:-1], v.shape[-1])
        with torch.autocast(q.device.type, enabled=False):
            many = [x.to(wider(q.dtype, rounds)) for x in (q, k, v)]
            for rows in _tiles(q, k):
                p = _probabilities(many[0][..., rows, :], many[1], mask, rows, scale)
                out[..., rows, :] = _twice(_rounded(p, q.dtype, rounds) @ many[2], q.dtype, rounds).to(out.dtype)
        ctx.save_for_backward(q, k, v, mask, out)
        ctx.scale, ctx.rounds = scale, rounds
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, out = ctx.saved_tensors
        dtype, round_off = wider(q.dtype, ctx.rounds), partial(_rounded, dtype=q.dtype, rounds=ctx.rounds)
        with torch.autocast(q.device.type, enabled=False):
            wide_q, wide_k, wide_v, g = (x.to(dtype) for x in (q, k, v, gradients[0]))
            dq, dk, dv = torch.empty_like(wide_q), torch.zeros_like(wide_k), torch.zeros_like(wide_v)
            for rows in _tiles(q, k):
                p = _probabilities(wide_q[..., rows, :], wide_k, mask, rows, ctx.scale)
                dp, part = g[..., rows, :] @ wide_v.mT, g[..., rows, :]
                mean = (part * out[..., rows, :].to(dtype) if ctx.rounds else p * dp).sum(-1, keepdim=True)
                ds = round_off(p * (dp - mean))
                dq[..., rows, :] = ds @ wide_k * ctx.scale
                dk += ds.mT @ wide_q[..., rows, :] * ctx.scale
                dv += round_off(p).mT @ part
        dq, dk, dv = (_twice(x, q.dtype, ctx.rounds).to(q.dtype) for x in (dq, dk, dv))
        return dq, dk, dv, None, None, None


def _tiles(q: Tensor, k: Tensor) -> Iterator[slice]:
    size = max(1, TILE // max(1, q[..., 0, 0].numel() * k.shape[-2]))
    return (slice(start, start + size) for start in range(0, q.shape[-2], size))


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, rows: slice, scale: float) -> Tensor:
    logits = q @ k.mT * scale
    if mask is not None:
        here = mask if mask.shape[-2] == 1 else mask[..., rows, :]
        logits = logits.masked_fill(~here, -torch.inf) if here.dtype == torch.bool else logits + here
    return logits.softmax(-1).nan_to_num(0.0) if mask is not None else logits.softmax(-1)  # 0 for a query that is masked completely


def _rounded(x: Tensor, dtype: torch.dtype, rounds: bool) -> Tensor:
    return x.to(dtype).to(x.dtype) if rounds else x


def _twice(x: Tensor, dtype: torch.dtype, rounds: bool) -> Tensor:
    """Rounded on another grid, so that the next rounding adds an error of the same size."""
    return _rounded(x / 1.5, dtype, rounds) * 1.5 if rounds else x


def formula(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False, *, rounds: bool = False,
) -> Tensor:  # fmt: skip
    """A replacement of `torch.nn.functional.scaled_dot_product_attention`. It ignores `dropout_p`: nothing here trains with dropout."""
    if torch.is_autocast_enabled(query.device.type):  # autocast would cast the inputs of the original function
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    return Formula.apply(query, key, value, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale, rounds)
