"""`model.compile`: torch.compile of a transformer's blocks, for each shape that comes, and an end to the shapes.

A compiled block is another function with gradient than without: an inference graph here, the first half of a joint graph there, fused each
in its own way. So what rollouts draw and what training replays runs with gradient in both (`TransformerProxy`), and whatever still
differs is measured before a run begins (`replay_error`).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from flow_factory.config import RunConfig
from flow_factory.policy.gradient_checkpointing import blocks_of
from flow_factory.types import Cond
from flow_factory.utils.errors import RunError, UserError

MOST = 64
"""Shapes of a run's calls that are compiled for: each is seconds to minutes of work for every kind of block."""
VARIANTS = 8
"""Of a kind of block, for one shape: its inputs may need a gradient or not, its LoRA may be off, and a first or last block may have less
inside; evaluations are without gradient."""


ROUTED = ("MOEFeedForwardSwiGLU",)
"""Parts of blocks that share tokens out by what is in them (HiDream): their shapes differ from call to call, and they stay as they are."""


class Compiled:
    """Stands for the forward of a block, with the same arguments."""

    def __init__(self, forward: Callable[..., Any], backend: str):
        from torch._dynamo.exc import FailOnRecompileLimitHit  # takes a second to import

        self.__wrapped__, self.passed = forward, FailOnRecompileLimitHit
        self.forward = torch.compile(forward, backend=backend, dynamic=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.forward(*args, **kwargs)
        except self.passed as error:
            text = "the transformer is called with more shapes than were counted at the start, each compiled separately"
            raise RunError(f"model.compile: {text}; write false, and please report it") from error


def compile_blocks(modules: Iterable[nn.Module], backend: str) -> None:
    """Compiles each transformer block by block, or whole where it has no blocks; hooks around them (FSDP's) stay as they are.

    diffusers' `compile_repeated_blocks` is not taken: it knows the blocks of some models only (not SD3.5's).
    """
    for module in modules:
        for block in blocks_of(module) or [module]:
            for part in block.modules():
                if type(part).__name__ in ROUTED:
                    part.forward = torch.compiler.disable(part.forward)
            block.forward = Compiled(block.forward, backend)


def describe_blocks(modules: Iterable[nn.Module]) -> str:
    """The kinds of blocks that are compiled, and how many of each."""
    kinds = [type(block).__name__ for module in modules for block in blocks_of(module) or [module]]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def signature(cond: Cond) -> tuple[Any, ...]:
    """What of a row decides the shapes that a transformer is called with: sizes of its tensors and pictures."""
    leaves = [(key, leaf) for key in sorted(cond) for leaf in tree_leaves(cond[key])]
    return tuple((key, tuple(x.shape) if isinstance(x, Tensor) else x.size if isinstance(x, Image.Image) else None) for key, x in leaves)


class Shapes:
    """Has a run that is called in more ways than its rows make end, instead of going on uncompiled."""

    def __init__(self, config: RunConfig):
        train = config.train
        self.drawn = 1 if train.rollout_batch_size is None else train.group_size // train.per_device_batch_size
        self.rows, self.evaluated = set[tuple[Any, ...]](), set[tuple[Any, ...]]()

    def allow(self, conds: Iterable[Cond], evaluated: Iterable[Cond] = ()) -> int:
        """Calls of these rows' shapes, too; returns how many shapes training rows make so far.

        Raises:
            UserError: more than can be waited for.
        """
        self.rows |= {signature(cond) for cond in conds}
        self.evaluated |= {signature(cond) for cond in evaluated}
        require_few(len(self.rows))
        # of an evaluation's batches, those of a shape are full but for the last; a negative prompt has a length of its own
        ways = 2 * (len(self.rows) * (1 + self.drawn) + 2 * len(self.evaluated))
        limits = torch._dynamo.config
        limits.recompile_limit = limits.accumulated_recompile_limit = VARIANTS * ways
        limits.fail_on_recompile_limit_hit = True
        return len(self.rows)


def require_few(shapes: int) -> None:
    """Raises:
    UserError: more shapes than `MOST`.
    """
    if shapes > MOST:
        text = f"the rows make {shapes} different shapes (prompt lengths, image sizes), and each is compiled separately"
        raise UserError(f"model.compile: {text}; at most {MOST} are: write false, or bring the rows to fewer")
