"""Validation of device names."""

import torch

from flow_factory.utils.errors import UserError


def require_device(key: str, name: str) -> None:
    """Raises:
    UserError: this machine has no such device.
    """
    kind, _, number = name.partition(":")
    if kind in ("auto", "cpu"):
        return
    module = getattr(torch, kind, None)
    many = module.device_count() if module is not None and module.is_available() else 0
    if int(number or 0) >= many:
        has = f"{many} of that kind, from {kind}:0" if many else f"no {kind} device"
        raise UserError(f"{key}: {name}: this machine has {has}; write auto or cpu")


def require_defaults() -> None:
    """Asks for the defaults of torch that training needs, which a notebook may have changed.

    Raises:
        UserError: gradients are switched off, or new tensors are not float32 on the CPU.
    """
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise UserError("torch computes no gradients here; train outside of no_grad and inference_mode, with torch.set_grad_enabled(True)")
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    if dtype != torch.float32 or device.type != "cpu":
        right = "torch.set_default_dtype(torch.float32) and torch.set_default_device(None)"
        raise UserError(f"torch's new tensors are {dtype} on {device} by default; train after {right}")
