"""What an accelerate file asks for is what the run does, or an error that says what would be right."""

import json
from pathlib import Path

import pytest

from flow_factory.config import ConfigError, load_config
from flow_factory.config.engine import EngineSettings, engine_of
from tests.tiny.run import ROOT, write_run

LAUNCH = ROOT / "examples" / "launch"
FSDP, ZERO = "distributed_type: FSDP\nfsdp_config: {%s}\n", "distributed_type: DEEPSPEED\ndeepspeed_config: {%s}\n"
SHARED = {"ddp": (), "fsdp": ("weights", "gradients", "optimizer"), "zero1": ("optimizer",), "zero2": ("gradients", "optimizer"),
          "zero3": ("weights", "gradients", "optimizer")}  # fmt: skip


def written(folder: Path, text: str) -> str:
    (folder / "launch.yaml").write_text(text)
    return str(folder / "launch.yaml")


@pytest.mark.parametrize(("file", "settings"), [
    ("multi_gpu", EngineSettings()),
    ("multi_node", EngineSettings()),
    ("fsdp2", EngineSettings("fsdp")),
    ("fsdp_full_shard", EngineSettings("fsdp", hybrid=False)),
    ("fsdp_hybrid_shard", EngineSettings("fsdp", hybrid=True)),
    ("fsdp_grad_op_shard", EngineSettings("fsdp", reshard=False)),
    ("fsdp2_offload", EngineSettings("fsdp", offload=True)),
    ("deepspeed_zero1", EngineSettings("zero", 1)),
    ("deepspeed_zero2", EngineSettings("zero", 2)),
    ("deepspeed_zero3", EngineSettings("zero", 3)),
    ("deepspeed_zero2_offload", EngineSettings("zero", 2, offload_optimizer=True)),
    ("deepspeed_zero3_offload", EngineSettings("zero", 3, offload=True, offload_optimizer=True)),
])  # fmt: skip
def test_the_files_that_come_along(file: str, settings: EngineSettings) -> None:
    assert engine_of(str(LAUNCH / f"{file}.yaml")) == settings
    kind = f"zero{settings.stage}" if settings.kind == "zero" else settings.kind
    assert tuple(part for part in ("weights", "gradients", "optimizer") if getattr(settings, f"shards_{part}")) == SHARED[kind]


def test_every_file_that_comes_along_is_read() -> None:
    assert {engine_of(str(file)).name for file in LAUNCH.glob("*.yaml")} == {"DDP", "FSDP2", *(f"DeepSpeed ZeRO-{n}" for n in (1, 2, 3))}


@pytest.mark.parametrize(("text", "settings"), [
    ("distributed_type: 'NO'\n", EngineSettings()),
    ("num_processes: 8\n", EngineSettings()),
    (FSDP % "fsdp_sharding_strategy: FULL_SHARD, fsdp_offload_params: false", EngineSettings("fsdp", hybrid=False)),  # FSDP1's keys
    (FSDP % "fsdp_sharding_strategy: 2", EngineSettings("fsdp", reshard=False, hybrid=False)),
    (FSDP % "fsdp_sharding_strategy: HYBRID_SHARD", EngineSettings("fsdp", hybrid=True)),
    (FSDP % "fsdp_sharding_strategy: 5", EngineSettings("fsdp", reshard=False, hybrid=True)),
    (FSDP % "fsdp_reshard_after_forward: false, fsdp_sharding_strategy: 4", EngineSettings("fsdp", reshard=False, hybrid=True)),
    (FSDP % "fsdp_transformer_layer_cls_to_wrap: 'A, B'", EngineSettings("fsdp", blocks=("A", "B"))),
    (ZERO % "", EngineSettings("zero", 2)),
    (ZERO % "zero_stage: 3, offload_param_device: CPU", EngineSettings("zero", 3, offload=True)),
    (ZERO % "zero_stage: 2, offload_param_device: cpu", EngineSettings("zero", 2)),
    (FSDP % "fsdp_activation_checkpointing: true", EngineSettings("fsdp", recompute=True)),
])  # fmt: skip
def test_files_of_others(tmp_path: Path, text: str, settings: EngineSettings) -> None:
    assert engine_of(written(tmp_path, text)) == settings


@pytest.mark.parametrize(("text", "message"), [
    ("a: [", "launch.yaml:1: not valid YAML"),
    ("- a\n", "distributed_type is missing"),
    ("distributed_type: MEGATRON_LM\n", "distributed_type is MEGATRON_LM; it must be MULTI_GPU, FSDP or DEEPSPEED"),
    (FSDP % "fsdp_sharding_strategy: NO_SHARD", "NO_SHARD does not work here; that is plain data parallel: multi_gpu.yaml"),
    (FSDP % "fsdp_reshard_after_forward: HALF", "HALF does not work here; known: TRUE, FULL_SHARD, HYBRID_SHARD, FALSE, SHARD_GRAD_OP"),
    (ZERO % "zero_stage: 4", "zero_stage: 4; ZeRO has the stages 1, 2 and 3"),
    (ZERO % "offload_optimizer_device: nvme", "offload_optimizer_device: nvme does not work here; write cpu or none"),
    (ZERO % "deepspeed_config_file: gone.json", 'there is no "gone.json"'),
    ("distributed_type: FSDP\nfsdp_config: [1]\n", "fsdp_config: wants a mapping of keys to values, got [1]"),
    ("distributed_type: FSDP\nfsdp_config: {fsdp_transformer_layer_cls_to_wrap: 3}\n", "wants names of classes, got 3"),
    (ZERO % "zero_stage: many", 'zero_stage: "many"; ZeRO has the stages 1, 2 and 3'),
    (ZERO % "deepspeed_config_file: 3", "deepspeed_config_file: there is no 3"),
    ("distributed_type: !!binary aGk=\n", "a config has no values of the kind tag:yaml.org,2002:binary"),
])  # fmt: skip
def test_what_does_not_work_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match="config_file: ") as error:
        engine_of(written(tmp_path, text))
    assert message in str(error.value)


def test_deepspeeds_own_file(tmp_path: Path) -> None:
    """Its ZeRO keys count; what the run's YAML decides may only be `auto` there."""
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 3, "overlap_comm": True}, "train_batch_size": "auto"}))
    settings = engine_of(written(tmp_path, ZERO % "deepspeed_config_file: ds.json"))
    assert settings.stage == 3 and settings.extra == {"zero_optimization": {"stage": 3, "overlap_comm": True}}
    for text, message in (
        ('{"bf16": {"enabled": true}}', "bf16 is set by mixed_precision in the run's YAML; remove it here, or write auto"),
        ('{"zero_optimization": {"stage3_param_persistence_threshold": 9}}', "stage3_param_persistence_threshold must go"),
        ("{", "ds.json is not JSON"),
    ):
        (tmp_path / "ds.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            engine_of(written(tmp_path, ZERO % "deepspeed_config_file: ds.json"))


@pytest.mark.parametrize(("overrides", "message"), [
    (("mixed_precision=fp16",), "mixed_precision: fp16 needs a loss scale, and FSDP2 has none"),
    (("train.optimizer=adamw8bit",), "train.optimizer: adamw8bit cannot be sharded by FSDP2; write adamw"),
])  # fmt: skip
def test_what_an_engine_cannot_do_is_said_before_anything_is_loaded(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write_run(tmp_path), [*overrides, f"config_file={LAUNCH}/fsdp2.yaml"])
    assert message in str(error.value)


def test_what_public_files_ask_for_is_done_or_said(tmp_path: Path) -> None:
    """Activation checkpointing is a key of the run's YAML here; ZeRO below stage 3 has no parameters of its own to move away."""
    file = written(tmp_path, FSDP % "fsdp_activation_checkpointing: true")
    config = load_config(write_run(tmp_path), [f"config_file={file}"])
    assert config.train.enable_gradient_checkpointing
    (said,) = config.notices
    assert said == f"config_file: {file} says fsdp_activation_checkpointing, so train.enable_gradient_checkpointing is true"
    file = written(tmp_path, ZERO % "zero_stage: 2, offload_param_device: cpu")
    config = load_config(write_run(tmp_path), [f"config_file={file}", "num_processes=2"])
    assert any("offload_param_device: cpu has no effect with zero_stage: 2" in line for line in config.notices)
