"""Training sees to the bit what sampling saw, at the cost of the forwards that a guidance has and no more, in every family."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from flow_factory.core.condition_memo import ConditionMemo, MemoizedCall
from flow_factory.models.base import ModelAdapter
from flow_factory.models.proof import prove
from flow_factory.policy.gradient_checkpointing import blocks_of
from flow_factory.utils.errors import UserError
from tests.conftest import SDES, STEPS
from tests.models.cases import CASES, Case, every_case, every_checkpoint, over
from tests.models.harness import LORA, Tiny, counted, drawn, hooked, lora, small, stock, tiny, trained

# -- exactness --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "checkpointing"), [("fp32", False), ("bf16", True)])
@every_case
def test_the_log_prob_of_a_replay_is_that_of_the_rollout(name: str, dtype: str, checkpointing: bool) -> None:
    """Of a LoRA, which computes without autocast in every layer: on a GPU that would bring norms and sums to float32."""
    t, policy = lora(name, dtype, checkpointing)
    memo = ConditionMemo()
    with hooked(policy.components.modules(), without_autocast):
        steps = t.roll(memo=memo)[1].kept
    assert [step.index for step in steps] == list(t.noisy) and steps[0].index == t.case.first
    for step in reversed(steps):
        assert t.velocity(step, memo=memo).requires_grad and t.exact(step, memo=memo)


@pytest.mark.parametrize("name", ["flux1", "wan21-t2v", "wan22-5b-i2v"])
def test_weights_trained_in_more_bits_than_the_rest_replay_exactly(name: str) -> None:
    """They compute in 16 bits, but for the parts that diffusers keeps in float32."""
    t, policy = trained(name, "bf16", True, finetune_type="full", master_weight_dtype="fp32")
    with hooked([m for m in policy.modules() if type(m).__name__ == "TimestepEmbedding"], as_kept(t)):
        steps, memo = t.roll(memo=(memo := ConditionMemo()))[1].kept, memo
        assert all(t.velocity(step, memo=memo).requires_grad and t.exact(step, memo=memo) for step in steps)


def without_autocast(module: nn.Module, args: Any, out: Any) -> None:
    assert not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda")


def as_kept(t: Tiny) -> Callable[[nn.Module, Any, Tensor], None]:
    kept = bool(t.transformers[0]._keep_in_fp32_modules)

    def check(module: nn.Module, args: Any, out: Tensor) -> None:
        assert out.dtype == (torch.float32 if kept else torch.bfloat16)

    return check


@pytest.mark.parametrize("dynamics", SDES)
@pytest.mark.parametrize("name", ["flux2-two-images", "wan22-a14b-t2v", "ltx2-i2av"])
def test_other_dynamics_replay_exactly(name: str, dynamics: str) -> None:
    t, memo = tiny(name, "bf16"), ConditionMemo()
    assert all(t.exact(step, dynamics=dynamics, memo=memo) for step in t.roll(dynamics=dynamics, memo=memo)[1].kept)


@every_case
def test_rows_of_other_pictures_and_prompts_replay_exactly_in_any_order(name: str) -> None:
    """The pictures of the second row have another size; a replay without what the rollout remembered computes the same."""
    t, memos = tiny(name), [ConditionMemo(), ConditionMemo()]
    rollouts = [t.roll(k, memo=memos[k])[1].kept for k in (0, 1)]
    for k in (1, 0):
        assert all(t.exact(step, k, memo=memos[k]) for step in rollouts[k])
        assert t.exact(rollouts[k][0], k, memo=None)
    assert not t.exact(rollouts[0][1], 1)


@every_checkpoint
def test_a_model_that_never_sampled_replays_exactly(name: str) -> None:
    assert all(Tiny(name).exact(step) for step in tiny(name).roll()[1].kept[1:2])


@over([name for name, case in CASES.items() if case.model_type == "diffusers"])
def test_a_pipeline_without_an_adapter_passes_the_proof_that_a_run_begins_with(name: str) -> None:
    t = tiny(name)
    with small(t.adapter.pipe):
        prove(t.adapter, t.conds[0], t.call, 2)


def test_the_proof_finds_blocks_that_compute_something_else_when_they_are_checkpointed() -> None:
    t, _ = trained("sd3-5", checkpointing=True, **LORA)
    (model,) = t.transformers
    prove(t.adapter, t.conds[0], t.call, 2)
    block = blocks_of(model)[0]
    again = block.forward
    block.forward = lambda *args, **kwargs: tree_map_only(Tensor, lambda x: (1 + 0.1 * x.requires_grad) * x, again(*args, **kwargs))
    with pytest.raises(UserError, match="a velocity call does not compute what the rollout did"):
        prove(t.adapter, t.conds[0], t.call, 2)


# -- cost -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [False, True])
@every_case
def test_a_step_and_a_velocity_cost_one_forward_a_guidance_branch(name: str, off: bool) -> None:
    """Without guidance one in all, which saves half of the time or more."""
    case = CASES[name]
    if off and not case.off:
        pytest.skip("no call argument turns its guidance off" if case.guided else "it has no guidance to turn off")
    t = Tiny(name, **case.off) if off else tiny(name)
    branches = [2 * times for times in ((1,) if off else case.forwards)]
    with counted(t.transformers) as forwards:
        steps = t.roll()[1].kept
    assert forwards == branches * (STEPS - case.first)
    with counted(t.transformers) as forwards:
        t.velocity(steps[1])
    assert forwards == branches


@over([name for name, case in CASES.items() if case.guided])
def test_training_without_guidance_costs_one_forward(name: str) -> None:
    """Whatever turns a pipeline's guidance off; the checkpoint's own is there again afterwards."""
    t = tiny(name)
    step = t.roll(noisy=(2,))[1].kept[0]

    def at(scale: float) -> Tensor:
        return t.adapter.velocity(step.x, step.t, step.s, t.conds[0], t.adapter.with_guidance(t.call, scale))

    with small(t.adapter.pipe), torch.no_grad():
        alone = at(1.0)  # from now on it is known which shape an answer has
        with counted(t.transformers) as forwards:
            assert torch.equal(at(1.0), alone)
        assert forwards == [2]
        assert not torch.equal(at(2.0), alone) and not torch.equal(at(2.0), at(3.0))
    assert t.exact(step)


@pytest.mark.parametrize("scale", [0.5, 1.0])
@pytest.mark.parametrize("name", ["z-image", "ltx2-t2av", "flux2-klein-base", "qwen-image", "sd3-5", "wan21-t2v"])
def test_guidance_is_on_where_the_stock_pipeline_has_it_on(name: str, scale: float) -> None:
    """Z-Image counts its scale from 0; LTX-2 has another one for the sound."""
    t, pipe = Tiny(name, guidance_scale=scale), stock(name)
    with counted(t.transformers) as ours:
        t.roll()
    with counted([pipe.transformer]) as its:
        drawn(pipe, t.case, **{t.adapter.guidance: scale})
    assert ours == [2 * n for n in its]


@contextmanager
def really_called(adapter: ModelAdapter) -> Iterator[Counter]:
    """How often each function is called that the memo remembers."""
    counts: Counter = Counter()
    with ExitStack() as stack:
        for name in adapter.memoised:
            ours: Any = reduce(lambda owner, part: getattr(owner, part, None), name.split("."), adapter.pipe)
            if isinstance(ours, MemoizedCall):
                stack.enter_context(mock.patch.object(ours, "bare", tallied(counts, name, ours.bare)))
        yield counts


def tallied(counts: Counter, name: str, bare: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        counts[name] += 1
        return bare(*args, **kwargs)

    return call


def once(case: Case) -> dict[str, int]:
    """What a micro-batch has to compute: Wan's pictures are one video to the VAE; nothing but pictures where the prompt is encoded."""
    encoded = 1 if case.frames or case.model_type == "wan2_i2v" else len(case.images)
    others = {"encode_image": "wan21" in case.checkpoint and bool(case.images)}
    return {k: int(n) for k, n in {"vae.encode": encoded, **others}.items() if n}


@every_case
def test_conditions_are_encoded_once_a_micro_batch(name: str) -> None:
    """However many samples, steps and velocities there are; text encoders are gone by now."""
    t, memo = tiny(name), ConditionMemo()
    assert all(getattr(t.adapter.pipe, part) is None for part in t.adapter.encoders)
    with really_called(t.adapter) as counts:
        for step in t.roll(memo=memo)[1].kept:
            t.velocity(step, memo=memo)
    assert counts == once(t.case)


# -- noise ------------------------------------------------------------------------------------------------------------------------


@every_case
def test_a_samples_noise_does_not_depend_on_its_neighbours(name: str) -> None:
    """With the model's answer held at 1 the states are functions of the noise alone, the initial one included."""
    t = tiny(name)
    with hooked(t.transformers, lambda model, args, out: tree_map_only(Tensor, torch.ones_like, out)):
        four, two = (t.roll(ids=ids)[1].kept for ids in (range(4), (2, 3)))
    for a, b in zip(four, two, strict=True):
        assert torch.equal(a.x[2:], b.x) and torch.equal(a.x1[2:], b.x1)
        assert len(torch.unique(a.x1.flatten(1)[:, 0])) == 4
