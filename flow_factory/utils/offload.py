"""Memory savings: weights stored in fewer bits, and tensors and components that are kept in main memory."""

from typing import Any

import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import UserCpuOffloadHook
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

FLOAT8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
"""`model.layerwise_casting` -> the dtype that weights are stored in."""


def store_in_8_bits(transformer: Any, kind: str, dtype: torch.dtype) -> None:
    """The weights of a frozen diffusers transformer but its norms and embeddings; each layer computes in `dtype`.

    A LoRA must be there before: it is left as it is, and could not compute in 8 bits.
    """
    transformer.enable_layerwise_casting(FLOAT8[kind], dtype)


def offload_with_hook(part: nn.Module, device: torch.device) -> UserCpuOffloadHook:
    """Moves a part of a pipeline to main memory. It comes to the device when it is called, and stays until the hook's `offload()`.

    The pipeline takes the hook's device for its own, wherever the part is.
    """
    return cpu_offload_with_hook(part, device)[1]


def empty_device_cache(device: torch.device) -> None:
    """Gives back to the card what torch's allocator keeps of tensors that are gone: between phases whose tensors have other sizes.

    Within a phase it is kept, for taking it anew costs time. On a CPU there is nothing to do.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()


def to_cpu(tensors: Any) -> Any:
    """The same structure with its tensors in main memory, in the same memory layout; pinned if they were on a GPU: the way back is short.

    It waits for each copy, since nothing else would before the values are read. `learner.to_device` need not wait on the way back: kernels
    that read the values come behind the copy in the stream, and torch does not reuse pinned memory that is still being copied.
    """
    return tree_map_only(Tensor, _parked, tensors)


def _parked(x: Tensor) -> Tensor:
    return torch.empty_like(x, device="cpu", pin_memory=True).copy_(x) if x.is_cuda else x.cpu()


def to_device(tensors: Any, device: torch.device | str) -> Any:
    """The same structure with its tensors on the device."""
    return tree_map_only(Tensor, lambda x: x.to(device, non_blocking=x.is_pinned()), tensors)  # see `to_cpu`
