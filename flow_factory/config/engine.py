"""The engine (DDP, FSDP2, DeepSpeed) that `config_file` names, and its settings. Imports no torch."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from flow_factory.config.base import ConfigError, show
from flow_factory.config.text import read_foreign
from flow_factory.utils.errors import file_errors

LAUNCH_FILES = Path(__file__).parents[1] / "launch_files"
"""The launch files of the package; examples/launch is a link to them."""
DATA_PARALLEL = ("NO", "MULTI_GPU", "MULTI_CPU")
RESHARDS = {
    "TRUE": True, "FULL_SHARD": True, "HYBRID_SHARD": True, "FALSE": False, "SHARD_GRAD_OP": False, "HYBRID_SHARD_ZERO2": False,
}  # fmt: skip
"""FSDP2's key and the sharding strategies of FSDP1 that are the same."""
NUMBERS = {"1": "FULL_SHARD", "2": "SHARD_GRAD_OP", "3": "NO_SHARD", "4": "HYBRID_SHARD", "5": "HYBRID_SHARD_ZERO2"}
"""The sharding strategies of FSDP1."""
MACHINES = "FF_NUM_MACHINES"
"""Environment variable: the number of machines of a run that `--check` examines before any process has started."""
DEVICES = {"none": False, "cpu": True}
OURS = {
    "optimizer": "train.optimizer", "scheduler": "train.lr_scheduler", "fp16": "mixed_precision", "bf16": "mixed_precision",
    "amp": "mixed_precision", "torch_autocast": "mixed_precision", "gradient_clipping": "train.max_grad_norm",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps", "train_batch_size": "train.unique_sample_num_per_epoch",
    "train_micro_batch_size_per_gpu": "train.per_device_batch_size",
}  # fmt: skip
"""Keys of a DeepSpeed file that the run's own YAML decides; `auto` leaves them to it."""


@dataclass(frozen=True)
class EngineSettings:
    """The engine, and the few of its settings that change memory or speed."""

    kind: Literal["ddp", "fsdp", "zero"] = "ddp"
    stage: int = 0
    """The ZeRO stage: 1 shards the optimiser's state, 2 also gradients, 3 also weights."""
    reshard: bool = True
    """FSDP: a block's gathered weights are freed after its forward, and gathered again for its backward."""
    offload: bool = False
    """Sharded weights are kept in main memory; with FSDP the optimiser's state too."""
    offload_optimizer: bool = False
    keep: bool = False
    """FSDP: weights that a rollout or an evaluation has gathered stay gathered until its end."""
    hybrid: bool | None = None
    """FSDP over several machines: each machine holds all the weights, sharded over its processes. None counts as True."""
    blocks: tuple[str, ...] = ()
    """FSDP: classes that are sharded one by one; empty for those that diffusers names."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """ZeRO: the keys of the DeepSpeed file."""
    recompute: bool = False
    """The file asks for what `train.enable_gradient_checkpointing` is here."""
    idle: tuple[str, ...] = field(default=(), compare=False)
    """Settings of the file that have no effect, one line each."""

    @property
    def name(self) -> str:
        """The name for messages."""
        return {"ddp": "DDP", "fsdp": "FSDP2", "zero": f"DeepSpeed ZeRO-{self.stage}"}[self.kind]

    @property
    def shards_weights(self) -> bool:
        """Whether a process holds a part of the weights only, so that every forward is one of all processes together."""
        return self.kind == "fsdp" or self.stage == 3

    @property
    def in_step(self) -> bool:
        """Whether all processes must run the same transformers in a velocity call, because weights or gradients are exchanged one by one as
        they come.
        """
        return self.kind != "ddp"

    def sharers(self, processes: int) -> int:
        """Number of processes that a weight is sharded over: all `processes` of the run, or those of one machine."""
        machines = int(os.environ.get(MACHINES) or 0)
        here = processes // machines if machines else int(os.environ.get("LOCAL_WORLD_SIZE") or processes)  # as a launcher says
        inside = self.kind == "fsdp" and self.hybrid is not False and 0 < here < processes and processes % here == 0
        return here if inside else processes

    @property
    def shards_gradients(self) -> bool:
        return self.kind == "fsdp" or self.stage >= 2

    @property
    def shards_optimizer(self) -> bool:
        return self.kind == "fsdp" or self.stage >= 1


def found(config_file: str) -> Path:
    """The launcher's file: as given, or the file of that name among our own (public configs name folders that differ).

    Raises:
        ConfigError: neither is there.
    """
    path, ours = Path(config_file), LAUNCH_FILES / Path(config_file).name
    for file in (path, ours):
        with file_errors("config_file", file, "the user that runs this must be able to read it", ConfigError):
            if file.is_file():
                return file
    known = ", ".join(sorted(f.name for f in LAUNCH_FILES.glob("*.yaml")))
    raise ConfigError(f"config_file: there is no {path.absolute()}, and none of our own has this name; those are {known}")


def engine_of(config_file: str | None, offload_blocks: bool = False) -> EngineSettings:
    """The engine that the launcher's file names; plain data parallel without one.

    Args:
        offload_blocks: `model.offload_blocks`, which makes it FSDP2 whose shards wait in main memory.

    Raises:
        ConfigError: no such file, or one that asks for what does not work here; the message has the key and what would be right.
    """
    engine = _from_file(config_file)
    if not offload_blocks:
        return engine
    if config_file is not None and engine.kind != "fsdp":
        right = "leave one of them out" + (", or write deepspeed_zero3_offload.yaml" if engine.kind == "zero" else "")
        raise ConfigError(f"config_file: {config_file} is {engine.name}, and model.offload_blocks is FSDP2's; {right}")
    return replace(engine, kind="fsdp", offload=True)


def _from_file(config_file: str | None) -> EngineSettings:
    if config_file is None:
        return EngineSettings()
    file = found(config_file)
    try:
        settings = read_foreign(file)
    except ConfigError as error:
        raise ConfigError(f"config_file: {error}") from error
    kind = str(settings.get("distributed_type", "NO")).upper() if isinstance(settings, dict) else ""
    if kind in DATA_PARALLEL:
        return EngineSettings()
    if kind == "FSDP":
        return _fsdp(file, _mapping(settings, "fsdp_config", file))
    if kind == "DEEPSPEED":
        return _zero(file, _mapping(settings, "deepspeed_config", file))
    raise ConfigError(f"config_file: {file}: distributed_type is {kind or 'missing'}; it must be MULTI_GPU, FSDP or DEEPSPEED")


def _mapping(settings: Mapping[str, Any], key: str, file: Path) -> dict[str, Any]:
    """A part of the file; empty where there is none."""
    part = settings.get(key) or {}
    if not isinstance(part, dict):
        raise ConfigError(f"config_file: {file}: {key}: wants a mapping of keys to values, got {show(part)}")
    return dict(part)


def _fsdp(file: Path, settings: Mapping[str, Any]) -> EngineSettings:
    keys = {k.removeprefix("fsdp_"): v for k, v in settings.items()}
    words = [str(keys[key]).upper() for key in ("reshard_after_forward", "sharding_strategy") if keys.get(key) is not None] or ["TRUE"]
    strategy, last = (NUMBERS.get(word, word) for word in (words[0], words[-1]))
    if wrong := next((word for word in (strategy, last) if word not in RESHARDS), None):
        why = {"NO_SHARD": "that is plain data parallel: multi_gpu.yaml"}.get(wrong, f"known: {', '.join(RESHARDS)}")
        raise ConfigError(f"config_file: {file}: fsdp_reshard_after_forward: {wrong} does not work here; {why}")
    hybrid = last.startswith("HYBRID") if last.isupper() and "SHARD" in last else None
    names = keys.get("transformer_layer_cls_to_wrap") or ()
    blocks = tuple(n.strip() for n in names.split(",")) if isinstance(names, str) else names
    if not isinstance(blocks, list | tuple) or not all(isinstance(n, str) for n in blocks):
        raise ConfigError(f"config_file: {file}: fsdp_transformer_layer_cls_to_wrap: wants names of classes, got {show(names)}")
    reshard, offload, recompute = RESHARDS[strategy], keys.get("offload_params"), keys.get("activation_checkpointing")
    return EngineSettings("fsdp", 0, reshard, bool(offload), hybrid=hybrid, blocks=tuple(blocks), recompute=bool(recompute))


def _deepspeed_file(name: Any, file: Path) -> tuple[dict[str, Any], Path]:
    """(keys, path) of DeepSpeed's own file, which `file` names."""
    paths = (Path(name), file.parent / name) if isinstance(name, str) else ()
    source = next((p for p in paths if p.is_file()), None)
    if source is None:
        raise ConfigError(f"config_file: {file}: deepspeed_config_file: there is no {show(name)}")
    try:
        extra = json.loads(source.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config_file: {source} is not JSON: {error}") from error
    if not isinstance(extra, dict):
        raise ConfigError(f"config_file: {source}: wants an object with DeepSpeed's keys, got {show(extra)}")
    return extra, source


def _zero(file: Path, settings: Mapping[str, Any]) -> EngineSettings:
    extra: dict[str, Any] = {}
    source = file
    if (name := settings.get("deepspeed_config_file")) is not None:
        extra, source = _deepspeed_file(name, file)
    zero = _mapping(extra, "zero_optimization", source)
    if (kept := "stage3_param_persistence_threshold") in zero:
        raise ConfigError(f"config_file: {source}: {kept} must go: weights that stay gathered would outlive a swap of weights")
    for key, ours in OURS.items():
        if extra.pop(key, "auto") not in ("auto", None):
            raise ConfigError(f"config_file: {source}: {key} is set by {ours} in the run's YAML; remove it here, or write auto")
    stage = settings.get("zero_stage", zero.get("stage", 2))
    stage = int(stage) if isinstance(stage, str) and stage.isdecimal() else stage
    if not isinstance(stage, int) or isinstance(stage, bool) or stage not in (1, 2, 3):
        raise ConfigError(f"config_file: {file}: zero_stage: {show(stage)}; ZeRO has the stages 1, 2 and 3 (0 is multi_gpu.yaml)")
    offload = {}
    for part in ("param", "optimizer"):
        device = str(settings.get(f"offload_{part}_device") or _mapping(zero, f"offload_{part}", source).get("device") or "none").lower()
        if device not in DEVICES:
            raise ConfigError(f"config_file: {file}: offload_{part}_device: {device} does not work here; write cpu or none")
        offload[part] = DEVICES[device]
    idle = [f"offload_param_device: cpu has no effect with zero_stage: {stage}, where no weights are sharded; write zero_stage: 3"]
    return EngineSettings(
        "zero",
        stage,
        offload=offload["param"] and stage == 3,
        offload_optimizer=offload["optimizer"],
        extra=extra,
        idle=tuple(idle if offload["param"] and stage != 3 else ()),
    )
