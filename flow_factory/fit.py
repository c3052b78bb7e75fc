"""Whether a run fits: the estimate of its memory in lines, on which cards, and what would make it smaller."""

from pathlib import Path

import psutil
import torch

from flow_factory.config import RunConfig
from flow_factory.errors import UserError
from flow_factory.memory import Part, estimate, in_main_memory, peak
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.models.quantized import check_quantization
from flow_factory.weighing import shape_of, stored_parameters

CARDS = (24, 48, 80)
"""GB of common GPUs, for machines that have none."""
ROOM = 0.92
"""Of a GPU's memory, what an estimate may take: torch's allocator leaves gaps."""


def memory_lines(config: RunConfig) -> list[str]:
    folder = Path(config.model.model_name_or_path)
    checkpoint = folder if folder.is_dir() else None
    family: type[ModelAdapter] = MODELS[config.model.model_type].of(str(folder), config.model.pipeline_class)
    if checkpoint is None and not family.published:
        return ["no estimate: the checkpoint is not on disk, and its size is not known here"]
    name = config.model.model_name_or_path
    parameters = stored_parameters(checkpoint) if checkpoint else dict(family.published_as(name)[0])
    parts = estimate(config, family, parameters, shape_of(family, config.model.target_components[0], checkpoint, name))
    n = config.num_processes
    lines = [f"{p.gb:8.2f} GB  {p.name}{when(p)}" for p in parts if not p.host]
    lines.append(f"{peak(parts):8.2f} GB  at the peak, estimated, rewards not counted; {verdict(config, parts)}")
    if host := in_main_memory(parts):
        lines += [f"{p.gb:8.2f} GB  of main memory: {p.name}{when(p)}" for p in parts if p.host]
        lines.append(f"{host:8.2f} GB  of main memory at the peak{f', {n * host:.2f} GB for all {n} processes' if n > 1 else ''}")
    return [f"{config.engine.name}, {n} process{'es' if n > 1 else ''}", *lines, *quantiser_lines(config)]


def when(part: Part) -> str:
    return "" if part.phase == "always" else f" ({part.phase})"


def quantiser_lines(config: RunConfig) -> list[str]:
    """Why the weights cannot be quantised on this machine, which need not be the one that trains."""
    try:
        check_quantization(config.model.quantization)
    except UserError as error:
        return [f"not on this machine: {error}"]
    return []


def verdict(config: RunConfig, parts: list[Part]) -> str:
    """Whether it fits here, or on which cards it would."""
    most = peak(parts)
    if torch.cuda.is_available():
        has = torch.cuda.get_device_properties(0).total_memory / 1e9
        return f"fits this {has:.0f} GB GPU" if most < ROOM * has else f"does NOT fit this {has:.0f} GB GPU{advice(config, parts)}"
    fits = [card for card in CARDS if most < ROOM * card]
    cards = f"on a GPU it needs {fits[0]} GB" if fits else f"no GPU of {CARDS[-1]} GB holds it{advice(config, parts)}"
    memory = psutil.virtual_memory().total / 1e9
    later = in_main_memory([p for p in parts if p.phase != "encoding"])  # what is loaded stays where it is
    here = "" if most + later < 0.8 * memory else f"; it does NOT fit this machine ({memory:.0f} GB, no GPU)"
    return cards + here


def advice(config: RunConfig, parts: list[Part]) -> str:
    """The largest part of the phase with the peak, and the keys that are not yet used against it."""
    phases = {phase: [p for p in parts if not p.host and p.phase in ("always", phase)] for phase in ("rollout", "training")}
    phases["encoding"] = [p for p in parts if p.phase == "encoding"]
    worst = max(phases.values(), key=lambda of: sum(p.gb for p in of))
    largest = max(worst, key=lambda p: p.gb).name.partition(":")[0].partition(",")[0].partition(" (")[0]
    tries = [way for way, used in ways(config, largest) if not used]
    return f"; most is {largest}: try {', '.join(tries)}" if tries else f"; most is {largest}"


def ways(config: RunConfig, part: str) -> list[tuple[str, bool]]:
    """(what makes a part of the estimate smaller, whether the config has it)."""
    model, train, engine = config.model, config.train, config.engine
    fewer = model.quantization is not None or model.layerwise_casting is not None
    shards = ("FSDP or ZeRO-3 by config_file", engine.shards_weights or fewer)
    if part == "frozen weights":
        full = model.finetune_type == "full" or engine.shards_weights
        return [
            ("mixed_precision: bf16", config.mixed_precision != "no"), ("model.quantization: bnb_4bit", fewer or full), shards,
            ("model.offload_blocks: true", engine.offload or fewer),
        ]  # fmt: skip
    if part == "activations":
        return [
            ("train.enable_gradient_checkpointing: true", train.enable_gradient_checkpointing),
            ("a smaller train.per_device_batch_size", train.per_device_batch_size == 1), ("a smaller train.resolution", False),
        ]  # fmt: skip
    if part.startswith("forward or decoding"):
        small = train.per_device_batch_size == config.eval.per_device_batch_size == 1
        return [("model.vae_slicing: true", model.vae_slicing), ("smaller per_device_batch_size in train and eval", small)]
    if part == "VAE and other parts of a rollout":
        return [("model.offload_idle: true", model.offload_idle)]
    if part == "kept latents":
        return [("train.offload_samples_to_cpu: true", train.offload_samples_to_cpu)]
    if part == "text encoders":
        return [("a first run with a data.cache_dir on a larger card, whose encoded rows this one finds", False)]
    light = ("train.optimizer: adamw8bit", train.optimizer == "adamw8bit" or engine.shards_optimizer)
    return [
        ("model.finetune_type: lora", model.finetune_type == "lora"), light, shards, ("model.offload_blocks: true", engine.offload),
    ]  # fmt: skip
