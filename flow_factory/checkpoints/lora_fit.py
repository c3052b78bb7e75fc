"""A LoRA of a file as the run's own: one of a lower rank, other scales or fewer layers is the same function in that form."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.checkpoints.lora_file import Lora, some_of


def require_fit(
    key: str, path: str, saved: Lora, rank: int, model: Mapping[str, tuple[int, ...]], chosen: Mapping[str, tuple[int, ...]]
) -> None:
    """That a LoRA is one of the run's own form, or can be brought to it.

    Args:
        rank: of the run's LoRA.
        model: shapes (out, in) of the transformer's linear layers by name; empty: they are not known yet.
        chosen: of those that the run's LoRA is of.

    Raises:
        CheckpointError: what does not fit, and what would.
    """
    layers = {name.partition(".lora_A.")[0]: t.shape[1] for name, t in saved.tensors.items() if ".lora_A." in name}
    outputs = {name.partition(".lora_B.")[0]: len(t) for name, t in saved.tensors.items() if ".lora_B." in name}
    problem = None
    if lone := sorted(layers.keys() ^ outputs.keys()):
        problem = f"{some_of(lone)} lacks one of its two matrices"
    elif saved.ranks[-1:] > [rank]:
        problem = f"it has rank {saved.ranks[-1]}, and this run's LoRA {rank}; write model.lora_rank: {saved.ranks[-1]} or more"
    elif unknown := [name for name in layers if model and name not in model]:
        problem = f"it is of another model, with {some_of(unknown)}"
    elif wrong := [name for name in layers if model and (outputs[name], layers[name]) != model[name]]:
        sizes = f"{layers[wrong[0]]} -> {outputs[wrong[0]]} there, and {model[wrong[0]][1]} -> {model[wrong[0]][0]} here"
        problem = f"it is of another model: {wrong[0]} is {sizes}"
    elif model and (left := [name for name in layers if name not in chosen]):
        problem = f"model.target_modules leaves out layers that it is of: {some_of(left)}; add them"
    if problem is not None:
        raise CheckpointError(f"{key}: {path} does not fit: {problem}")


def as_own(
    saved: Lora, own: Mapping[str, torch.Size], rank: int, alpha: float, start: Mapping[str, Tensor] = MappingProxyType({})
) -> dict[str, Tensor]:
    """float32 weights of the run's LoRA that make it the saved one.

    What it lacks of the rank and of the layers has no effect: its lora_B is 0. To the bit the saved numbers, where the scale is the same.

    Args:
        own: shapes by PEFT's names, as `Lora.tensors` has them.
        rank, alpha: of the run's LoRA.
        start: lora_A of what the saved one lacks, without which nothing would ever be learned there; 0 where there is none.
    """
    weights = {}
    for name, shape in own.items():
        down = ".lora_A." in name
        weights[name] = start[name].detach().float().cpu().clone() if down and name in start else torch.zeros(shape)
        if name in saved.tensors:
            there = saved.tensors[name].float()
            scale = 1.0 if down else saved.scale_of(name.partition(".lora_")[0]) / (alpha / rank)
            weights[name][tuple(map(slice, there.shape))] = there if scale == 1.0 else there * scale
    return weights
