"""Frozen linear layers that compute in 8 bits, forward and in rollouts; `model.quantization: torchao_..._dynamic`.

Weights have a scale a row, activations one a token, found as they come: torchao's dynamic scheme. Its own tensors have no backward, so
the layer is ours: forward an 8-bit product, backward the gradient in 16 bits with the weight as it is rounded. A token's answer depends
on that token alone, so a replay sees what the rollout saw.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

DYNAMIC = {"torchao_int8_dynamic": torch.int8, "torchao_float8_dynamic": torch.float8_e4m3fn}
"""`model.quantization` -> the dtype of what is multiplied."""
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
SPARED = ("norm", "embed", "mod", "ada", "time")
"""Parts of names: layers that see one vector a sample, or that a small error moves much."""
MULTIPLE = 16
"""Of which both sizes of a layer must be multiples, for the kernels of GPUs."""
ROWS = 17
"""The fewest rows that torch's product of integers takes on a GPU."""


def layers_in_8_bits(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of a transformer's blocks but for `SPARED`; embeddings and the last projection are in no block."""
    for blocks, many in module.named_children():
        for name, layer in many.named_modules(prefix=blocks) if isinstance(many, nn.ModuleList) else ():
            even = isinstance(layer, nn.Linear) and not (layer.in_features % MULTIPLE or layer.out_features % MULTIPLE)
            if even and not any(part in name.lower() for part in SPARED):
                yield name, layer


def compute_in_8_bits(module: nn.Module, kind: str, device: torch.device) -> None:
    """Rounds the frozen layers of a transformer, one at a time on the device. A LoRA is to be added afterwards.

    Args:
        kind: of `DYNAMIC`.
    """
    for _, layer in layers_in_8_bits(module):
        values, scale = rounded_rows(layer.weight.detach().to(device), DYNAMIC[kind])
        home = layer.weight.device
        layer.weight = nn.Parameter(values.view(torch.int8).to(home), requires_grad=False)  # bytes: no cast of a module touches them
        layer.scale = nn.Parameter(scale.to(home), requires_grad=False)
        layer.__class__ = EIGHT_BITS[DYNAMIC[kind]]


def rounded_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(values in `dtype`, a float32 scale for each row), whose product is nearly x (..., n)."""
    wide = x.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST[dtype]
    values = wide / scale
    return (values.round() if dtype == torch.int8 else values).clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype), scale


class Product(torch.autograd.Function):
    """x w^T in 8 bits; the gradient in x is in x's dtype, and there is none in w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        """Args:
        x: (..., in); weight: (out, in), in 8 bits; scale: (out, 1).
        """
        ctx.save_for_backward(weight, scale)
        values, own = rounded_rows(x.reshape(-1, x.shape[-1]), weight.dtype)
        return multiplied(values, own, weight, scale, x.dtype).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        (g,) = gradients
        return (g * scale.T).to(g.dtype) @ weight.to(g.dtype), None, None  # 16 bits hold all values of 8


def multiplied(x: Tensor, own: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, in) and (out, in) in 8 bits, with their rows' scales -> (n, out)."""
    if x.dtype != torch.int8:
        return torch._scaled_mm(x, weight.t(), own, scale.T.contiguous(), out_dtype=torch.bfloat16).to(dtype)
    if not x.is_cuda:  # there torch's product of integers is wrong where the CPU has no instruction for it (AVX2): its sums are cut off
        return (x.float() @ weight.float().t() * own * scale.T).to(dtype)
    n = len(x)
    padded = nn.functional.pad(x, (0, 0, 0, ROWS - n)) if n < ROWS else x
    return (torch._int_mm(padded, weight.t())[:n] * own * scale.T).to(dtype)


class EightBits(nn.Linear):
    """Its weight is kept as bytes of `kept`."""

    kept: torch.dtype
    scale: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = Product.apply(x, self.weight.view(self.kept), self.scale)
        return out if self.bias is None else out + self.bias


class Int8(EightBits):
    kept = torch.int8


class Float8(EightBits):
    kept = torch.float8_e4m3fn


EIGHT_BITS: dict[torch.dtype, type[EightBits]] = {kind.kept: kind for kind in (Int8, Float8)}
