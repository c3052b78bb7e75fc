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
