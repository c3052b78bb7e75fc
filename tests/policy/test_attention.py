"""Attention's kernels are proved before they are trained with: right ones pass, wrong ones are refused with those that are right."""

import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from flow_factory.policy import attention_reference
from flow_factory.policy.attention import attention_problem, using_backend
from flow_factory.policy.attention_reference import formula
from flow_factory.training import attention_proof
from flow_factory.training.attention_proof import problems_of
from flow_factory.utils.errors import UserError
from tests.conftest import condition, flux, policy_over, rolled
from tests.tiny.kernels import WRONG, named
from tests.tiny.run import tiny

SAID = {
    "forward": "^output of attn.* is off by", "scaled": "the gradient of .* is off by", "nan": "the gradient of .* is NaN or inf",
    "forward only": "is missing", "raises": "it ends with: no backward here",
}  # fmt: skip
"""What is said of each wrong kernel."""
PRECISION = {torch.float32: "no", torch.bfloat16: "bf16"}
LORA = {"finetune_type": "lora", "target_modules": ("default",)}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


MASKS: dict[str, Any] = {
    "none": {}, "keys": {"attn_mask": torch.arange(7)[None, None, None] < 5}, "added": {"attn_mask": numbers(1, 1, 5, 7, seed=9)},
    "pairs": {"attn_mask": numbers(2, 1, 5, 7, seed=8) > -1}, "causal": {"is_causal": True}, "scaled": {"scale": 0.3},
    "groups": {"enable_gqa": True},
}  # fmt: skip


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("kind", MASKS)
def test_the_formula_is_torchs_attention_and_its_gradient(kind: str, rounds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_reference, "TILE", 30)  # two queries at a time, and one at the end
    found = []
    for attend in (partial(formula, rounds=rounds), scaled_dot_product_attention):
        q, k, v = (numbers(2, 4 if n == 5 or kind != "groups" else 2, n, 3, seed=n).requires_grad_() for n in (5, 7, 7))
        with sdpa_kernel(SDPBackend.MATH):
            out = attend(q, k, v, **MASKS[kind])
        found.append((out, *torch.autograd.grad(out, (q, k, v), numbers(2, 4, 5, 3, seed=1))))
    assert all(x.any() for x in found[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_a_query_that_may_look_at_nothing_answers_0() -> None:
    q = numbers(1, 1, 2, 3).requires_grad_()
    out = formula(q, q, q, torch.tensor([[False, False], [True, True]]))
    out.sum().backward()
    assert not out[0, 0, 0].any() and out[0, 0, 1].all() and q.grad is not None and q.grad.isfinite().all()


def found(dtype: torch.dtype, backends: list[Any]) -> dict[Any, list[tuple[str, str]]]:
    """What is wrong with backends in the tiny FLUX.1."""
    adapter = flux(dtype)
    policy, cond = policy_over(adapter, PRECISION[dtype], **LORA), condition(adapter)
    return problems_of(policy, backends, lambda: rolled(adapter, cond))


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("name", SAID)
def test_a_wrong_kernel_is_refused(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", WRONG[name])
    problems = found(dtype, [None])[None]
    assert {block for block, _ in problems} == {"FluxTransformerBlock", "FluxSingleTransformerBlock"}
    assert all(re.search(SAID[name], text) for _, text in problems), problems


@pytest.mark.parametrize("dtype", PRECISION)
def test_the_kernels_of_this_machine_are_right(dtype: torch.dtype) -> None:
    assert found(dtype, [None, "native", "_native_math"]) == {None: [], "native": [], "_native_math": []}


def test_a_choice_for_a_while_leaves_what_was_chosen() -> None:
    model = flux().field.bare["transformer"]
    processor = model.transformer_blocks[0].attn.processor
    processor._attention_backend = AttentionBackendName._NATIVE_FLASH
    with pytest.raises(ZeroDivisionError), using_backend(model, "_native_math"):
        assert processor._attention_backend == AttentionBackendName._NATIVE_MATH
        raise ZeroDivisionError
    assert processor._attention_backend == AttentionBackendName._NATIVE_FLASH


# -- as a run does it -------------------------------------------------------------------------------------------------------------------


def test_a_run_refuses_a_named_backend_that_is_wrong_and_says_which_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName._NATIVE_FLASH, named("scaled"))
    said = r"model.attn_backend: _native_flash is wrong on this machine: in Flux\w+, .* Correct here: .*\bnative\b"
    with pytest.raises(UserError, match=said):
        tiny(tmp_path, "model.attn_backend=_native_flash", "mixed_precision=bf16")
    assert not (tmp_path / "data" / "attention.jsonl").exists()


def test_what_was_proved_is_not_proved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(attention_proof, "refuse_wrong", lambda *_: asked.append(1))
    keys = ["model.attn_backend=_native_math", f"data.cache_dir={tmp_path}/cache"]
    for k, more in enumerate([[], ["mixed_precision=bf16"], [], ["model.attn_backend=null"]]):  # a CPU's own choice is not asked
        tiny(tmp_path, f"log.run_name=run{k}", *keys, *more)
    assert len(asked) == 2 == len((tmp_path / "cache" / "attention.jsonl").read_text().splitlines())


def test_cudnn_is_off_for_the_whole_process_whatever_a_library_does(tmp_path: Path) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    run = tiny(tmp_path)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    run.trainer.epoch()
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_hub_kernel_without_its_package_or_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = attention_problem("flash_hub", torch.device("cpu"), torch.float32)
    assert said is not None and "kernels" in said and "\n" not in said
    monkeypatch.setattr(attention_dispatch, "_check_attention_backend_requirements", lambda backend: None)
    kernels = ModuleType("kernels")
    kernels.get_kernel = lambda *_, **__: exec("raise OSError('no such kernel here\\nmore')")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    monkeypatch.setattr(attention_dispatch, "is_kernels_version", lambda *_: False)
    assert attention_problem("flash_hub", torch.device("cpu"), torch.float32) == "no such kernel here"
