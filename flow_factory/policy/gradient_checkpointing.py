"""Gradient checkpointing block by block: the chosen blocks store no activations, and recompute them in the backward pass."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flow_factory.config.recompute import chosen_blocks
from flow_factory.utils.errors import UserError

logger = logging.getLogger(__name__)
NEARLY = 0.92
"""Of a card's memory: with more than that allocated, the allocator's gaps may fill the rest."""

Setting = bool | str | Mapping[str, Any]
"""Of `train.enable_gradient_checkpointing`."""
LEVELS: tuple[Setting, ...] = (False, {"fraction": 0.25}, {"fraction": 0.5}, {"fraction": 0.75}, True)
"""What `auto` chooses from: more memory first."""


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """A transformer's blocks, in the order of its lists: what is computed again, compiled and estimated one by one."""
    return [block for blocks in module.children() if isinstance(blocks, nn.ModuleList) for block in blocks]


class CheckpointedBlock:
    """Stands for the forward of a block, with the same arguments.

    diffusers' own way is not taken: it chooses whole models, and gives some blocks (Chroma's) other arguments than they have without.
    """

    def __init__(self, forward: Callable[..., Any]):
        self.forward = self.__wrapped__ = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        # nothing in a policy draws random numbers, and to keep their state would wait for the device
        return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def checkpoint_blocks(modules: Iterable[nn.Module], setting: Setting) -> None:
    """Has the chosen blocks of each transformer computed again in the backward pass, and no others; it may be called again.

    Raises:
        UserError: see `require_blocks`.
    """
    for module in modules:
        blocks = blocks_of(module)
        require_blocks(setting, len(blocks))
        chosen = chosen_blocks(setting, len(blocks))
        for number, block in enumerate(blocks):
            forward = block.forward.forward if isinstance(block.forward, CheckpointedBlock) else block.forward
            block.forward = CheckpointedBlock(forward) if number in chosen else forward


def require_blocks(setting: Setting, blocks: int) -> None:
    """Raises:
    UserError: `layers` names a block that a transformer of so many does not have.
    """
    far = [k for k in setting["layers"] if k >= blocks] if isinstance(setting, Mapping) and "layers" in setting else []
    if far:
        there = f"the transformer has {blocks} blocks, from 0 to {blocks - 1}" if blocks else "the transformer has no blocks; write false"
        raise UserError(f"train.enable_gradient_checkpointing: layers: {far[0]}: {there}")


def describe_blocks(setting: Setting, modules: Iterable[nn.Module]) -> str:
    """How many blocks that are, of each transformer."""
    counts = [len(blocks_of(module)) for module in modules]
    return " and ".join(f"{len(chosen_blocks(setting, n))} of {n} blocks" for n in counts)


@dataclass
class StepBack:
    """After a run's first epoch, `auto` takes a level that keeps less where the card has nearly been filled: once."""

    modules: Sequence[nn.Module]
    setting: Setting
    """What it has chosen."""
    looked: bool = False

    def look(self, share: float, agree: Callable[[bool], bool]) -> None:
        """Once an epoch is done.

        Args:
            share: of the card's memory that the epoch held at its peak.
            agree: whether it is true on any process.
        """
        if self.looked:
            return
        self.looked = True
        later = LEVELS[LEVELS.index(self.setting) + 1 :]
        if agree(share > NEARLY) and later:
            self.setting = later[0]
            checkpoint_blocks(self.modules, self.setting)
            text = "train.enable_gradient_checkpointing: auto: the first epoch took %.0f %% of the card; %s are computed again from now on"
            logger.warning(text, 100 * share, describe_blocks(self.setting, self.modules))
