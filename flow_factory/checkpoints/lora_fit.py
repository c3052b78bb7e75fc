"""A LoRA of a file as the run's own: one of a lower rank, other scales or fewer layers is the same function in that form."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.checkpoints.lora_file import Lora, some_of
from flow_factory.config import ModelConfig
from flow_factory.policy.lora import rank_of, scale_of


@dataclass(frozen=True)
class Form:
    """What the run's LoRA is like."""

    rank: Callable[[str], int]
    """Of a layer."""
    scale: Callable[[str], float]
    """What the product of a layer's matrices is multiplied by."""
    dora: bool = False


def form_of(config: ModelConfig) -> Form:
    return Form(partial(rank_of, config), partial(scale_of, config), config.use_dora)


def require_fit(
    key: str, path: str, saved: Lora, own: Form, model: Mapping[str, tuple[int, ...]], chosen: Mapping[str, tuple[int, ...]]
) -> None:
    """That a LoRA is one of the run's own form, or can be brought to it.

    Args:
        own: the run's LoRA.
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
    elif saved.dora != own.dora:
        there, here = ("DoRA's magnitudes", "has none") if saved.dora else ("no magnitudes", "trains them")
        problem = f"it has {there}, and this run's LoRA {here}; write model.use_dora: {str(saved.dora).lower()}"
    elif over := [name for name in layers if saved.rank(name) > own.rank(name)]:
        rank = max(map(saved.rank, over))
        problem = f"it has rank {rank}, and this run's LoRA {own.rank(over[0])}; write model.lora_rank: {rank} or more"
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
    saved: Lora, own: Mapping[str, torch.Size], scale: Callable[[str], float], start: Mapping[str, Tensor] = MappingProxyType({})
) -> dict[str, Tensor]:
    """float32 weights of the run's LoRA that make it the saved one.

    What it lacks of the rank and of the layers has no effect: its lora_B is 0. To the bit the saved numbers, where the scale is the same.

    Args:
        own: shapes by PEFT's names, as `Lora.tensors` has them.
        scale: of a layer of the run's LoRA.
        start: lora_A of what the saved one lacks, without which nothing would ever be learned there, and magnitudes; 0 where there is
            none.
    """
    weights = {}
    for name, shape in own.items():
        up, layer = ".lora_B." in name, name.partition(".lora_")[0]
        weights[name] = start[name].detach().float().cpu().clone() if not up and name in start else torch.zeros(shape)
        if name in saved.tensors:
            there = saved.tensors[name].float()
            change = saved.scale_of(layer) / scale(layer) if up else 1.0
            weights[name][tuple(map(slice, there.shape))] = there if change == 1.0 else there * change
    return weights
