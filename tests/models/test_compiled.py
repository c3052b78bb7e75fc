"""`model.compile` over every checkpoint: rollout and replay are the same function, and its gradient is that of the model as it is."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flow_factory.compilation import VARIANTS, Compiled, compile_blocks
from flow_factory.errors import RunError
from flow_factory.memo import Memo
from flow_factory.policy import Policy
from flow_factory.recompute import blocks_of, recompute
from flow_factory.types import Step
from tests.models.cases import EACH
from tests.models.harness import LORA, Tiny, tiny, trained

INDUCED = ("flux1", "sd3-5", "wan22-a14b-t2v", "z-image")
"""The families that are compiled in earnest."""


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What was compiled is another test's business no more."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(
        fail_on_recompile_limit_hit=True, recompile_limit=2 * VARIANTS, accumulated_recompile_limit=2 * VARIANTS
    ):
        yield
    torch._dynamo.reset()


def gradients(t: Tiny, policy: Policy, step: Step, memo: Memo | None = None) -> dict[str, Tensor]:
    policy.zero_grad(set_to_none=True)
    t.velocity(step, memo=memo).float().square().mean().backward()
    return {name: p.grad for name, p in policy.trained().items() if p.grad is not None}


def check(name: str, backend: str, closeness: float) -> None:
    """A rollout and its replays, with LoRA on and off and blocks that are computed again, against the model as it is."""
    t, policy = trained(name, compile=True, compile_backend=backend, **LORA)
    plain, same = trained(name, **LORA)
    memo = Memo()
    steps = t.roll(memo=memo, noisy=(t.case.first, 3))[1].kept
    for step in (steps[0], steps[-1]):  # those of both experts, where there are two
        assert t.exact(step, memo=memo)
        mine, theirs = gradients(t, policy, step, memo), gradients(plain, same, step)
        assert mine.keys() == theirs.keys() and mine
        off = max(float((mine[k] - theirs[k]).norm()) for k in mine) / max(float(g.norm()) for g in theirs.values())
        assert off <= closeness, off
    recompute(t.transformers, {"every": 2})
    again = gradients(t, policy, steps[0], memo)
    recompute(t.transformers, False)
    once = gradients(t, policy, steps[0], memo)
    assert all(torch.equal(again[k], once[k]) for k in once)
    with policy.adapter_off(), torch.no_grad():
        off_v, base = t.velocity(steps[0], memo=memo), tiny(name).velocity(steps[0])
    torch.testing.assert_close(off_v, base, rtol=1e-4, atol=1e-4)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", EACH)
def test_a_compiled_model_replays_its_rollouts_and_learns_what_it_would(name: str) -> None:
    check(name, "aot_eager", 1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", INDUCED)
def test_an_induced_model_replays_its_rollouts_and_learns_what_it_would(name: str) -> None:
    check(name, "inductor", 1e-3)


def test_shapes_that_were_not_counted_end_the_run() -> None:
    t = Tiny("sd3-5")
    (model,) = t.transformers
    compile_blocks([model], "eager")
    assert all(isinstance(block.forward, Compiled) for block in blocks_of(model))
    with torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=1), pytest.raises(RunError, match="^model.compile: "):
        for ids in ((0,), (0, 1), (0, 1, 2)):
            t.roll(ids=ids, noisy=(0,))
