"""The dtypes of a model's weights after diffusers has loaded it."""

from typing import Any

import torch
from torch import nn


def stays_precise(module: Any, name: str) -> bool:
    """Whether diffusers keeps this part of a model in float32, whatever the pipeline's dtype."""
    return not {*(getattr(module, "_keep_in_fp32_modules", None) or ())}.isdisjoint(name.split("."))


def dtype_of(module: nn.Module, name: str, precision: torch.dtype) -> torch.dtype:
    """The dtype of a weight or buffer in a stock pipeline."""
    return torch.float32 if stays_precise(module, name) else precision
