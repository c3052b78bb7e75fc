"""Gradient checkpointing block by block, over every checkpoint: each setting has the same gradients, and computes again what it says."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flow_factory.config.recompute import chosen_blocks
from flow_factory.policy.gradient_checkpointing import Setting, blocks_of, checkpoint_blocks
from tests.models.cases import EACH
from tests.models.harness import lora

SETTINGS: tuple[Setting, ...] = (False, True, {"fraction": 0.5}, {"every": 2})
OFTEN = ("flux1", "sd3-5", "wan22-a14b-t2v", "z-image", "chroma")


@contextmanager
def counted_blocks(models: Sequence[nn.Module]) -> Iterator[Counter[nn.Module]]:
    """How often each block has computed with gradient; afterwards none is computed again."""
    calls: Counter[nn.Module] = Counter()

    def counting(block: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        calls[block] += torch.is_grad_enabled()
        return forward(*args, **kwargs)

    blocks = [(block, block.forward) for model in models for block in blocks_of(model)]
    for block, forward in blocks:
        block.forward = partial(counting, block, forward)
    try:
        yield calls
    finally:
        for block, forward in blocks:
            block.forward = forward


@pytest.mark.parametrize("name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.exhaustive) for n in EACH])
def test_gradients_are_the_same_whichever_blocks_are_computed_again(name: str) -> None:
    t, policy = lora(name)
    steps = t.roll()[1].kept
    found: list[dict[str, Tensor]] = []
    last = min(len(blocks_of(model)) for model in t.transformers) - 1
    for setting in (*SETTINGS, {"layers": [last]}):
        for step in (steps[0], steps[-1]):  # those of both experts, where there are two
            with counted_blocks(t.transformers) as calls:
                checkpoint_blocks(t.transformers, setting)
                v = t.velocity(step)
                once = calls.copy()
                v.square().mean().backward()
                for model in t.transformers:
                    blocks = blocks_of(model)
                    # HiDream's projections of captions are frozen, and nothing before them is trained: no backward comes to them
                    ran = [k for k, block in enumerate(blocks) if once[block] and any(p.requires_grad for p in block.parameters())]
                    again = [k for k, block in enumerate(blocks) if calls[block] > once[block]]
                    assert again == [k for k in chosen_blocks(setting, len(blocks)) if k in ran], setting
        found.append({key: p.grad for key, p in policy.trained().items() if p.grad is not None})
        policy.zero_grad(set_to_none=True)
    assert found[0] and all(f.keys() == found[0].keys() for f in found)
    assert all(torch.equal(f[key], found[0][key]) for f in found for key in f)
