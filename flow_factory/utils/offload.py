"""Memory savings: weights stored in fewer bits, and tensors and components in main memory."""

from typing import Any

import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import UserCpuOffloadHook
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

FLOAT8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
"""`model.layerwise_casting` -> the storage dtype of weights."""


def store_in_8_bits(transformer: Any, kind: str, dtype: torch.dtype) -> None:
    """Stores the weights of a frozen diffusers transformer, except norms and embeddings, in 8 bits. Each layer computes in `dtype`.

    LoRAs must be added before: they keep their dtype, because they cannot compute in 8 bits.
    """
    transformer.enable_layerwise_casting(FLOAT8[kind], dtype)


def offload_with_hook(part: nn.Module, device: torch.device) -> UserCpuOffloadHook:
    """Moves a part of a pipeline to main memory. It moves to the device when it is called, and stays until the hook's `offload()`.

    The pipeline uses the hook's device as its own, wherever the part is.
    """
    return cpu_offload_with_hook(part, device)[1]


def empty_device_cache(device: torch.device) -> None:
    """Frees the unused memory that torch's allocator holds, between phases whose tensors have other sizes.

    Within a phase it is kept, because allocating it again takes time. On a CPU this does nothing.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()


def to_cpu(tensors: Any) -> Any:
    """The same structure with its tensors in main memory, in the same memory layout. Tensors from a GPU are pinned, for a fast way back.

    It waits for each copy, because reading the values does not. `to_device` need not wait: kernels that read the values are behind the copy
    in the stream, and torch does not reuse pinned memory during a copy.
    """
    return tree_map_only(Tensor, _cpu_copy, tensors)


def _cpu_copy(x: Tensor) -> Tensor:
    return torch.empty_like(x, device="cpu", pin_memory=True).copy_(x) if x.is_cuda else x.cpu()


def to_device(tensors: Any, device: torch.device | str) -> Any:
    """The same structure with its tensors on the device."""
    return tree_map_only(Tensor, lambda x: x.to(device, non_blocking=x.is_pinned()), tensors)  # see `to_cpu`
