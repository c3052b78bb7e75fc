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
"""The share of a GPU's memory above which `auto` steps back: the allocator's gaps may need the rest."""

Setting = bool | str | Mapping[str, Any]
"""A value of `train.enable_gradient_checkpointing`."""
LEVELS: tuple[Setting, ...] = (False, {"fraction": 0.25}, {"fraction": 0.5}, {"fraction": 0.75}, True)
"""The values that `auto` chooses from, those that need most memory first."""


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer, in the order of its lists. Recomputation, compilation and estimates work on these."""
    return [block for blocks in module.children() if isinstance(blocks, nn.ModuleList) for block in blocks]


class CheckpointedBlock:
    """A replacement of a block's `forward`, with the same arguments.

    diffusers' own checkpointing is not used: it covers whole models only, and passes other arguments to some blocks (Chroma's).
    """

    def __init__(self, forward: Callable[..., Any]):
        self.forward = self.__wrapped__ = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        # blocks draw no random numbers, and saving the random state would wait for the device
        return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def checkpoint_blocks(modules: Iterable[nn.Module], setting: Setting) -> None:
    """Makes the chosen blocks of each transformer, and only these, recompute in the backward pass. It may be called again.

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
    UserError: `layers` names a block that a transformer with this many blocks does not have.
    """
    far = [k for k in setting["layers"] if k >= blocks] if isinstance(setting, Mapping) and "layers" in setting else []
    if far:
        there = f"the transformer has {blocks} blocks, from 0 to {blocks - 1}" if blocks else "the transformer has no blocks; write false"
        raise UserError(f"train.enable_gradient_checkpointing: layers: {far[0]}: {there}")


def describe_blocks(setting: Setting, modules: Iterable[nn.Module]) -> str:
    """A phrase with the number of chosen blocks of each transformer."""
    counts = [len(blocks_of(module)) for module in modules]
    return " and ".join(f"{len(chosen_blocks(setting, n))} of {n} blocks" for n in counts)


@dataclass
class RecomputeFallback:
    """After the first epoch, lets `auto` recompute more blocks if the GPU was nearly full. It does so once."""

    modules: Sequence[nn.Module]
    setting: Setting
    """The level that `auto` has chosen."""
    looked: bool = False

    def look(self, share: float, agree: Callable[[bool], bool]) -> None:
        """Called after each epoch.

        Args:
            share: the peak of the epoch as a share of the GPU's memory.
            agree: returns whether its argument is true on any process.
        """
        if self.looked:
            return
        self.looked = True
        later = LEVELS[LEVELS.index(self.setting) + 1 :]
        if agree(share > NEARLY) and later:
            self.setting = later[0]
            checkpoint_blocks(self.modules, self.setting)
            text = "train.enable_gradient_checkpointing: auto: the first epoch took %.0f %% of the GPU's memory; now %s are recomputed"
            logger.warning(text, 100 * share, describe_blocks(self.setting, self.modules))
