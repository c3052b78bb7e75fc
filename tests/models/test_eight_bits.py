"""Products in 8 bits in every family: a replay sees what the rollout saw, velocities are near, and compiled blocks answer alike."""

import pytest
import torch

from flow_factory.models.quantized_linear import layers_in_8_bits
from tests.conftest import policy_over
from tests.models.cases import EACH
from tests.models.harness import Tiny

LORA = {"finetune_type": "lora", "target_modules": ("default",), "quantization": "torchao_int8_dynamic"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", EACH)
def test_a_replay_is_exact_and_near_the_unquantised_velocity(name: str) -> None:
    t, plain = Tiny(name, "bf16"), Tiny(name, "bf16")
    parts = {"target_components": tuple(t.adapter.field.bare)}
    policy = policy_over(t.adapter, "bf16", **LORA, **parts)
    policy_over(plain.adapter, "bf16", **LORA | {"quantization": None}, **parts)
    with torch.no_grad():
        kept = t.roll()[1].kept
        assert all(t.exact(step) for step in kept)
        v, near = plain.velocity(kept[0]).float(), t.velocity(kept[0]).float()
    rounds = any(True for part in plain.transformers for _ in layers_in_8_bits(part))  # Wan's tiny widths are no multiples of 16
    assert ((near - v).norm() > 0) == rounds and (near - v).norm() < 0.1 * v.norm()
    t.velocity(kept[0]).float().square().mean().backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.trained().values())


@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", ["flux1", "wan21-t2v"])
def test_compiled_blocks_answer_alike_with_and_without_gradient(name: str, backend: str) -> None:
    t = Tiny(name, "bf16")
    policy = policy_over(t.adapter, "bf16", **LORA, compile=True, compile_backend=backend)
    with torch.no_grad():
        step = t.roll()[1].kept[0]
        asleep = t.velocity(step)
    awake = t.velocity(step)
    awake.float().square().mean().backward()
    assert (awake - asleep).float().norm() <= 0.02 * asleep.float().norm()  # a floor is what a run measures
    assert any(p.grad is not None and p.grad.any() for p in policy.trained().values())
