"""Whether a run fits: the memory estimate in lines, for which GPUs, and keys that make it smaller."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import torch

from flow_factory.config import RunConfig
from flow_factory.config.base import show
from flow_factory.config.memory_rules import keeps_no_copy
from flow_factory.config.recompute import AUTO
from flow_factory.memory.estimate import estimate
from flow_factory.memory.machine import main_memory_lines, when
from flow_factory.memory.parts import Part, Phase, of_machine, peak, peak_of
from flow_factory.memory.rollout import DRAWING, drawn
from flow_factory.memory.sizes import Files, Weights, shape_of, stored_files, stored_parameters, weights_of
from flow_factory.memory.suggestions import WRITE, encoding, proposals
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.models.quantized import check_quantization
from flow_factory.policy.gradient_checkpointing import LEVELS, Setting
from flow_factory.policy.gradient_checkpointing import describe_blocks as said_of
from flow_factory.utils.errors import UserError
from flow_factory.utils.pretrained import on_disk

CARDS = (24, 48, 80)
"""GB of common GPUs, for machines that have none."""
ROOM = 0.92
"""Of a GPU's memory, what an estimate may take: torch's allocator leaves gaps."""


WORTH = 0.1
"""GB that decoding in parts must save."""
DECODED = ((False, False), (True, False), (True, True))
"""(`model.vae_slicing`, `model.vae_tiling`): what costs least first."""
SAID = {
    "vae_slicing": "model.vae_slicing: auto takes true for {}: pictures are decoded one by one",
    "vae_tiling": "model.vae_tiling: auto takes true for {}: pictures are decoded in tiles, which changes them slightly; false forbids it",
}


@dataclass(frozen=True)
class Model:
    """What the estimate asks of a checkpoint."""

    family: type[ModelAdapter]
    parameters: dict[str, float]
    module: Any
    files: Files = field(default_factory=dict)
    """Of a checkpoint on this machine."""

    def parts(self, config: RunConfig) -> list[Part]:
        return estimate(config, self.family, self.parameters, self.module, self.files)

    def weights(self, config: RunConfig) -> Weights:
        return weights_of(config, self.family, self.parameters, self.module)


def model_of(config: RunConfig) -> Model | None:
    """From the files, or of what is published; None where neither says its size."""
    name = config.model.model_name_or_path
    checkpoint = on_disk(name)
    family: type[ModelAdapter] = MODELS[config.model.model_type].of(str(checkpoint or name), config.model.pipeline_class)
    if checkpoint is None and not family.published:
        return None
    parameters = stored_parameters(checkpoint) if checkpoint else dict(family.published_as(name)[0])
    files = stored_files(checkpoint) if checkpoint else {}
    return Model(family, parameters, shape_of(family, config.model.target_components[0], checkpoint, name), files)


def settled(config: RunConfig, model: Model | None, gpu: float | None = None) -> tuple[RunConfig, list[str]]:
    """With what `auto` leaves to the estimate decided, and the lines that say so: pictures are decoded at once where they fit, as few
    blocks are computed again as fit, and weights stay gathered where they fit.

    Args:
        model: None, of which nothing can be estimated, has all its blocks computed again, and keeps nothing.
        gpu: GB of the cards that it is for; None asks this machine, and its main memory where it has no GPU.
    """
    config, decoded = _decoded(config, model, gpu)
    config, chosen = _recomputed(config, model, gpu)
    config, kept = _kept(config, model, gpu)
    return config, decoded + chosen + kept


def _decoded(config: RunConfig, model: Model | None, gpu: float | None) -> tuple[RunConfig, list[str]]:
    """With `model.vae_slicing` and `model.vae_tiling: auto` decided, by what a rollout has on the device beside them."""
    asked = (config.model.vae_slicing, config.model.vae_tiling)
    if AUTO not in asked:
        return config, []
    ways = [decoding(config, *(way if key == AUTO else key for key, way in zip(asked, ways, strict=True))) for ways in DECODED]
    if model is None or _drawn(ways[0], model) - _drawn(ways[-1], model) < WORTH:
        return ways[0], []
    there = [part for part in model.parts(ways[0]) if part.phase in ("always", "rollout")]
    for found in ways:
        if in_room([replace(p, gb=_drawn(found, model)) if p.name == DRAWING else p for p in there], gpu, config.num_processes):
            break
    else:
        found = ways[1]  # tiles would not make it fit
    said = [line.format(_place(gpu)) for key, line in SAID.items() if getattr(found.model, key) and getattr(config.model, key) == AUTO]
    return found, said


def _drawn(config: RunConfig, model: Model) -> float:
    return drawn(config, model.family, model.module.config)


def decoding(config: RunConfig, slicing: Any, tiling: Any) -> RunConfig:
    """With another `model.vae_slicing` and `model.vae_tiling`."""
    return config.model_copy(update={"model": config.model.model_copy(update={"vae_slicing": slicing, "vae_tiling": tiling})})


def _recomputed(config: RunConfig, model: Model | None, gpu: float | None) -> tuple[RunConfig, list[str]]:
    if config.train.enable_gradient_checkpointing != AUTO:
        return config, []
    fewer = config.model.layerwise_casting or config.model.quantization
    fewer_bits = fewer is not None and not keeps_no_copy(fewer)
    for level in (True,) if model is None or fewer_bits else LEVELS:
        found = recomputing(config, level)
        if model is not None and in_room(model.parts(found), gpu, config.num_processes):
            break
    much = "all blocks" if model is None else said_of(level, [model.module])
    return found, [f"train.enable_gradient_checkpointing: auto takes {show(level)} for {_place(gpu)}: {much} are computed again"]


def _kept(config: RunConfig, model: Model | None, gpu: float | None) -> tuple[RunConfig, list[str]]:
    """With `model.reshard_after_forward: auto` decided, where FSDP2 gathers."""
    if config.engine.kind != "fsdp" or config.model.reshard_after_forward != AUTO:
        return config, []
    keeps = resharding(config, False)
    if model is not None and in_room(model.parts(keeps), gpu, config.num_processes):
        why = "weights are gathered once a rollout or evaluation, and kept to its end"
        return keeps, [f"model.reshard_after_forward: auto takes false for {_place(gpu)}: {why}"]
    why = "gathered weights are given back block by block, and gathered again for every forward of a rollout"
    return resharding(config, True), [f"model.reshard_after_forward: auto takes true for {_place(gpu)}: {why}"]


def _place(gpu: float | None) -> str:
    return f"a {gpu:.0f} GB GPU" if gpu else "this machine"


def recomputing(config: RunConfig, setting: Setting) -> RunConfig:
    """With another `train.enable_gradient_checkpointing`."""
    return config.model_copy(update={"train": config.train.model_copy(update={"enable_gradient_checkpointing": setting})})


def resharding(config: RunConfig, reshards: Any) -> RunConfig:
    """With another `model.reshard_after_forward`."""
    return config.model_copy(update={"model": config.model.model_copy(update={"reshard_after_forward": reshards})})


def in_room(parts: list[Part], gpu: float | None, processes: int) -> bool:
    """Whether a process fits a GPU, or this machine's main memory together with the others."""
    if gpu is not None or torch.cuda.is_available():
        return peak(parts) < ROOM * (gpu or torch.cuda.get_device_properties(0).total_memory / 1e9)
    later = of_machine([p for p in parts if p.phase != "encoding"], processes)  # what is loaded stays where it is
    return processes * peak(parts) + later < 0.8 * psutil.virtual_memory().total / 1e9


def memory_lines(config: RunConfig, gpu: float | None = None) -> tuple[list[str], bool]:
    """The estimate part by part, what would make it fit, and whether it fits where it would run.

    Args:
        gpu: GB of the cards that it is for; None asks this machine.
    """
    model = model_of(config)
    config, chosen = settled(config, model, gpu)
    if model is None:
        return [*chosen, "no estimate: the checkpoint is not on disk, and its size is not known here"], True
    parts, n = model.parts(config), config.num_processes
    said, fits, card = verdict(parts, gpu)
    lines = [f"{p.gb:8.2f} GB  {p.name}{when(p)}" for p in parts if not p.host]
    lines.append(f"{peak(parts):8.2f} GB  at the peak, estimated, rewards not counted; {said}")
    lines += main_memory_lines(config, parts, gpu is None)
    more = [] if peak(parts) < ROOM * card else larger(config, model, card)
    return [
        f"{config.engine.name}, {n} process{'es' if n > 1 else ''}",
        *chosen,
        *gathering(config, model),
        *lines,
        *quantiser_lines(config),
        *more,
    ], fits


def keys_to_fit(config: RunConfig, gpu: float) -> list[str]:
    """The overrides that make a run fit cards of `gpu` GB, of those that `memory_lines` proposes.

    Raises:
        UserError: nothing makes it fit.
    """
    model = model_of(config)
    config, _ = settled(config, model, gpu)
    if model is None or peak(model.parts(config)) < ROOM * gpu:
        return []
    *_, last = proposals(config, model.parts, ROOM * gpu)
    if not last.startswith(WRITE):
        raise UserError(f"{config.model.model_name_or_path} does not fit {gpu:g} GB: {last}")
    return last.removeprefix(WRITE).split()


PHASES: Mapping[str, Phase] = {"encode": "window", "rollout": "rollout", "optimise": "training"}
"""What a run's phases are called in an estimate."""


def measured(config: RunConfig, peaks: Mapping[str, float]) -> str:
    """A line with the peaks of phases, beside what is estimated.

    Args:
        config: as `settled` gave it.
        peaks: GB of the device, by the meter's names of phases.
    """
    model = model_of(config)
    parts = model.parts(config) if model is not None else []
    known = {phase: f", estimated {peak_of(parts, PHASES[phase]):.1f}" for phase in peaks if parts and phase in PHASES}
    return "memory at the peak: " + "; ".join(f"{phase} {gb:.1f} GB{known.get(phase, '')}" for phase, gb in peaks.items())


def gathering(config: RunConfig, model: Model) -> list[str]:
    """What FSDP2 sends, and over how many processes it shares out."""
    if config.engine.kind != "fsdp":
        return []
    much = model.weights(config).gathered * 1e-9
    often = "once a rollout or evaluation" if config.engine.keep else "for every forward of a rollout"
    shares = f"each weight is sharded over {config.sharers} of {config.num_processes} processes; " if config.num_processes > 1 else ""
    return [f"{shares}{much:.2f} GB are gathered {often}, and for every forward and backward of training"]


def larger(config: RunConfig, model: Model, card: float) -> list[str]:
    """What to write so that it fits a card that it does not fit."""
    lines = [f"to fit {card:g} GB, cheapest first; each line is the estimate with this key and those above it:"]
    encoders = encoding(model.parts(config))
    if encoders >= ROOM * card:
        lines.append(f"{encoders:8.2f} GB  while the rows are encoded: encode them once on a larger GPU, and copy its data.cache_dir")
    lines += [f"  {line}" for line in proposals(config, model.parts, ROOM * card)]
    return [*lines, "the time of an epoch is unknown before a run: --test-run measures a short one if it fits"]


def quantiser_lines(config: RunConfig) -> list[str]:
    """Why the weights cannot be quantised on this machine, which need not be the one that trains."""
    try:
        check_quantization(config.model.quantization)
    except UserError as error:
        return [f"not on this machine: {error}"]
    return []


def verdict(parts: list[Part], gpu: float | None) -> tuple[str, bool, float]:
    """Where it fits, whether that is where it would run, and GB of the card in question: as asked, here, or the largest."""
    most = peak(parts)
    if gpu is not None or torch.cuda.is_available():
        has = gpu or torch.cuda.get_device_properties(0).total_memory / 1e9
        which = f"{'a' if gpu else 'this'} {has:.0f} GB GPU"
        fits = most < ROOM * has
        return f"fits {which}" if fits else f"does NOT fit {which}", fits, has
    cards = [card for card in CARDS if most < ROOM * card]
    said = f"on a GPU it needs {cards[0]} GB" if cards else f"no GPU of {CARDS[-1]} GB holds it"
    memory = psutil.virtual_memory().total / 1e9
    here = "" if in_room(parts, None, 1) else f"; it does NOT fit this machine ({memory:.0f} GB, no GPU)"
    return said + here, True, CARDS[-1]  # nobody trains a model of that size on a machine without a GPU: it is for another one
