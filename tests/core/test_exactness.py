"""Training sees to the bit what sampling saw: the log-probability of a replay is that of the rollout, on a tiny FLUX.1 of stock classes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from flow_factory.models.base import ModelAdapter
from flow_factory.types import Cond, Step
from tests.conftest import CALL, CFG, SDES, condition, flux, log_prob_at, policy_over, rolled

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def replayed(adapter: ModelAdapter, step: Step, cond: Cond, dynamics: str = "Flow-SDE", **call: Any) -> Tensor:
    return log_prob_at(adapter.velocity(step.x.to(step.dtype), step.t, step.s, cond, CALL | call), step, dynamics)


def exact(adapter: ModelAdapter, steps: Sequence[Step], cond: Cond, dynamics: str = "Flow-SDE", **call: Any) -> bool:
    return all(torch.equal(replayed(adapter, step, cond, dynamics, **call), step.logp) for step in steps)


def prepared(variant: str, dtype: str) -> tuple[ModelAdapter, AbstractContextManager]:
    """An adapter whose transformer is trained and computes as `variant` says, and the context it computes in."""
    adapter, precision = flux(DTYPES[dtype]), {"float32": "no", "bfloat16": "bf16"}[dtype]
    if "lora" in variant:
        policy_over(adapter, precision, "checkpointing" in variant, finetune_type="lora", target_modules=("default",))
    if "full" in variant:
        master = "fp32" if "autocast" in variant or dtype == "float32" else "bf16"
        policy_over(adapter, precision, "checkpointing" in variant, finetune_type="full", master_weight_dtype=master)
    autocast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
    return adapter, autocast if "autocast" in variant else nullcontext()


@pytest.mark.parametrize("dynamics", SDES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", [
    "plain", "lora", "lora + checkpointing", "full", "full + autocast",
])  # fmt: skip
def test_the_log_prob_of_a_replay_is_that_of_the_rollout(variant: str, dtype: str, dynamics: str) -> None:
    adapter, context = prepared(variant, dtype)
    cond = condition(adapter)
    with context:
        steps = rolled(adapter, cond, dynamics)
        for step in reversed(steps):
            logp = replayed(adapter, step, cond, dynamics)
            assert torch.equal(logp, step.logp) and logp.isfinite().all() and logp.requires_grad


@pytest.mark.parametrize("dynamics", SDES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("storage", [torch.float32, torch.float16, torch.bfloat16])
def test_latents_stored_in_fewer_bits_replay_exactly(storage: torch.dtype, dtype: str, dynamics: str) -> None:
    adapter, _ = prepared("lora", dtype)
    cond = condition(adapter)
    steps = rolled(adapter, cond, dynamics, storage)
    kept = storage if dtype == "float32" else torch.bfloat16
    assert [step.x.dtype for step in steps] == [DTYPES[dtype], kept, kept] and {step.x1.dtype for step in steps} == {kept}
    assert exact(adapter, steps, cond, dynamics)


def test_a_model_that_never_sampled_replays_exactly() -> None:
    cond, steps = condition(flux()), rolled(flux(), condition(flux()))
    assert all(exact(flux(), [step], cond) for step in steps)


def test_other_resolutions_and_prompt_lengths_in_between_change_nothing() -> None:
    adapter = flux()
    calls = [{}, {"height": 48}, {"width": 16}, {"max_sequence_length": 16}, {"guidance_scale": 1.0}, CFG]
    conds = [condition(adapter, "two red circles and a dog on the hill", "low quality", **call) for call in calls]
    rollouts = [rolled(adapter, cond, **call) for cond, call in zip(conds, calls, strict=True)]
    for order in (range(len(calls)), reversed(range(len(calls)))):
        for k in order:
            assert exact(adapter, rollouts[k], conds[k], **calls[k])


@pytest.mark.parametrize("dtype", DTYPES)
def test_true_cfg_replays_exactly(dtype: str) -> None:
    adapter, _ = prepared("lora", dtype)
    cond = condition(adapter, "a red circle", "low quality", **CFG)
    assert exact(adapter, rolled(adapter, cond, **CFG), cond, **CFG)


@pytest.mark.parametrize(("prompt", "change"), [("a red circle", {"guidance_scale": 3.0}), ("a blue circle", {})])
def test_a_replay_under_other_conditions_is_noticed(prompt: str, change: dict[str, float]) -> None:
    adapter = flux()
    for step in rolled(adapter, condition(adapter)):
        ratio = (replayed(adapter, step, condition(adapter, prompt), **change) - step.logp).exp()
        assert ((ratio - 1).abs() > 1e-6).all()
