"""Helpers that adapters share."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from flow_factory.utils.errors import UserError

TUPLES = ("components", "encoders", "lora_targets", "dead_ends", "encodes_by", "memoised", "also_loads")


def import_pipeline(path: str) -> type[DiffusionPipeline]:
    """The class behind `module:Class`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def check_words(adapter: Any, pipe: Any) -> None:
    """Raises:
    UserError: a text where a tuple is meant, which Python reads as its letters; an encoder that the pipeline does not have.
    """
    name = type(adapter).__name__
    for what in TUPLES:
        if isinstance(word := getattr(adapter, what), str):
            raise UserError(f"{name}.{what} is a text; write a tuple: ({word!r},)")
    for part in adapter.encoders:
        if not hasattr(pipe, part):
            raise UserError(f"{name}.encoders: {type(pipe).__name__} has no {part!r}; its parts are {', '.join(pipe.components)}")


def check_sizes(pipeline: str, call: Mapping[str, Any], step: int, frame_step: int) -> None:
    """Raises:
    UserError: height or width are no multiples of `step`, or the number of frames, less 1, none of `frame_step`.
    """
    height, width = call["height"], call["width"]
    if height % step or width % step:
        near = [max(step, step * round(n / step)) for n in (height, width)]
        raise UserError(
            f"height {height}, width {width}: {pipeline} makes multiples of {step} pixels; the nearest size is {near[0]} x {near[1]}"
        )
    frames, by = call.get("num_frames"), frame_step
    if by and frames is not None and (frames - 1) % by:
        below = max(0, frames - 1) // by * by + 1
        raise UserError(f"num_frames {frames}: {pipeline} makes a multiple of {by}, plus 1; write {below} or {below + by}")


def fitted(picture: Image.Image, size: int | Sequence[int] | None) -> Image.Image:
    """The picture, reduced if its area exceeds that of `size` (a side, or height and width); the aspect is kept."""
    sides = fitted_size(picture.width, picture.height, size)
    return picture if sides == picture.size else picture.resize(sides, Image.Resampling.LANCZOS)


def fitted_size(width: int, height: int, size: int | Sequence[int] | None) -> tuple[int, int]:
    """Width and height of a picture after `fitted`."""
    scale = 1.0 if size is None else (area_of(size) / (width * height)) ** 0.5
    return (width, height) if scale >= 1 else (max(1, round(width * scale)), max(1, round(height * scale)))


def too_small(sides: tuple[int, int], width: int, height: int) -> str:
    """For messages: how large a picture is where it is used."""
    return "too small" if sides == (width, height) else f"too small once condition_image_size has made it {sides[0]} x {sides[1]}"


def area_of(size: int | Sequence[int]) -> int:
    """Pixels of a side, or of height and width."""
    return size * size if isinstance(size, int) else size[0] * size[1]


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


def call_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Has a model name a dtype as its own, in which it computes, whatever its weights are stored in."""
    model.__class__ = namesake(type(model), {"dtype": dtype})


def namesake(cls: type[nn.Module], members: dict[str, Any]) -> type[nn.Module]:
    """A class of the same name that differs in these members: what is told by its name stays true."""
    return type(cls.__name__, (cls,), members | {"__module__": cls.__module__, "__doc__": cls.__doc__})
