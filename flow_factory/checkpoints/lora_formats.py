"""A trained LoRA in the formats of other programs: diffusers, PEFT, ComfyUI and kohya's trainers."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft import LoraConfig
from torch import Tensor, nn

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.checkpoints.lora_file import LORA_FILE, MAGNITUDE, Lora, diffusers_header, write_peft
from flow_factory.checkpoints.original_names import Target, linear_shapes, names_of, targets_of
from flow_factory.utils.tensor_file import write_tensors

Format = Literal["diffusers", "peft", "comfyui", "kohya"]
FORMATS: tuple[Format, ...] = get_args(Format)
ORIGINAL = ("comfyui", "kohya")
"""Formats with the layers of the original code, in one file for each transformer."""
SUFFIX = ".safetensors"
EXPERTS = {"transformer": "high_noise", "transformer_2": "low_noise"}
"""What files of Wan's two transformers are called."""
Width = Callable[[str], tuple[int, ...]]
"""Shape (out, in) of a linear layer."""


@dataclass(frozen=True)
class Update:
    """What a LoRA adds to a layer's weight: `scale * up @ down`."""

    down: Tensor
    """(rank, in)"""
    up: Tensor
    """(out, rank)"""
    scale: float


def updates_of(lora: Lora, magnitudes: bool = False) -> dict[str, Update]:
    """Of each layer.

    Args:
        magnitudes: whether the caller takes those of a DoRA into account.

    Raises:
        CheckpointError: a layer has one matrix only, or more than two.
    """
    downs = {name.removesuffix(".lora_A.weight"): t for name, t in lora.tensors.items() if name.endswith(".lora_A.weight")}
    ups = {name.removesuffix(".lora_B.weight"): t for name, t in lora.tensors.items() if name.endswith(".lora_B.weight")}
    others = {name for name in lora.tensors if not (magnitudes and name.endswith(MAGNITUDE))}
    if downs.keys() != ups.keys() or len(downs) + len(ups) != len(others):
        what = (
            "a DoRA, which files of ComfyUI and kohya's trainers do not carry as it was trained"
            if lora.dora
            else "no plain LoRA: a layer has not two matrices"
        )
        raise CheckpointError(f"the LoRA is {what}; write diffusers, peft or merged")
    return {layer: Update(down, ups[layer], lora.scale_of(layer)) for layer, down in downs.items()}


def widths(module: nn.Module) -> Width:
    """Shapes of a transformer's linear layers, also of those that have a LoRA.

    Raises:
        CheckpointError: from what is returned: there is no such layer.
    """
    linear = linear_shapes(module)

    def width(layer: str) -> tuple[int, ...]:
        if layer not in linear:
            raise CheckpointError(f"the LoRA was trained on another model than {type(module).__name__}, which has no layer {layer}")
        return linear[layer]

    return width


def write_lora(
    place: Path, lora: Lora, format: Format, component: str, kind: str, width: Width, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes one transformer's LoRA, with what other programs read of it.

    Args:
        place: a folder for peft, a file for the others; see `place_of`.
        component: the transformer's name in the pipeline.
        kind: its class.
        width: shapes of its layers.
        metadata: texts for the file's header.

    Raises:
        CheckpointError: the format does not exist for this transformer, or has no name for a layer.
    """
    known = dict(metadata or {}) | {"format": "pt"}
    place.parent.mkdir(parents=True, exist_ok=True)
    if format in ORIGINAL:
        tensors, more = original(lora, format, kind, width)
        write_tensors(place, tensors, known | more)
        return
    config = adapter_config(lora)
    if format == "peft":
        place.mkdir(exist_ok=True)
        write_peft(place, lora.tensors, config, known)
        return
    write_tensors(place, {f"transformer.{name}": t for name, t in lora.tensors.items()}, diffusers_header(config, known))


def place_of(out: Path, format: Format, component: str, several: bool, name: str) -> Path:
    """Where one transformer's LoRA is written.

    Args:
        out: a folder, or a file that ends in .safetensors.
        several: whether other transformers have one too.
        name: of a file in a folder, for ComfyUI and kohya's trainers, which list files by their names.
    """
    if format not in ORIGINAL and out.suffix != SUFFIX:
        folder = out if component == "transformer" else out / component
        return folder if format == "peft" else folder / LORA_FILE
    file = out if out.suffix == SUFFIX else out / f"{name}{SUFFIX}"
    return file_of(file, component, several)


def file_of(file: Path, component: str, several: bool) -> Path:
    """One for each transformer, where there are several."""
    return file.with_stem(f"{file.stem}_{EXPERTS.get(component, component)}") if several else file


def adapter_config(lora: Lora) -> LoraConfig:
    """PEFT's config of a LoRA."""
    ranks = {layer: lora.rank(layer) for layer in lora.layers}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    scales = {layer: lora.scale_of(layer) * ranks[layer] for layer in lora.layers}
    alpha: Any = Counter(scales.values()).most_common(1)[0][0]
    return LoraConfig(
        r=rank, lora_alpha=int(alpha) if alpha == int(alpha) else alpha, target_modules=lora.layers, use_dora=lora.dora,
        rank_pattern={f"^{re.escape(layer)}": r for layer, r in ranks.items() if r != rank},
        alpha_pattern={f"^{re.escape(layer)}": a for layer, a in scales.items() if a != alpha},
    )  # fmt: skip


def in_dtype(lora: Lora, dtype: torch.dtype | None, scale: float = 1.0) -> Lora:
    """The LoRA times `scale`, in another dtype; None keeps each tensor's."""
    tensors = {}
    for name, t in lora.tensors.items():
        scaled = t.float() * scale if scale != 1.0 and ".lora_B." in name else t
        tensors[name] = scaled.to(dtype or t.dtype).contiguous()
    return replace(lora, tensors=tensors)


def original(lora: Lora, format: str, kind: str, width: Width) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a file for ComfyUI or kohya's trainers.

    Raises:
        CheckpointError: see `write_lora`.
    """
    names, updates = names_of(kind, format), updates_of(lora)
    kohya = format == "kohya"
    down, up = ("lora_down", "lora_up") if kohya or names.down_up else ("lora_A", "lora_B")
    alphas, tensors = kohya or names.alphas, {}
    for target in targets_of(names, updates, width):
        name = "lora_unet_" + target.name.replace(".", "_") if kohya else f"diffusion_model.{target.name}"
        update = _fused(target, updates, width)
        if not alphas:
            update = _unscaled(update)
        tensors[f"{name}.{down}.weight"] = update.down.contiguous()
        tensors[f"{name}.{up}.weight"] = update.up.contiguous()
        if alphas:
            tensors[f"{name}.alpha"] = torch.tensor(update.scale * len(update.down), dtype=torch.float32)
    ranks = Counter(len(u.down) for u in updates.values())
    alpha = Counter(u.scale * len(u.down) for u in updates.values()).most_common(1)[0][0]
    return tensors, {"ss_network_dim": str(max(ranks)), "ss_network_alpha": f"{alpha:g}"} if kohya else {}


def _fused(target: Target, updates: Mapping[str, Update], width: Width) -> Update:
    """The update of a layer that is several of diffusers' one after the other: its matrices have theirs on the diagonal."""
    there = [updates.get(part) for part in target.parts]
    known = [u for u in there if u is not None]
    if len({u.scale for u in known}) > 1:
        there = [u and _unscaled(u) for u in there]
    rank = max(len(u.down) for u in known)
    into, like = known[0].down.shape[1], known[0].down
    downs, ups = [], []
    for part, update in zip(target.parts, there, strict=True):
        down, up = like.new_zeros(rank, into), like.new_zeros(width(part)[0], rank)
        if update is not None:
            down[: len(update.down)] = update.down
            up[:, : len(update.down)] = update.up
        downs.append(down)
        ups.append(up)
    fused = torch.block_diag(*ups)
    if target.swapped:
        fused = torch.cat(fused.chunk(2)[::-1])
    return Update(torch.cat(downs), fused, next(u.scale for u in there if u is not None))


def _unscaled(update: Update) -> Update:
    """The same with scale 1; to the bit where the scale is a power of two."""
    return Update(update.down, (update.up.float() * update.scale).to(update.up.dtype), 1.0)
