"""The decisions of the keys that are `auto` by the memory estimate."""

from dataclasses import replace
from typing import Any

from flow_factory.config import RunConfig
from flow_factory.config.base import show
from flow_factory.config.memory_rules import keeps_no_copy
from flow_factory.config.recompute import AUTO
from flow_factory.memory.checkpoint import Model
from flow_factory.memory.rollout import DRAWING, drawn
from flow_factory.memory.room import fits_memory
from flow_factory.policy.gradient_checkpointing import LEVELS, Setting, describe_blocks

WORTH = 0.1
"""The least saving in GB for which images are decoded in parts."""
DECODED = ((False, False), (True, False), (True, True))
"""Values of (`model.vae_slicing`, `model.vae_tiling`), the fastest first."""
REASONS = {
    "vae_slicing": "model.vae_slicing: auto takes true for {}: pictures are decoded one by one",
    "vae_tiling": "model.vae_tiling: auto takes true for {}: pictures are decoded in tiles, which changes them slightly; false forbids it",
}


def resolve_auto(config: RunConfig, model: Model | None, gpu: float | None = None) -> tuple[RunConfig, list[str]]:
    """Decides the keys that are `auto` by the estimate. Returns the config and a line for each decision.

    If memory suffices, images are decoded all at once, as few blocks as possible are recomputed, and FSDP2 keeps gathered weights.

    Args:
        model: None if nothing can be estimated: then all blocks are recomputed, and no gathered weights are kept.
        gpu: GB of the GPUs; None for this machine's, or its main memory if it has none.
    """
    config, decoded = _decoded(config, model, gpu)
    config, chosen = _recomputed(config, model, gpu)
    config, kept = _kept(config, model, gpu)
    return config, decoded + chosen + kept


def _decoded(config: RunConfig, model: Model | None, gpu: float | None) -> tuple[RunConfig, list[str]]:
    """Decides `model.vae_slicing` and `model.vae_tiling`, by what else a rollout has on the device."""
    given = (config.model.vae_slicing, config.model.vae_tiling)
    if AUTO not in given:
        return config, []
    ways = [decoding(config, *(way if key == AUTO else key for key, way in zip(given, ways, strict=True))) for ways in DECODED]
    if model is None or _drawn(ways[0], model) - _drawn(ways[-1], model) < WORTH:
        return ways[0], []
    there = [part for part in model.parts(ways[0]) if part.phase in ("always", "rollout")]
    for found in ways:
        if fits_memory([replace(p, gb=_drawn(found, model)) if p.name == DRAWING else p for p in there], gpu, config.num_processes):
            break
    else:
        found = ways[1]  # tiling would not make it fit either
    reasons = [
        line.format(_place(gpu)) for key, line in REASONS.items() if getattr(found.model, key) and getattr(config.model, key) == AUTO
    ]
    return found, reasons


def _drawn(config: RunConfig, model: Model) -> float:
    """GB that decoding takes."""
    return drawn(config, model.family, model.module.config)


def decoding(config: RunConfig, slicing: Any, tiling: Any) -> RunConfig:
    """A copy of the config with this `model.vae_slicing` and `model.vae_tiling`."""
    return config.model_copy(update={"model": config.model.model_copy(update={"vae_slicing": slicing, "vae_tiling": tiling})})


def _recomputed(config: RunConfig, model: Model | None, gpu: float | None) -> tuple[RunConfig, list[str]]:
    """Decides `train.enable_gradient_checkpointing`."""
    if config.train.enable_gradient_checkpointing != AUTO:
        return config, []
    fewer = config.model.layerwise_casting or config.model.quantization
    fewer_bits = fewer is not None and not keeps_no_copy(fewer)
    for level in (True,) if model is None or fewer_bits else LEVELS:
        found = recomputing(config, level)
        if model is not None and fits_memory(model.parts(found), gpu, config.num_processes):
            break
    much = "all blocks" if model is None else describe_blocks(level, [model.module])
    return found, [f"train.enable_gradient_checkpointing: auto takes {show(level)} for {_place(gpu)}: {much} are recomputed"]


def _kept(config: RunConfig, model: Model | None, gpu: float | None) -> tuple[RunConfig, list[str]]:
    """Decides `model.reshard_after_forward` of FSDP2."""
    if config.engine.kind != "fsdp" or config.model.reshard_after_forward != AUTO:
        return config, []
    keeps = resharding(config, False)
    if model is not None and fits_memory(model.parts(keeps), gpu, config.num_processes):
        why = "weights are gathered once a rollout or evaluation, and kept to its end"
        return keeps, [f"model.reshard_after_forward: auto takes false for {_place(gpu)}: {why}"]
    why = "gathered weights are given back block by block, and gathered again for every forward of a rollout"
    return resharding(config, True), [f"model.reshard_after_forward: auto takes true for {_place(gpu)}: {why}"]


def _place(gpu: float | None) -> str:
    return f"a {gpu:.0f} GB GPU" if gpu else "this machine"


def recomputing(config: RunConfig, setting: Setting) -> RunConfig:
    """A copy of the config with this `train.enable_gradient_checkpointing`."""
    return config.model_copy(update={"train": config.train.model_copy(update={"enable_gradient_checkpointing": setting})})


def resharding(config: RunConfig, reshards: Any) -> RunConfig:
    """A copy of the config with this `model.reshard_after_forward`."""
    return config.model_copy(update={"model": config.model.model_copy(update={"reshard_after_forward": reshards})})
