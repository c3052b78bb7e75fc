"""Estimates of a run's peak memory by part, from the transformer's shape alone: nothing is loaded."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from torch import nn

from flow_factory.algorithms import ALGORITHMS
from flow_factory.config import RunConfig, plan_of
from flow_factory.config.engine import engine_of
from flow_factory.models.base import ModelAdapter
from flow_factory.models.loading import DTYPES
from flow_factory.policy import target_names

ACTIVATIONS = 34
"""Values of 16 bits kept for the backward of one transformer layer, in units of tokens x width, with an attention that does not keep
its matrix (Korthikanti et al., arXiv 2205.05198, section 4)."""


@dataclass(frozen=True)
class Part:
    """One line of the estimate: GB on the device of one process."""

    name: str
    gb: float
    phase: str
    """ "encoding" comes before the rest is on the device; "training" is on top of what is there "always"."""


def stored_parameters(checkpoint: Path) -> dict[str, float]:
    """Parameters of each part of a checkpoint on disk, from the headers of its safetensors files."""
    counts: dict[str, float] = {}
    for file in sorted(checkpoint.glob("*/*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        shapes = (tensor["shape"] for name, tensor in header.items() if name != "__metadata__")
        counts[file.parent.name] = counts.get(file.parent.name, 0) + sum(math.prod(s) for s in shapes)
    return counts


def shape_of(family: type[ModelAdapter], component: str, checkpoint: Path | None, name: str = "") -> Any:
    """The transformer without its weights; that of a known checkpoint of this name where there is none on disk."""
    cls = family.transformer_class()
    config: dict[str, Any] = dict(family.published_as(name)[1])
    if checkpoint is not None:
        config = cls.load_config(checkpoint / component)
    with init_empty_weights():
        return cls.from_config(config)


def estimate(config: RunConfig, family: type[ModelAdapter], parameters: dict[str, float], module: Any) -> list[Part]:
    """Peak memory of one process, by part.

    Args:
        parameters: of each part of the checkpoint.
        module: the (first) trained transformer, on the meta device.
    """
    train, model = config.train, config.model
    half = DTYPES[config.mixed_precision].itemsize
    master = DTYPES[model.master_weight_dtype].itemsize
    trained = trained_parameters(config, family, module) * len(model.target_components)  # experts are twins
    lora = model.finetune_type == "lora"
    frozen = sum(n for part, n in parameters.items() if part not in family.encoders) - (0 if lora else trained)
    encoders = sum(parameters.get(part, 0) for part in family.encoders)
    state = 2 if train.optimizer == "adamw8bit" else 8
    algorithm = ALGORITHMS[train.trainer_type](train, config.scheduler)
    copies = (train.ema_decay > 0) + len(algorithm.averages) + ("ref" in algorithm.weights and not lora)
    tokens = family.tokens_of(train.height, train.width, train.call)
    width = width_of(module.config)
    layers = sum(len(m) for m in module.children() if isinstance(m, nn.ModuleList))
    layer = ACTIVATIONS * half / 2 * tokens * width * train.per_device_batch_size
    kept = (
        layers * 2 * tokens * width * half / 2 * train.per_device_batch_size + layer
        if train.enable_gradient_checkpointing
        else layers * layer
    )
    if algorithm.guidance("policy") is None:  # others train without the negative prompt
        kept *= family.passes({"guidance_scale": train.guidance_scale, **train.call})
    kept /= model.context_parallel
    plan = plan_of(config)
    states = 2 * DTYPES[train.latent_storage_dtype].itemsize * plan.trained_points if train.stochastic else half
    others = (half * len(algorithm.weights) + 4 * algorithm.with_mean) * plan.trained_points  # velocities of kept weights, means
    rolled, trained_on = (n * train.per_device_batch_size for n in (plan.micro_batches_per_rank, plan.trained_batches_per_rank))
    rollouts = 0 if train.offload_samples_to_cpu else tokens * 64 * (states * rolled + others * trained_on)
    shards = config.num_processes if engine_of(config.config_file).shards_weights else 1
    gb, shared = 1e-9, 1e-9 / shards
    return [
        Part("frozen weights", frozen * half * shared, "always"),
        Part(f"trained weights ({trained / 1e6:.1f} M)", trained * master * shared, "always"),
        Part("optimiser state", trained * state * shared, "always"),
        Part(f"copies of trained weights ({copies})", copies * trained * 4 * shared, "always"),
        Part("kept latents", rollouts * gb, "always"),
        Part("text encoders, until the rows are encoded", encoders * half * gb, "encoding"),
        Part("gradients", trained * master * shared, "training"),
        Part("activations", kept * gb, "training"),
    ]


def width_of(config: Any) -> int:
    """Values of one token between the transformer's layers, under any of diffusers' names."""
    heads = config.get("num_attention_heads")
    return heads * config["attention_head_dim"] if heads and "attention_head_dim" in config else config.get("hidden_size") or config["dim"]


def peak(parts: list[Part]) -> float:
    """GB of the largest phase."""
    gb = {phase: sum(p.gb for p in parts if p.phase == phase) for phase in ("always", "training", "encoding")}
    return max(gb["always"] + gb["training"], gb["encoding"])


def trained_parameters(config: RunConfig, family: type[ModelAdapter], module: Any) -> int:
    """How many parameters the config trains in one component."""
    model = config.model
    names = target_names(module, model.target_components[0], model.target_modules, family.targets_in(module))
    linears = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}
    if model.finetune_type == "lora":
        return sum(model.lora_rank * (linears[n].in_features + linears[n].out_features) for n in names or linears)
    if names is None:
        return sum(p.numel() for p in module.parameters())
    return sum(p.numel() for n in names for p in linears[n].parameters())
