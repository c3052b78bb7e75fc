"""`model.compile` over every checkpoint: rollout and replay are the same function, and its gradient is that of the model as it is."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.policy.compilation import VARIANTS, Compiled, compile_blocks, signature
from flow_factory.policy.gradient_checkpointing import blocks_of, checkpoint_blocks
from flow_factory.policy.policy import Policy
from flow_factory.types import Step
from flow_factory.utils.errors import RunError
from tests.models.cases import CASES, EACH, call_of
from tests.models.harness import LORA, Tiny, adapter_of, hooked, tiny, trained

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


def gradients(t: Tiny, policy: Policy, step: Step, memo: ConditionMemo | None = None) -> dict[str, Tensor]:
    policy.zero_grad(set_to_none=True)
    t.velocity(step, memo=memo).float().square().mean().backward()
    return {name: p.grad for name, p in policy.trained().items() if p.grad is not None}


def check(name: str, backend: str, closeness: float) -> None:
    """A rollout and its replays, with LoRA on and off and blocks that are computed again, against the model as it is."""
    t, policy = trained(name, compile=True, compile_backend=backend, **LORA)
    plain, same = trained(name, **LORA)
    memo = ConditionMemo()
    steps = t.roll(memo=memo, noisy=(t.case.first, 3))[1].kept
    for step in (steps[0], steps[-1]):  # those of both experts, where there are two
        assert t.exact(step, memo=memo)
        mine, theirs = gradients(t, policy, step, memo), gradients(plain, same, step)
        assert theirs and mine.keys() >= theirs.keys()
        assert not any(mine[k].any() for k in mine.keys() - theirs.keys())  # what the answer does not depend on: compiled, it has zeros
        off = max(float((mine[k] - theirs[k]).norm()) for k in theirs) / max(float(g.norm()) for g in theirs.values())
        assert off <= closeness, off
    checkpoint_blocks(t.transformers, {"every": 2})
    again = gradients(t, policy, steps[0], memo)
    checkpoint_blocks(t.transformers, False)
    once = gradients(t, policy, steps[0], memo)
    assert all(torch.equal(again[k], once[k]) for k in once)
    with policy.disable_adapter(), torch.no_grad():
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


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["wan21-t2v", "flux1"])
def test_weights_in_more_bits_than_the_rest_replay_exactly_when_compiled(name: str) -> None:
    """Under autocast, from which parts that diffusers keeps in float32 are shielded; half of the blocks are computed again."""
    model = {"finetune_type": "full", "master_weight_dtype": "fp32", "compile": True, "compile_backend": "aot_eager"}
    t, policy = trained(name, "bf16", {"every": 2}, **model)
    memo = ConditionMemo()
    steps = t.roll(memo=memo, noisy=(t.case.first, 3))[1].kept
    assert all(t.exact(step, memo=memo) for step in steps)
    assert len(gradients(t, policy, steps[0], memo)) == len(policy.trained())


def test_rollouts_run_with_gradient_where_blocks_are_compiled_and_let_go_of_it() -> None:
    t = Tiny("sd3-5")
    t.adapter.field.compiled = True
    blocks = blocks_of(t.transformers[0])
    blocks[0].attn.to_q.requires_grad_(True)  # so that there is a gradient to record
    modes: list[bool] = []
    with hooked([blocks[0]], lambda *_: modes.append(torch.is_grad_enabled())), torch.no_grad():
        (step,) = t.roll(noisy=(0,))[1].kept
        assert not t.velocity(step).requires_grad and not step.logp.requires_grad and all(modes) and modes
        modes.clear()
        t.evaluate()
        assert modes and not any(modes)
    assert t.velocity(step).requires_grad


class Doubling(nn.Module):
    """The smallest block."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_shapes_that_were_not_counted_end_the_run() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([Doubling(), Doubling()])
    compile_blocks([model], "eager")
    assert all(isinstance(block.forward, Compiled) for block in model.blocks)
    with torch._dynamo.config.patch(recompile_limit=2, accumulated_recompile_limit=2):
        assert all(torch.equal(block(torch.ones(n)), 2 * torch.ones(n)) for n in (2, 3) for block in model.blocks)
        with pytest.raises(RunError, match="^model.compile: the transformer is called with more shapes"):
            model.blocks[0](torch.ones(4))


TEXTS = "a dog", "a very long story of a dog, of its cat and of the hill on which both of them live, and of what they see there every day"


@pytest.mark.parametrize("name", [
    "sd3-5", "qwen-image", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in
    ("flux1", "flux2", "flux2-klein", "z-image", "wan21-t2v", "ltx2-t2av")),
])  # fmt: skip
def test_prompts_make_one_shape_where_the_family_says_so(name: str) -> None:
    """It is what `--check` counts by."""
    case = CASES[name]
    adapter = adapter_of(case)
    with torch.no_grad():
        shapes = {signature(adapter.embed(text, None, call_of(case))) for text in TEXTS}
    assert (len(shapes) == 1) == adapter.pads_prompts
