"""The memory estimate as text: the parts, whether the run fits, and keys that make it smaller."""

from collections.abc import Mapping

import psutil
import torch

from flow_factory.config import RunConfig
from flow_factory.memory.auto import resolve_auto
from flow_factory.memory.checkpoint import Model, model_of
from flow_factory.memory.machine import main_memory_lines, when
from flow_factory.memory.parts import Part, Phase, peak, peak_of
from flow_factory.memory.room import CARDS, ROOM, fits_memory
from flow_factory.memory.suggestions import WRITE, encoding, proposals
from flow_factory.models.quantized import check_quantization
from flow_factory.utils.errors import UserError


def memory_lines(config: RunConfig, gpu: float | None = None) -> tuple[list[str], bool]:
    """Lines with the estimate of each part and keys that reduce it; and whether the run fits.

    Args:
        gpu: GB of the GPUs; None for this machine's.
    """
    model = model_of(config)
    config, chosen = resolve_auto(config, model, gpu)
    if model is None:
        return [*chosen, "no estimate: the checkpoint is not on disk, and its size is not known here"], True
    parts, n = model.parts(config), config.num_processes
    summary, fits, card = verdict(parts, gpu)
    lines = [f"{p.gb:8.2f} GB  {p.name}{when(p)}" for p in parts if not p.host]
    lines += model.rewards.unknown
    but = " without the rewards that are not counted" if model.rewards.unknown else ""
    lines.append(f"{peak(parts):8.2f} GB  at the peak, estimated, of rewards only the weights; {summary}{but}")
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
    """The overrides of `memory_lines` that make a run without its rewards fit GPUs of `gpu` GB.

    The weights of rewards are known only where they have been downloaded, and the answer is the same on every machine.

    Raises:
        UserError: nothing makes it fit.
    """
    model = model_of(config, rewards=False)
    config, _ = resolve_auto(config, model, gpu)
    if model is None or peak(model.parts(config)) < ROOM * gpu:
        return []
    *_, last = proposals(config, model.parts, ROOM * gpu)
    if not last.startswith(WRITE):
        raise UserError(f"{config.model.model_name_or_path} does not fit {gpu:g} GB: {last}")
    return last.removeprefix(WRITE).split()


PHASES: Mapping[str, tuple[Phase, ...]] = {"encode": ("window",), "rollout": ("rollout",), "optimise": ("slope", "training")}
"""Phases of a run -> their names in an estimate."""


def measured(config: RunConfig, peaks: Mapping[str, float]) -> str:
    """A line with the measured peaks of phases and their estimates.

    Args:
        config: the result of `resolve_auto`.
        peaks: GB on the device, by the meter's names of phases.
    """
    model = model_of(config)
    parts = model.parts(config) if model is not None else []
    known = {phase: f", estimated {max(peak_of(parts, p) for p in PHASES[phase]):.1f}" for phase in peaks if parts and phase in PHASES}
    return "memory at the peak: " + "; ".join(f"{phase} {gb:.1f} GB{known.get(phase, '')}" for phase, gb in peaks.items())


def gathering(config: RunConfig, model: Model) -> list[str]:
    """A line with the weights that FSDP2 gathers, and the number of processes that share a weight."""
    if config.engine.kind != "fsdp":
        return []
    much = model.weights(config).gathered * 1e-9
    often = "once a rollout or evaluation" if config.engine.keep else "for every forward of a rollout"
    shares = f"each weight is sharded over {config.sharers} of {config.num_processes} processes; " if config.num_processes > 1 else ""
    return [f"{shares}{much:.2f} GB are gathered {often}, and for every forward and backward of training"]


def larger(config: RunConfig, model: Model, card: float) -> list[str]:
    """Keys that make the run fit a GPU that is too small for it."""
    lines = [f"to fit {card:g} GB, cheapest first; each line is the estimate with this key and those above it:"]
    encoders = encoding(model.parts(config))
    if encoders >= ROOM * card:
        lines.append(f"{encoders:8.2f} GB  while the rows are encoded: encode them once on a larger GPU, and copy its data.cache_dir")
    lines += [f"  {line}" for line in proposals(config, model.parts, ROOM * card)]
    return [*lines, "the time of an epoch is unknown before a run: --test-run measures a short one if it fits"]


def quantiser_lines(config: RunConfig) -> list[str]:
    """The reason why weights cannot be quantised on this machine, which may not be the one that trains."""
    try:
        check_quantization(config.model.quantization)
    except UserError as error:
        return [f"not on this machine: {error}"]
    return []


def verdict(parts: list[Part], gpu: float | None) -> tuple[str, bool, float]:
    """A phrase about where the run fits, whether it fits the GPU in question, and that GPU's GB: given, this machine's or the largest."""
    most = peak(parts)
    if gpu is not None or torch.cuda.is_available():
        has = gpu or torch.cuda.get_device_properties(0).total_memory / 1e9
        which = f"{'a' if gpu else 'this'} {has:.0f} GB GPU"
        fits = most < ROOM * has
        return f"fits {which}" if fits else f"does NOT fit {which}", fits, has
    cards = [card for card in CARDS if most < ROOM * card]
    summary = f"on a GPU it needs {cards[0]} GB" if cards else f"no GPU of {CARDS[-1]} GB holds it"
    memory = psutil.virtual_memory().total / 1e9
    here = "" if fits_memory(parts, None, 1) else f"; it does NOT fit this machine ({memory:.0f} GB, no GPU)"
    return summary + here, True, CARDS[-1]  # without a GPU the plan is for another machine
