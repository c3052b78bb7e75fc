"""Names of LoRA files from other trainers, brought to those that diffusers has for the layers of a transformer."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.checkpoints.lora_file import Lora, some_of
from flow_factory.checkpoints.original_names import Target, linear_shapes, targets_of
from flow_factory.checkpoints.original_tables import KNOWN

DOTTED = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
"""Prefixes of names whose dots are underscores."""


def by_module_names(file: str, lora: Lora, module: Any) -> Lora:
    """The same LoRA by the names of the transformer's layers: those of diffusers, PEFT, ComfyUI, kohya's trainers or the original code.

    A layer that is several here is split. What has no effect, such as the share of a layer that was not trained, is left out.

    Raises:
        CheckpointError: it has a layer that the transformer has not.
    """
    shapes = linear_shapes(module)
    if all(layer in shapes for layer in lora.layers):
        return lora
    if lora.dora:
        raise CheckpointError(f"{file} is a DoRA whose layers have other names than {type(module).__name__}'s; merge it into the model")
    targets, unknown = _spellings(module, shapes), []
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for layer in lora.layers:
        target = targets.get(_bare(layer))
        down, up = (lora.tensors.get(f"{layer}.lora_{way}.weight") for way in "AB")
        if target is None or down is None or up is None:
            unknown.append(layer)
            continue
        for part, (a, b) in _split(file, target, down, up, shapes).items():
            if b.any():
                tensors |= {f"{part}.lora_A.weight": a, f"{part}.lora_B.weight": b}
                alphas[part] = lora.scale_of(layer) * len(a)
    if unknown:
        text = f"it is of another model than {type(module).__name__}, with {some_of(unknown)}"
        raise CheckpointError(f"{file} does not fit: {text}; the layers of text encoders cannot be trained here")
    return replace(lora, tensors=tensors, alpha=None, alphas=alphas, rslora=False)


def _spellings(module: Any, shapes: dict[str, tuple[int, int]]) -> dict[str, Target]:
    """The layers by each name that a file may have for them, without its prefix."""
    found: dict[str, Target] = {}
    names = KNOWN.get(type(module).__name__)
    if names is not None:
        for layer in shapes:
            try:
                (target,) = targets_of(names, [layer], shapes.__getitem__)
            except CheckpointError:
                continue  # a layer that no other program trains
            found |= {target.name: target, target.name.replace(".", "_"): target}
    for layer in shapes:
        found |= {layer: Target(layer, (layer,)), layer.replace(".", "_"): Target(layer, (layer,))}
    return found


def _bare(layer: str) -> str:
    for prefix in (*DOTTED, *FLAT):
        layer = layer.removeprefix(prefix)
    return layer


def _split(file: str, target: Target, down: Tensor, up: Tensor, shapes: dict[str, tuple[int, int]]) -> dict[str, tuple[Tensor, Tensor]]:
    """The matrices (rank, in) and (out, rank) of each part; of a lower rank where each part has ranks of its own."""
    if target.swapped:
        up = torch.cat(up.chunk(2)[::-1])
    sizes = [shapes[part][0] for part in target.parts]
    if len(up) != sum(sizes):
        raise CheckpointError(f"{file} does not fit: {target.name} has {len(up)} outputs there, and {sum(sizes)} here")
    many, ups = len(target.parts), up.split(sizes)
    if len(down) % many or many == 1:
        return {part: (down, b.contiguous()) for part, b in zip(target.parts, ups, strict=True)}
    blocks = [b.chunk(many, 1) for b in ups]
    if any(blocks[k][other].any() for k in range(many) for other in range(many) if other != k):
        return {part: (down, b.contiguous()) for part, b in zip(target.parts, ups, strict=True)}
    downs = down.chunk(many)
    return {part: (downs[k].contiguous(), blocks[k][k].contiguous()) for k, part in enumerate(target.parts)}
