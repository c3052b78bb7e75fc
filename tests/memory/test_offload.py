"""Fewer bits and idle parts: training still sees to the bit what sampling saw, gradients are those of the rounded weights, and the bytes
go where they should."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from flow_factory.checkpoints.lora_file import LORA_FILE
from flow_factory.checkpoints.model_files import load_model, save_model
from flow_factory.config import ConfigError, load_config
from flow_factory.models.base import ModelAdapter
from flow_factory.models.loading import load_adapter
from flow_factory.models.quantized import check_quantization
from flow_factory.policy.policy import Policy
from flow_factory.utils.errors import UserError
from flow_factory.utils.offload import FLOAT8, to_cpu, to_device
from tests.conftest import condition, flux, fresh_policy, policy_over, rolled, velocity_at
from tests.core.test_exactness import DTYPES, exact
from tests.tiny.run import logged, tiny, trained, write_run
from tests.tiny.several import several

LORA = {"finetune_type": "lora", "target_modules": ("default",)}
PRECISION = {"float32": "no", "bfloat16": "bf16"}


def autocast(dtype: str) -> Any:
    """As a run computes: bfloat16 beside float32 LoRA weights needs it."""
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if dtype == "bfloat16" else nullcontext()


def linears(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The frozen linear layers, by the names that they had before the LoRA."""
    for name, m in module.named_modules():
        if isinstance(m, nn.Linear) and "lora_" not in name:
            yield name.removesuffix(".base_layer"), m


def gradients(adapter: ModelAdapter, policy: Policy, dtype: str) -> tuple[Tensor, dict[str, Tensor]]:
    """A velocity, and the gradient of its square in the trained weights."""
    with autocast(dtype):
        v = velocity_at(adapter, condition(adapter), DTYPES[dtype])
    v.float().square().sum().backward()
    return v.detach(), {k: p.grad for k, p in policy.trained().items() if p.grad is not None}


def small(kind: str, dtype: str, folder: Path, **model: Any) -> tuple[ModelAdapter, Policy]:
    """A LoRA over a frozen transformer in fewer bits."""
    if kind.startswith("torchao"):
        adapter = load_adapter(str(folder), "flux1", {"float32": "fp32", "bfloat16": "bf16"}[dtype], quantization=kind)
        return adapter, policy_over(adapter, PRECISION[dtype], True, **LORA, quantization=kind, **model)
    adapter = flux(DTYPES[dtype])
    return adapter, policy_over(adapter, PRECISION[dtype], True, **LORA, layerwise_casting=kind, **model)


def rounded(kind: str, dtype: str, source: ModelAdapter) -> tuple[ModelAdapter, Policy]:
    """The oracle: plain layers that hold the values to which `source`'s weights are rounded."""
    adapter = flux(DTYPES[dtype])
    kept = dict(linears(source.field.bare["transformer"]))
    for name, m in linears(adapter.field.bare["transformer"]):
        w: Any = kept[name].weight
        m.weight.data = (w.dequantize() if hasattr(w, "dequantize") and kind.startswith("torchao") else w).to(m.weight.dtype)
        if m.bias is not None:
            m.bias.data = kept[name].bias.to(m.bias.dtype)
    return adapter, policy_over(adapter, PRECISION[dtype], True, **LORA)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["torchao_int8", "torchao_int8_dynamic", *FLOAT8])
def test_the_log_prob_of_a_replay_is_that_of_the_rollout(kind: str, dtype: str, flux_folder: Path) -> None:
    adapter, _ = small(kind, dtype, flux_folder)
    cond = condition(adapter)
    with autocast(dtype):
        steps = rolled(adapter, cond)
        assert exact(adapter, steps, cond) and all(step.logp.isfinite().all() for step in steps)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", FLOAT8)
def test_velocity_and_gradients_are_those_of_the_rounded_weights(kind: str, dtype: str, flux_folder: Path) -> None:
    adapter, policy = small(kind, dtype, flux_folder)
    plain, oracle = rounded(kind, dtype, adapter)
    v, grads = gradients(adapter, policy, dtype)
    same, expected = gradients(plain, oracle, dtype)
    assert torch.equal(v, same) and len(grads) == len(policy.trained()) == len(expected)
    assert all(torch.equal(grads[k], expected[k]) and grads[k].any() for k in grads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_computes_and_differentiates_nearly_as_its_dequantised_weights(dtype: str, flux_folder: Path) -> None:
    """Its kernel scales after the product."""
    adapter, policy = small("torchao_int8", dtype, flux_folder)
    plain, oracle = rounded("torchao_int8", dtype, adapter)
    v, grads = gradients(adapter, policy, dtype)
    near, expected = gradients(plain, oracle, dtype)
    most = 1e-4 if dtype == "float32" else 0.1
    assert torch.equal(v, near) or (v - near).norm() < most * near.norm()
    assert len(grads) == len(policy.trained()) == len(expected)
    for k, g in grads.items():
        assert g.any() and (g - expected[k]).norm() <= most * expected[k].norm(), k


@pytest.mark.parametrize("kind", FLOAT8)
def test_the_frozen_layers_stay_in_8_bits_through_a_forward_and_backward(kind: str, flux_folder: Path) -> None:
    adapter, policy = small(kind, "bfloat16", flux_folder, lora_rank=4)
    transformer = adapter.field.bare["transformer"]

    def kept() -> dict[str, torch.dtype]:
        return {name: p.dtype for name, p in transformer.named_parameters()}

    before = kept()
    gradients(adapter, policy, "bfloat16")
    assert kept() == before
    assert {before[f"transformer_blocks.0.ff.net.2.{k}"] for k in ("base_layer.weight", "base_layer.bias")} == {FLOAT8[kind]}
    assert {p.dtype for p in policy.trained().values()} == {torch.float32}
    share = sum(p.numel() for p in transformer.parameters() if p.dtype == FLOAT8[kind]) / sum(p.numel() for p in transformer.parameters())
    assert share > 0.3  # norms and their modulation, a small part of a large model, stay as they are


@pytest.mark.parametrize("kind", ["torchao_int8", "torchao_int8_dynamic"])
def test_the_lora_of_a_quantised_base_is_saved_as_diffusers_reads_it(kind: str, flux_folder: Path, tmp_path: Path) -> None:
    adapter, policy = small(kind, "float32", flux_folder)
    save_model(tmp_path, policy, FluxPipeline)
    assert isinstance(adapter.pipe, FluxPipeline)
    pipe = FluxPipeline.from_pretrained(flux_folder)
    pipe.load_lora_weights(tmp_path)
    there = {k.replace(".default_0.", ".default."): p for k, p in pipe.transformer.named_parameters() if "lora_" in k}
    mine = {k.removeprefix("transformer."): p for k, p in policy.trained().items()}
    assert sorted(there) == sorted(mine) and all(torch.equal(there[k], mine[k]) for k in mine)

    other = load_adapter(str(flux_folder), "flux1", "fp32", quantization=kind)
    again = fresh_policy(other, **LORA, quantization=kind)
    load_model(tmp_path, again)
    assert torch.equal(velocity_at(other, condition(other)), velocity_at(adapter, condition(adapter)))


@pytest.mark.parametrize("override", ["model.quantization=torchao_int8", "model.layerwise_casting=fp8_e4m3", "model.offload_idle=true"])
def test_a_run_learns_and_is_on_policy(override: str, tmp_path: Path) -> None:
    learns_on_policy(tmp_path, override)


def learns_on_policy(folder: Path, *overrides: str) -> None:
    run = tiny(folder, "train.enable_gradient_checkpointing=true", "train.max_epochs=1", "train.offload_samples_to_cpu=true", *overrides)
    before = trained(run)
    run()
    after = trained(run)
    assert any(not torch.equal(before[k], after[k]) for k in before)
    last = [line for line in logged(folder / "save" / "run") if "train/on_policy_error" in line][-1]
    assert last["train/on_policy_error"] == 0 and last["train/first_update_effect"] > 0


def test_idle_parts_wait_on_the_cpu_and_come_when_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = flux()
    adapter.drop_encoders()  # as a run does, once its rows are encoded
    policy = fresh_policy(adapter, **LORA, offload_idle=True)
    vae = adapter.pipe.vae
    assert [hook.model for hook in policy.idle] == [p for p in adapter.pipe.components.values() if isinstance(p, nn.Module)] == [vae]
    moves: list[Any] = []
    to = type(vae).to
    monkeypatch.setattr(type(vae), "to", lambda self, *a: moves.append(a[0]) or to(self, "cpu"))
    (hook,) = policy.idle
    hook.hook.execution_device = torch.device("meta")  # stands for a GPU: nothing is computed there
    assert adapter.pipe._execution_device.type == "meta" and vae.device.type == "cpu"  # where the pipeline makes its latents
    vae.decode(torch.zeros(1, 4, 4, 4))
    vae.encode(torch.zeros(1, 3, 32, 32))
    assert [torch.device(m).type for m in moves] == ["meta", "meta"]  # by decode and encode themselves, not by forward alone
    policy.offload_idle()
    assert torch.device(moves[-1]).type == "cpu"


def test_idle_parts_change_no_sample_and_no_velocity() -> None:
    adapters = [flux(), flux()]
    for adapter, idle in zip(adapters, (False, True), strict=True):
        policy_over(adapter, **LORA, offload_idle=idle)
    (one, steps), (other, same) = [(a, rolled(a, condition(a))) for a in adapters]
    assert all(torch.equal(a.x1, b.x1) for a, b in zip(steps, same, strict=True))
    assert torch.equal(velocity_at(one, condition(one)), velocity_at(other, condition(other)))


def test_parked_tensors_keep_values_and_layout() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4).transpose(1, 2)
    kept = to_cpu({"x": x, "n": 3, "none": None})
    assert kept["n"] == 3 and kept["none"] is None and torch.equal(kept["x"], x) and kept["x"].stride() == x.stride()
    assert torch.equal(to_device(kept, "cpu")["x"], x)


@pytest.mark.slow
def test_offloaded_blocks_learn_what_whole_ones_learn(tmp_path: Path) -> None:
    runs = {"whole": [], "blocks": ["model.offload_blocks=true", "model.offload_idle=true"]}
    said = several(tmp_path, 1, runs)
    assert [said[name][0]["engine"] for name in runs] == ["one process", "FSDP2"]
    whole, blocks = (load_file(tmp_path / "save" / name / "checkpoints" / "epoch_2" / LORA_FILE) for name in runs)
    assert whole.keys() == blocks.keys() and all(torch.equal(whole[k], blocks[k]) for k in whole)


def test_encoders_are_moved_for_rows_that_are_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[torch.device] = []
    place = ModelAdapter.place
    monkeypatch.setattr(ModelAdapter, "place", lambda self, device: placed.append(device) or place(self, device))
    tiny(tmp_path)
    assert placed
    placed.clear()
    tiny(tmp_path)
    assert not placed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.quantization=torchao_int8", "model.finetune_type=full"], "torchao_int8 keeps frozen weights in fewer bits"),
        (["model.layerwise_casting=fp8_e4m3", "model.finetune_type=full"], "fp8_e4m3 keeps frozen weights in fewer bits"),
        (["model.quantization=torchao_int8"], "train.enable_gradient_checkpointing: true"),
        (["model.layerwise_casting=fp8_e5m2"], "train.enable_gradient_checkpointing: true"),
        (["model.quantization=bnb_4bit", "model.layerwise_casting=fp8_e4m3"], "beside quantization: bnb_4bit"),
        (["model.quantization=bnb_4bit", "config_file=examples/launch/fsdp2.yaml"], "cannot be cut into shards, and FSDP2 shards them"),
        (
            ["model.quantization=bnb_8bit", "config_file=examples/launch/deepspeed_zero3.yaml", "num_processes=2"],
            "DeepSpeed ZeRO-3 shards them",
        ),
        (["model.quantization=bnb_8bit", "model.offload_blocks=true"], "offload_blocks: false"),
        (
            ["model.offload_blocks=true", "config_file=examples/launch/deepspeed_zero2.yaml"],
            "is DeepSpeed ZeRO-2, and model.offload_blocks",
        ),
        (["model.offload_blocks=true", "config_file=examples/launch/multi_gpu.yaml"], "is DDP, and model.offload_blocks"),
        (["model.layerwise_casting=fp8_e4m3", "train.enable_gradient_checkpointing=true", "model.compile=true"], "compile: false"),
        (["model.quantization=int3"], "bnb_8bit"),
        (["model.quantization=torchao_float8_dynamic"], "makes products in bf16; write mixed_precision: bf16"),
        (["model.quantization=torchao_int8_dynamic", "model.offload_blocks=true"], "offload_blocks: false"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write_run(tmp_path), overrides)
    assert message in str(error.value)


def test_bitsandbytes_goes_back_through_its_weights_and_needs_no_recomputing(tmp_path: Path) -> None:
    assert load_config(write_run(tmp_path), ["model.quantization=bnb_4bit"]).model.quantization == "bnb_4bit"


def test_a_quantiser_that_does_not_work_here_is_said_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("flow_factory.models.quantized.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"torchao_int8 needs torchao: pip install 'flow-factory\[quantization\]'"):
        check_quantization("torchao_int8")
    monkeypatch.setattr("flow_factory.models.quantized.find_spec", lambda name: name)
    with pytest.raises(UserError, match="bnb_4bit needs a GPU, and this machine has none"):
        tiny(tmp_path, "model.quantization=bnb_4bit", "data.dataset_dir=nowhere")  # before the data is looked at
