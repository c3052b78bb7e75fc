"""Context parallelism: each process of a team computes its part of the same sequences, with diffusers' Ulysses attention.

A transformer gathers its output, so every process has the whole velocity and the same loss. In the backward pass each process gets the
gradient of its own part. The sum over the team is the gradient of a single process.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import ContextParallelInput
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.utils.errors import UserError


def check_splits(adapter: ModelAdapter, team: int) -> None:
    """Raises:
    UserError: the family's sequences or attention heads cannot be divided among this many processes.
    """
    if team == 1:
        return
    if not adapter.splits:
        able = ", ".join(name for name in MODELS if MODELS[name].splits)
        raise UserError(f"model.context_parallel: the sequences of {type(adapter).__name__} cannot be split; write 1. Those of {able} can")
    for name, module in adapter.field.bare.items():
        heads = module.config.num_attention_heads
        if heads % team:
            right = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            raise UserError(f"model.context_parallel: {team} does not divide the {heads} attention heads of {name}; write one of {right}")


def split_sequences(adapter: ModelAdapter, team: int, device: torch.device) -> None:
    """Makes the transformers of this process compute their part of each sequence, together with the others of its team.

    All processes call this together, after LoRAs were added: peft replaces layers, and would remove the hooks that split and gather.

    Raises:
        UserError: the attention backend does not support it; the message lists those that do.
    """
    if team == 1:
        return
    mesh = init_device_mesh(device.type, (dist.get_world_size() // team, 1, team), mesh_dim_names=("team", "ring", "ulysses"))
    for module in adapter.field.bare.values():
        refuse_uneven(module, team)
        try:
            with counted_devices():
                module.enable_parallelism(config=ContextParallelConfig(ulysses_degree=team, mesh=mesh))
        except ValueError as error:
            raise UserError(f"model.context_parallel: {error}") from error


@contextmanager
def counted_devices() -> Iterator[None]:
    """Gives diffusers a number of devices on a machine without an accelerator, where it would divide by 0."""
    count = torch.accelerator.device_count
    if count() == 0:
        torch.accelerator.device_count = lambda: 1
    try:
        yield
    finally:
        torch.accelerator.device_count = count


def refuse_uneven(module: Any, team: int) -> None:
    """Raises a message for a sequence length that the team does not divide, where diffusers has a bare assertion."""
    for name, plan in module._cp_plan.items():
        if isinstance(plan, dict):
            part = module.get_submodule(name)
            inputs = {k: split for k, split in plan.items() if isinstance(k, str) and not split.split_output}
            check = partial(check_lengths, inputs, list(inspect.signature(part.forward).parameters), team)
            part.register_forward_pre_hook(check, with_kwargs=True)


def check_lengths(
    inputs: dict[str, ContextParallelInput], parameters: list[str], team: int, part: nn.Module, args: Any, kwargs: dict[str, Any]
) -> None:
    """Raises:
    UserError: the length of an input to be split is not a multiple of the team.
    """
    given = dict(zip(parameters, args, strict=False)) | kwargs
    for name, split in inputs.items():
        x = given.get(name)
        if not isinstance(x, Tensor) or x.dim() != split.expected_dims or x.shape[split.split_dim] % team == 0:
            continue
        key = "max_sequence_length" if "encoder" in name else "height, width, num_frames, or the condition pictures"
        raise UserError(f"model.context_parallel: {team} does not divide {name}'s {x.shape[split.split_dim]} tokens; change {key}")
