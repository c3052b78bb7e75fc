"""Estimates for a whole machine: main memory of all its processes, and disk space of the checkpoints."""

import os
from collections.abc import Sequence
from pathlib import Path

import psutil

from flow_factory.config import RunConfig
from flow_factory.config.engine import MACHINES
from flow_factory.data.cache_folder import free_space
from flow_factory.memory.estimate import copies_of
from flow_factory.memory.parts import Part, in_main_memory, of_machine
from flow_factory.memory.sizes import Weights
from flow_factory.models.loading import DTYPES

PROGRAM = 0.7
"""GB of private memory of a process after importing torch, diffusers and transformers, measured without a GPU."""
LORA_FILES = 2
"""The number of files of a LoRA: one for diffusers, one for PEFT."""


def here(config: RunConfig) -> int:
    """The number of processes of one machine."""
    return -(-config.num_processes // max(1, int(os.environ.get(MACHINES) or 1)))


def main_memory_lines(config: RunConfig, parts: Sequence[Part], requested: bool) -> list[str]:
    """Lines about a machine's main memory: private memory of each process, shared memory, and whether it suffices.

    Args:
        requested: whether the run is for this machine, so that its memory is compared.
    """
    n, own, shared = here(config), in_main_memory([*parts]) + PROGRAM, in_main_memory([*parts], shared=True)
    lines = [f"{p.gb:8.2f} GB  of main memory{', once for all processes' * p.shared}: {p.name}{when(p)}" for p in parts if p.host]
    lines.append(f"{own:8.2f} GB  of main memory at the peak for a process of its own, {PROGRAM} GB of it for the program")
    much = "" if n == 1 else f" for {n} processes"
    lines.append(
        f"{n * own:8.2f} GB  of a machine's main memory{much}, and {shared:.2f} GB that they share: files, as long as memory is free"
    )
    has = psutil.virtual_memory().total / 1e9
    if requested and n * own > has:
        lines.append(f"{has:8.2f} GB  of main memory are here: it does NOT fit; use fewer processes a machine, or move less there")
    elif requested and of_machine([*parts], n) + n * PROGRAM > has:
        lines.append(f"{has:8.2f} GB  of main memory are here: the files do not fit in it, and are read repeatedly during loading")
    return lines


def when(part: Part) -> str:
    return "" if part.phase == "always" else f" ({part.phase})"


def checkpoint_sizes(config: RunConfig, weights: Weights) -> tuple[float, float]:
    """GB of a checkpoint: (the weights for other programs, the training state)."""
    model, zero = config.model, config.engine.kind == "zero"
    master = DTYPES[model.master_weight_dtype].itemsize
    networks = 1 + len(config.train.networks)
    trained = weights.trained * master
    saved = trained * LORA_FILES if model.finetune_type == "lora" else trained + weights.frozen
    width = 4 if zero else master
    moments = {"adamw8bit": 2, "muon": width}.get(config.train.optimizer, 2 * width)
    state = networks * (trained + weights.trained * moments) + weights.trained * 4 * len(copies_of(config))
    return saved * 1e-9, 0.0 if config.log.save_model_only else state * 1e-9


def disk_lines(config: RunConfig, weights: Weights) -> list[str]:
    """A line about the disk space of the checkpoints, and whether it is free."""
    log, (saved, state) = config.log, checkpoint_sizes(config, weights)
    free = free_space(Path(log.save_dir)) / 1e9
    each = f"{_gb(saved + state)} GB each" + (f", {_gb(state)} GB of it the training state" if state else "")
    most = written(config)
    if most is None:
        return [f"checkpoints: {each}; all are kept (log.keep_last_n: null); {_gb(free)} GB are free under {log.save_dir}"]
    best = ", the best" if log.keep_best else ""
    why = f"log.keep_last_n: {log.keep_last_n}{best}, and the one that is written" if log.keep_last_n else "all of them stay"
    fits = "" if most * (saved + state) < free else ", which is NOT enough: lower log.keep_last_n, or set log.save_dir to another disk"
    much = f"up to {most} at a time ({why}): {_gb(most * (saved + state))} GB"
    return [f"checkpoints: {each}, {much}; {_gb(free)} GB are free under {log.save_dir}{fits}"]


def _gb(size: float) -> str:
    return f"{size:.3g}" if size < 999.5 else f"{size:,.0f}"


def written(config: RunConfig) -> int | None:
    """The largest number of checkpoints at a time; None if it grows until the run is stopped."""
    log, epochs = config.log, config.train.max_epochs
    every = 1 if log.save_minutes else log.save_freq  # of what is known before, an epoch takes so many minutes
    made = None if epochs is None else 1 if not every else -(-epochs // every)
    if made is not None and epochs is not None and log.keep_best and config.eval.eval_freq:
        made = min(epochs, made + epochs // config.eval.eval_freq)
    kept = None if log.keep_last_n is None else log.keep_last_n + 1 + bool(log.keep_best)
    return min((n for n in (made, kept) if n is not None), default=None)
