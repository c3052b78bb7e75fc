"""What adapters share that needs none of them."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor


def import_pipeline(path: str) -> type[DiffusionPipeline]:
    """The class behind `module:Class`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def fitted(picture: Image.Image, size: int | Sequence[int] | None) -> Image.Image:
    """The picture, reduced if its area exceeds that of `size` (a side, or height and width); the aspect is kept."""
    if size is None:
        return picture
    area = size * size if isinstance(size, int) else size[0] * size[1]
    scale = (area / (picture.width * picture.height)) ** 0.5
    if scale >= 1:
        return picture
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS)


def times(value: Any, n: int) -> Any:
    if isinstance(value, Tensor):
        return value.repeat_interleave(n, 0)
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return value * n
    return value


def chain(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    if isinstance(values[0], list) and values[0] and isinstance(values[0][0], Tensor):
        return [x for v in values for x in v]
    return values[0]
