"""Linear layers by the names of the authors' own code, which ComfyUI and kohya's trainers use, for transformers of diffusers."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.checkpoints.original_tables import KNOWN, Names

BLOCK = re.compile(r"([\w.]+?)\.(\d+)\.(.+)", re.ASCII)
"""A layer of a numbered block: list, number, name within the block."""


@dataclass(frozen=True)
class Target:
    """A layer of the original code."""

    name: str
    parts: tuple[str, ...]
    """Layers of diffusers, in the order of their outputs."""
    swapped: bool = False


def names_of(kind: str, format: str) -> Names:
    """Args:
        kind: class of the transformer.
        format: comfyui or kohya.

    Raises:
        CheckpointError: the format does not exist for it.
    """
    readable = [name for name, names in KNOWN.items() if format != "kohya" or names.kohya]
    if kind not in readable:
        raise CheckpointError(
            f"there is no {format} format for LoRAs of {kind}; there is for {', '.join(readable)}; write diffusers or peft"
        )
    return KNOWN[kind]


def targets_of(names: Names, layers: Iterable[str], width: Callable[[str], tuple[int, ...]]) -> list[Target]:
    """The original layers that these are, each once.

    Args:
        layers: of a LoRA, by diffusers' names.
        width: shape (out, in) of a layer.

    Raises:
        CheckpointError: one has no original name.
    """
    found: dict[str, Target] = {}
    for layer in layers:
        name, parts = _original(names, layer)
        out, into = width(layer)
        found[name] = Target(name, parts, layer.endswith(names.swapped or ("\0",)) and out == 2 * into)
    return list(found.values())


def linear_shapes(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Shapes (out, in) of a transformer's linear layers, also of those that have a LoRA, by their names without one."""
    linear = ((name.removesuffix(".base_layer"), m) for name, m in module.named_modules() if isinstance(m, nn.Linear))
    return {name: (m.out_features, m.in_features) for name, m in linear if ".lora_" not in name}


def _original(names: Names, layer: str) -> tuple[str, tuple[str, ...]]:
    if (block := BLOCK.fullmatch(layer)) and block[1] in names.blocks:
        there, rests = names.blocks[block[1]]
        if not there:
            return layer, (layer,)
        for rest, parts in rests.items():
            if block[3] in parts:
                return f"{there}.{block[2]}.{rest}", tuple(f"{block[1]}.{block[2]}.{part}" for part in parts)
    for ours, theirs in names.top.items():
        if layer == ours or layer.startswith(f"{ours}."):
            return theirs + layer[len(ours) :], (layer,)
    raise CheckpointError(f"the layer {layer} has no name in the original code; write diffusers or peft")
