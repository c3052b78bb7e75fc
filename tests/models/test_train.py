"""The gradient reaches every trained parameter of every family, and what it never reaches is known beforehand."""

from collections.abc import Iterable
from typing import Any

import pytest

from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.policy.policy import Policy
from flow_factory.types import Step
from tests.models.cases import CASES, every_case
from tests.models.harness import Tiny, lora, trained

FULL: dict[str, Any] = {"finetune_type": "full", "master_weight_dtype": "fp32"}


def unmoved(t: Tiny, policy: Policy, steps: Iterable[Step]) -> set[str]:
    """Names of the parameters that get no gradient from these steps."""
    policy.zero_grad(set_to_none=True)
    for step in steps:
        t.velocity(step).float().square().mean().backward()
    return {name for name, p in policy.components.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}


@every_case
def test_the_gradient_reaches_every_lora_parameter(name: str) -> None:
    """Of the generic adapter, which knows of no dead ends, most."""
    t, policy = lora(name)
    missed = unmoved(t, policy, t.roll()[1].kept)
    assert not missed if not t.adapter.find_unused else len(missed) < len(policy.trained()) / 4


@pytest.mark.parametrize("off", [False, True])
@every_case
def test_the_gradient_of_full_training_misses_the_dead_ends_and_nothing_else(name: str, off: bool) -> None:
    """With guidance and without; dead ends are frozen, and here thawed to see whether they are dead."""
    case = CASES[name]
    if off and not case.off:
        pytest.skip("no call argument turns guidance off")
    t, policy = trained(name, call=case.off if off else {}, **FULL)
    frozen = {k for k, p in policy.components.named_parameters() if not p.requires_grad}
    policy.components.requires_grad_(True)
    missed = unmoved(t, policy, t.roll()[1].kept)
    assert missed == frozen if not t.adapter.find_unused else len(missed) < len(policy.trained()) / 3


@pytest.mark.parametrize("name", ["wan22-a14b-t2v", "wan22-a14b-i2v", "wan22-a14b-first-and-last"])
def test_each_expert_learns_from_its_own_side_of_the_boundary(name: str) -> None:
    t, policy = lora(name)
    border = t.adapter.pipe.config.boundary_ratio * 1000
    sides = {"transformer": [], "transformer_2": []}
    for step in t.roll(memo=ConditionMemo())[1].kept:
        sides["transformer" if step.t >= border else "transformer_2"].append(step)
    assert all(sides.values())
    for expert, steps in sides.items():
        for step in steps:
            assert unmoved(t, policy, [step]) == {k for k in policy.trained() if not k.startswith(f"{expert}.")}
