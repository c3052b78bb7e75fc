"""The estimate of memory against runs that are built and counted."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel

from benchmarks.epoch import MIDDLE
from flow_factory.check import report as report_of
from flow_factory.config import RunConfig, load_config
from flow_factory.config.engine import MACHINES, EngineSettings
from flow_factory.memory.estimate import estimate, gathered, kept_weights, optimised
from flow_factory.memory.fit import memory_lines
from flow_factory.memory.parts import CONTEXT, Part, in_main_memory, peak
from flow_factory.memory.sizes import by_block, stored_bytes, stored_parameters, weights_of
from flow_factory.models import MODELS
from flow_factory.models.flux1 import Flux1
from flow_factory.training.run import Run
from tests.tiny.flux import flux_pipeline
from tests.tiny.run import ROOT, checkpoint, tiny, write_run
from tests.tiny.weighed import counted, static_bytes


def stepped(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """After an epoch whose gradients were not forgotten."""
    monkeypatch.setattr(type(run.context.engine.stepper), "zero_grad", lambda *_, **__: None)
    run.trainer.epoch()
    return run


RECOMPUTED = "train.enable_gradient_checkpointing=true"


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.finetune_type=lora"],
        ["model.finetune_type=lora", "mixed_precision=bf16", "model.target_modules=all", "train.ema_decay=0"],
        ["model.finetune_type=full"],
        ["model.finetune_type=full", "mixed_precision=bf16"],
        ["model.finetune_type=full", "mixed_precision=bf16", "model.master_weight_dtype=fp32", "model.target_modules=attn.to_q"],
        ["model.finetune_type=full", "train.kl_beta=0.1"],
        ["model.quantization=torchao_int8", RECOMPUTED],
        ["model.quantization=torchao_int8_dynamic", "mixed_precision=bf16"],
        ["model.quantization=torchao_int8", "mixed_precision=bf16", RECOMPUTED],
        ["model.layerwise_casting=fp8_e4m3", "mixed_precision=bf16", RECOMPUTED],
        ["model.layerwise_casting=fp8_e5m2", "model.offload_idle=true", RECOMPUTED],
    ],
    ids=" ".join,
)
def test_static_parts_are_what_a_run_holds(overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stepped(tiny(tmp_path, "train.learning_rate=1.0e-5", *overrides), monkeypatch)
    held, said = counted(run), static_bytes(run.context.config)
    assert held["trained"] and held["gradients"] and held["optimiser"]
    for name, size in held.items():
        assert said[name] == pytest.approx(size, rel=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_static_parts_of_a_model_of_middling_size(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flux_pipeline(transformer=MIDDLE).save_pretrained(tmp_path / "checkpoint")
    keys = [f"model.model_name_or_path={tmp_path}/checkpoint", f"model.finetune_type={kind}", "train.learning_rate=1.0e-5"]
    run = stepped(tiny(tmp_path, *keys), monkeypatch)
    held, said = counted(run), static_bytes(run.context.config)
    assert held["frozen"] + held["trained"] > 200e6 and all(said[name] == pytest.approx(size, rel=1e-6) for name, size in held.items())


@cache
def kontext(**call: Any) -> float:
    config = load_config(ROOT / "examples/grpo/lora/flux1_kontext.yaml", [f"train.{k}={v}" for k, v in call.items()])
    family = MODELS["flux1-kontext"]
    return sum(p.gb for p in estimate(config, family, dict(family.published), flux_shape()) if p.name == "activations")


@cache
def flux_shape() -> Any:
    with init_empty_weights():
        return FluxTransformer2DModel(guidance_embeds=True)


def test_a_condition_picture_counts_with_the_size_that_the_model_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert kontext(condition_image_size=1024) / kontext(condition_image_size=512) == pytest.approx(
        (1024 + 512 + 4096) / (1024 + 512 + 1024)
    )


def of_flux(*overrides: str, kind: str = "lora") -> tuple[RunConfig, list[Part]]:
    """FLUX.1-dev's example and its estimate."""
    config = load_config(ROOT / f"examples/grpo/{kind}/flux1.yaml", overrides)
    return config, estimate(config, Flux1, dict(Flux1.published), flux_shape())


def gb(parts: Iterable[Part], name: str, host: bool | None = None) -> float:
    return sum(p.gb for p in parts if p.name.startswith(name) and host in (None, p.host))


@pytest.mark.parametrize(
    ("file", "frozen", "trained", "optimiser", "gradients"),
    [
        ("multi_gpu", 1, 1, 1, 1),
        ("deepspeed_zero1", 1, 1, 8, 1),
        ("deepspeed_zero2", 1, 1, 8, 8),
        ("deepspeed_zero3", 8, 8, 8, 8),
        ("fsdp2", 8, 8, 8, 8),
    ],
)
def test_an_engine_shares_out_what_it_says(
    file: str, frozen: int, trained: int, optimiser: int, gradients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    full = ["model.finetune_type=full", "model.master_weight_dtype=fp32", "model.target_modules=attn.to_q", "num_processes=8"]
    _, alone = of_flux(*full, "config_file=null")
    _, parts = of_flux(*full, f"config_file=examples/launch/{file}.yaml")
    shares = {"frozen weights": frozen, "trained weights (": trained, "copies": trained, "optimiser state": optimiser}
    for name, divided in shares.items():
        assert gb(parts, name) * divided == pytest.approx(gb(alone, name)) and gb(alone, name) > 0, name
    here = "gradients" if gradients == 1 else "gradients, this process's"
    mine = next(p.gb for p in parts if p.name == here)
    assert mine * gradients == pytest.approx(gb(alone, "gradients"))


@pytest.mark.slow
def test_processes_at_different_experts_keep_the_activations_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    def activations(*keys: str) -> float:
        both = ['model.target_components=["transformer", "transformer_2"]', "num_processes=8"]
        lines, _ = memory_lines(load_config(ROOT / "examples/grpo/lora/wan22_t2v.yaml", [*both, *keys]))
        return next(float(line.split()[0]) for line in lines if "activations" in line)

    assert activations("config_file=examples/launch/fsdp2.yaml") == pytest.approx(2 * activations("config_file=null"), abs=0.02)


def test_offloaded_weights_are_main_memory_and_a_block_is_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config, parts = of_flux("num_processes=1", "config_file=null", "model.offload_blocks=true", "model.offload_idle=true")
    _, whole = of_flux("num_processes=1", "config_file=null")
    for name in ("frozen weights", "trained weights (", "optimiser state", "copies"):
        assert gb(parts, name, host=True) == pytest.approx(gb(whole, name)) and gb(parts, name, host=False) == 0
    weights = weights_of(config, Flux1, dict(Flux1.published), flux_shape())
    assert gb(parts, "gathered", host=False) == pytest.approx((weights.root + 2 * weights.block) * 1e-9)
    assert peak(parts) < 0.5 * peak(whole) and in_main_memory(parts) > 20 and in_main_memory(whole) == gb(whole, "images")


@pytest.mark.exhaustive
def test_what_is_gathered_computes_in_16_bits_and_may_stay_through_a_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of machines with 8 processes each, each has all weights, unless the file says that they are shared out over all."""
    monkeypatch.chdir(ROOT)
    keys = ("model.master_weight_dtype=fp32", "num_processes=16", "config_file=examples/launch/fsdp2.yaml")
    given_back, kept = (of_flux(*keys, f"model.reshard_after_forward={said}", kind="full") for said in ("true", "false"))
    assert gb(kept[1], "gathered weights") == pytest.approx(2 * 11.9, rel=0.01)
    assert 0 < gb(given_back[1], "gathered weights") < 2
    assert [p.phase for p in kept[1] if "kept through" in p.name] == ["rollout"]
    monkeypatch.setenv(MACHINES, "2")
    for file, sharers in (("fsdp2", 8), ("fsdp_hybrid_shard", 8), ("fsdp_full_shard", 16), ("deepspeed_zero3", 16)):
        _, parts = of_flux(*keys, f"config_file=examples/launch/{file}.yaml", kind="full")
        assert gb(parts, "trained weights (") == pytest.approx(4 * 11.9 / sharers, rel=0.01), file
    lines, _ = memory_lines(given_back[0].model_copy(), gpu=80)
    assert lines[1].startswith("each weight is sharded over 8 of 16 processes; 23.80 GB are gathered for every forward of a rollout")
    for gpu, takes in ((80, "false"), (48, "true")):
        lines, _ = memory_lines(load_config(ROOT / "examples/grpo/full/flux1.yaml", keys), gpu)
        assert any(f"reshard_after_forward: auto takes {takes} for a {gpu} GB GPU" in line for line in lines), gpu


@pytest.mark.exhaustive
def test_files_are_shared_and_copied_only_where_they_cannot_be_cast_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    t5 = 2 * 4.762
    for dtype, width in (("BF16", 2), ("F32", 4)):
        files = {part: {dtype: width * n} for part, n in Flux1.published.items()}
        for kind, keys in (("full", ("model.master_weight_dtype=fp32",)), ("lora", ()), ("lora", ("data.idle_encoders=offload",))):
            config, _ = of_flux(*keys, kind=kind)
            parts = estimate(config, Flux1, dict(Flux1.published), flux_shape(), files)
            assert in_main_memory(parts, shared=True) == pytest.approx(width * 1e-9 * sum(Flux1.published.values()))
            cast = gb(parts, "text encoders and VAE in mixed")
            assert in_main_memory(parts) == pytest.approx(cast or in_main_memory(parts)) and (cast > t5) == (dtype == "F32") == (cast > 0)
    mixed = files | {"transformer": {"F32": 4e9, "BF16": 22e9}}
    for kind, width in (("full", 4), ("lora", 2)):
        parts = estimate(of_flux("model.master_weight_dtype=fp32", kind=kind)[0], Flux1, dict(Flux1.published), flux_shape(), mixed)
        assert gb(parts, "transformers, until they are on the device") == pytest.approx(width * 11.9, rel=0.01)
    eight = estimate(of_flux("model.layerwise_casting=fp8_e4m3", RECOMPUTED)[0], Flux1, dict(Flux1.published), flux_shape())
    assert 11.9 < gb(eight, "transformers, until they are on the device") < 16, "norms and embeddings stay in 16 bits"


def test_blocks_and_the_rest_are_the_whole() -> None:
    sizes = stored_bytes(flux_shape(), torch.bfloat16)
    blocks = by_block(flux_shape(), sizes)
    assert len(blocks) == 1 + 19 + 38 and sum(blocks.values()) == sum(sizes.values()) == 2 * 11_901_408_320
    assert all(blocks[f"transformer_blocks.{k}"] == blocks["transformer_blocks.0"] for k in range(19))


@pytest.mark.parametrize(("kind", "bytes_a_weight"), [("bnb_8bit", 1.0), ("bnb_4bit", 0.516), ("torchao_int8", 1.0)])
def test_quantised_weights_have_their_bits_and_scales(kind: str, bytes_a_weight: float) -> None:
    layer = "transformer_blocks.0.ff.net.2"
    dense, small = stored_bytes(flux_shape(), torch.bfloat16), stored_bytes(flux_shape(), torch.bfloat16, kind)
    assert small[f"{layer}.weight"] / (dense[f"{layer}.weight"] / 2) == pytest.approx(bytes_a_weight, rel=1e-3)
    assert small[f"{layer}.bias"] == dense[f"{layer}.bias"]


def test_zero_keeps_float32_weights_and_a_bucket_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config, _ = of_flux("num_processes=8", "config_file=null", "model.finetune_type=full", "model.master_weight_dtype=bf16")
    weights = weights_of(config, Flux1, dict(Flux1.published), flux_shape())
    engine = EngineSettings("zero", 2, extra={"zero_optimization": {"reduce_bucket_size": 1e6}})
    parts = [*kept_weights(config, engine, weights), *optimised(config, engine, weights), *gathered(config, engine, weights)]
    share = weights.trained * 1e-9 / 8
    assert gb(parts, "DeepSpeed's own float32 weights") == pytest.approx(4 * share) and gb(parts, "optimiser") == pytest.approx(8 * share)
    assert gb(parts, "DeepSpeed's gradient bucket") == pytest.approx(2e-3)


def test_the_check_prints_device_and_main_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flow_factory.models.quantized.find_spec", lambda name: None)
    overrides = ["model.offload_idle=true", "train.offload_samples_to_cpu=true", "model.quantization=bnb_4bit"]
    report, _ = report_of(load_config(write_run(tmp_path), overrides), gpu=24)
    lines = [line.strip() for line in report.splitlines()]
    assert any(line.endswith("of main memory: VAE and other parts of a rollout, while they wait") for line in lines)
    assert any(line.endswith("of main memory: kept latents") for line in lines) and "  DDP, 1 process" in report.splitlines()
    assert any(line.startswith("not on this machine: model.quantization: bnb_4bit needs bitsandbytes") for line in lines)
    assert f"{CONTEXT:.2f} GB  CUDA context" in lines and stored_parameters(checkpoint())["transformer"] > 1e5
