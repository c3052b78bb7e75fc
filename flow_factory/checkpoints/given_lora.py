"""A LoRA of a file as a copy of the run's own: one of a lower rank, another scale or fewer layers is the same function in that form."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from flow_factory.checkpoints.checkpoint import CheckpointError, newest
from flow_factory.checkpoints.lora_file import Lora
from flow_factory.checkpoints.model_files import lora_at, lora_of_component
from flow_factory.data.fingerprints import file_sha256
from flow_factory.utils.errors import file_errors

READABLE = "name a safetensors file of a LoRA, its folder, or a run's folder"
MANY = 3
"""Layers that a message names."""


def given_file(key: str, path: str, component: str) -> Path:
    """Where a transformer's LoRA is.

    Raises:
        CheckpointError: there is none; the message begins with the config key.
    """
    with file_errors(key, path, READABLE, CheckpointError):
        place = newest(Path(path))
        if not place.exists():
            raise CheckpointError(f"{key}: {path} is no folder or file; {READABLE}")
        try:
            return lora_of_component(place, component)
        except CheckpointError as error:
            raise CheckpointError(f"{key}: {error}; {READABLE}") from error


def read_given(key: str, path: str, component: str) -> Lora:
    """A transformer's LoRA.

    Raises:
        CheckpointError: there is none, it is damaged, or of another kind.
    """
    file = given_file(key, path, component)
    try:
        return lora_at(file, component)[1]
    except CheckpointError as error:
        raise CheckpointError(f"{key}: {error}") from error


def given_digest(key: str, path: str, component: str) -> str:
    """sha256 of a transformer's file."""
    return file_sha256(str(given_file(key, path, component)))


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
        problem = f"{_named(lone)} lacks one of its two matrices"
    elif len(saved.ranks) != 1:
        problem = f"its layers have the ranks {saved.ranks}, and one is wanted"
    elif saved.ranks[0] > rank:
        problem = f"it has rank {saved.ranks[0]}, and this run's LoRA {rank}; write model.lora_rank: {saved.ranks[0]} or more"
    elif unknown := [name for name in layers if model and name not in model]:
        problem = f"it is of another model, with {_named(unknown)}"
    elif wrong := [name for name in layers if model and (outputs[name], layers[name]) != model[name]]:
        sizes = f"{layers[wrong[0]]} -> {outputs[wrong[0]]} there, and {model[wrong[0]][1]} -> {model[wrong[0]][0]} here"
        problem = f"it is of another model: {wrong[0]} is {sizes}"
    elif model and (left := [name for name in layers if name not in chosen]):
        problem = f"model.target_modules leaves out layers that it is of: {_named(left)}; add them"
    if problem is not None:
        raise CheckpointError(f"{key}: {path} does not fit: {problem}")


def as_own(saved: Lora, own: Mapping[str, torch.Size], rank: int, alpha: float) -> dict[str, Tensor]:
    """float32 weights of the run's LoRA that make it the saved one: rows and columns of 0 for the rank that it lacks.

    Args:
        own: shapes by PEFT's names, as `Lora.tensors` has them.
        rank, alpha: of the run's LoRA.
    """
    scale = saved.scaled / saved.ranks[0] / (alpha / rank)
    weights = {}
    for name, shape in own.items():
        weights[name] = torch.zeros(shape)
        if name in saved.tensors:
            there = saved.tensors[name].float()
            weights[name][tuple(map(slice, there.shape))] = there * (scale if ".lora_B." in name else 1.0)
    return weights


def _named(layers: list[str]) -> str:
    return ", ".join(layers[:MANY]) + (f" and {len(layers) - MANY} more" if len(layers) > MANY else "")
