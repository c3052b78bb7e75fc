"""The proof of attention on every family: it takes the kernels of this machine, and no wrong one."""

import pytest

from flow_factory.training.attention_proof import problems_of
from tests.conftest import policy_over
from tests.models.cases import EACH
from tests.models.harness import Tiny
from tests.tiny.kernels import WRONG

LORA = {"finetune_type": "lora", "target_modules": ("default",)}


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", EACH)
def test_right_kernels_pass_and_wrong_ones_do_not(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    t = Tiny(name, dtype)
    policy = policy_over(t.adapter, {"fp32": "no"}.get(dtype, dtype), target_components=tuple(t.adapter.field.bare), **LORA)
    assert problems_of(policy, [None, "_native_math"], t.roll) == {None: [], "_native_math": []}
    for kernel, wrong in WRONG.items():
        if kernel == "scaled" and dtype == "bf16":
            continue  # 2 % are within four times the rounding of some families' sums
        monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", wrong)
        assert problems_of(policy, [None], t.roll)[None], kernel
