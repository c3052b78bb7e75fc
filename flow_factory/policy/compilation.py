"""`model.compile`: torch.compile of a transformer's blocks for each shape of its inputs, with a limit on the number of shapes.

A block that is compiled with gradients rounds differently from one without: the two graphs are fused differently. So rollouts and their
replay both run with gradients (`TransformerProxy`). Any remaining difference is measured before a run begins (`replay_error`).
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
"""The largest number of shapes in a run. Compiling takes seconds to minutes for each shape and kind of block."""
VARIANTS = 8
"""The largest number of variants of a kind of block for one shape: with and without gradients of the inputs, with and without its LoRA,
a first or last block with fewer layers, and evaluations without gradients."""


ROUTED = ("MOEFeedForwardSwiGLU",)
"""Mixture-of-experts layers (HiDream). They are not compiled, because the shapes of their inputs depend on the tokens."""


class Compiled:
    """A replacement of a block's `forward`, with the same arguments."""

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
    """Compiles each transformer block by block, or as a whole if it has no blocks. Hooks around blocks (FSDP's) are kept.

    diffusers' `compile_repeated_blocks` is not used: it knows the blocks of some models only (not SD3.5's).
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
    """The properties of a row that decide the shapes of a transformer's inputs: the sizes of its tensors and images."""
    leaves = [(key, leaf) for key in sorted(cond) for leaf in tree_leaves(cond[key])]
    return tuple((key, tuple(x.shape) if isinstance(x, Tensor) else x.size if isinstance(x, Image.Image) else None) for key, x in leaves)


class Shapes:
    """Counts the shapes of a run's rows, and sets torch's limit so that a run with further shapes fails instead of running uncompiled."""

    def __init__(self, config: RunConfig):
        train = config.train
        self.drawn = 1 if train.rollout_batch_size is None else train.group_size // train.per_device_batch_size
        self.rows, self.evaluated = set[tuple[Any, ...]](), set[tuple[Any, ...]]()

    def allow(self, conds: Iterable[Cond], evaluated: Iterable[Cond] = ()) -> int:
        """Adds the shapes of these rows. Returns the number of shapes of training rows so far.

        Raises:
            UserError: more shapes than `MOST`.
        """
        self.rows |= {signature(cond) for cond in conds}
        self.evaluated |= {signature(cond) for cond in evaluated}
        require_few(len(self.rows))
        # in an evaluation only the last batch of a shape may be smaller; a negative prompt has its own length
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
        raise UserError(f"model.compile: {text}; at most {MOST} are supported: write false, or use rows with fewer shapes")
