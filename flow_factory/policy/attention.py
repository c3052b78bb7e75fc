"""The choice of the attention kernel. `attention_proof` verifies its results."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn
from torch import nn

from flow_factory.utils.errors import UserError


def without_cudnn() -> None:
    """Excludes cuDNN from torch's choice of attention kernels, in the whole process.

    Since 2.11 torch prefers cuDNN on Hopper. Its backward gives NaN or an illegal memory access in models like FLUX (pytorch #169849,
    #196678). `model.attn_backend: _native_cudnn` still selects it, because diffusers enables it around each call.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def set_attention(module: Any, backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Chooses diffusers' attention backend.

    Raises:
        UserError: the backend does not work here; the message lists those that do.
    """
    problem = attention_problem(backend, device, dtype)
    if problem is not None:
        works = ", ".join(working_backends(device, dtype))
        raise UserError(f"model.attn_backend: {backend!r} does not work on this {device.type} machine ({problem}). Those that do: {works}")
    module.set_attention_backend(backend)


def working_backends(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The backends that work, of those that need no download."""
    return [b.value for b in AttentionBackendName if "hub" not in b.value and attention_problem(b.value, device, dtype) is None]


def attention_problem(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why a backend cannot train here, found by a small forward and backward; None if it can. A hub kernel is downloaded."""
    if backend not in {b.value for b in AttentionBackendName}:
        return "diffusers knows no such backend"
    q, k, v = (torch.zeros(1, 128, 2, 64, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    try:
        with attention_backend(backend):
            dispatch_attention_fn(q, k, v).sum().backward()
    except (RuntimeError, ValueError, ImportError, TypeError, AttributeError, OSError) as error:  # NotImplementedError is a RuntimeError
        return first_line(error)
    return None


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def using_backend(module: nn.Module, backend: str) -> Iterator[None]:
    """The module uses this attention backend inside the context, and its former one afterwards."""
    processors: list[Any] = [p for m in module.modules() if hasattr(p := getattr(m, "processor", None), "_attention_backend")]
    former = [p._attention_backend for p in processors]
    for p in processors:
        p._attention_backend = AttentionBackendName(backend)
    try:
        with attention_backend(backend):
            yield
    finally:
        for p, before in zip(processors, former, strict=True):
            p._attention_backend = before
