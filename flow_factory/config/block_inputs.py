"""Arguments of modular pipelines: the inputs of their blocks, which only the blocks themselves say. This imports diffusers."""

import types
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any, Union, get_args, get_origin

from flow_factory.config.modules import SignatureError

Input = tuple[str, str, frozenset[str] | None, Any]
"""Name, annotation, simple types and default of an argument, see `signature.Parameter`."""


def of_blocks(path: str) -> bool:
    """Whether `module:Class` is a modular pipeline of diffusers."""
    return path.startswith("diffusers.modular_pipelines.")


def default_blocks(path: str) -> Any:
    """The blocks that the pipeline `module:Class` has by default.

    Raises:
        SignatureError: it has none.
    """
    module, _, name = path.partition(":")
    pipeline = getattr(import_module(module), name)
    if pipeline.default_blocks_name is None:
        raise SignatureError(f"{name} has no blocks by default")
    return getattr(import_module("diffusers"), pipeline.default_blocks_name)()


@cache
def block_inputs(path: str) -> tuple[Input, ...]:
    """Of the pipeline's `default_blocks`."""
    return tuple(_inputs(default_blocks(path)))


def _inputs(blocks: Any) -> Iterator[Input]:
    for given in (given for given in blocks.inputs if given.name is not None):
        kinds = _kinds(given.type_hint)
        kinds = kinds | {"None"} if kinds is not None and given.default is None else kinds
        # texts alone are drawn through the whole schedule, whatever the default of a picture's strength
        default = 1.0 if given.name == "strength" else given.default
        yield given.name, getattr(given.type_hint, "__name__", str(given.type_hint)), kinds, default


def _kinds(hint: Any) -> frozenset[str] | None:
    if hint in (int, float, bool, str):
        return frozenset({hint.__name__})
    if hint is types.NoneType:
        return frozenset({"None"})
    known = [_kinds(part) for part in get_args(hint)] if get_origin(hint) in (Union, types.UnionType) else [None]
    return None if None in known else frozenset().union(*filter(None, known))
