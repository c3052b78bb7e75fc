"""The throughput of the transformers: tokens and operations per second, and their share of the GPU's peak."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flow_factory.memory.flops import ATTENTIONS, operations
from flow_factory.training.context import TrainingContext
from flow_factory.types import Cond

PEAKS: Mapping[str, float] = {
    "GB200": 2500, "B200": 2250, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "GH200": 989, "H800": 989, "H20": 148,
    "A100": 312, "A800": 312, "A30": 165, "L40S": 362, "L40": 181,
}  # fmt: skip
"""Part of a GPU's name, the first that fits -> TFLOP/s of 16-bit products without sparsity, from NVIDIA's data sheets."""


@dataclass(frozen=True)
class Work:
    """The work of one process's transformers in a phase of an epoch.

    Attributes:
        tokens: that go through them, once for each forward, with or without a backward.
        tflop: 10^12 operations; None for a transformer of which there is no formula.
    """

    tokens: float
    tflop: float | None


def work_of(context: TrainingContext, cond: Cond) -> dict[str, Work]:
    """The work of a rollout and of the training of all networks. Forwards of kept weights and recomputation are not counted.

    Args:
        cond: of any row; prompts of other lengths are taken to be as long.
    """
    config, plan, family = context.config, context.plan, type(context.adapter)
    train = config.train
    image = family.tokens_of(train.height, train.width, {**train.call, "max_sequence_length": 0})
    passes = family.passes(context.call)
    steps = 0 if context.given is not None else train.num_inference_steps - train.first_step
    rolled = plan.micro_batches_per_rank * plan.per_device_batch_size * steps * passes / plan.rolled.team
    points = plan.trained_batches_per_rank * plan.per_device_batch_size * plan.trained_points * plan.num_inner_epochs / plan.rolled.team
    trained, others = (points * count for count in _velocities(context, passes))
    transformer, text = next(iter(context.policy.models.values())), text_of(cond)
    needed = operations(transformer, image, text) if type(transformer).__name__.removeprefix("FSDP") in ATTENTIONS else None
    return {
        "rollout": Work(rolled * (image + text), rolled * needed.forward * 1e-12 if needed else None),
        "optimise": Work(
            (trained + others) * (image + text),
            (trained * (needed.forward + needed.backward) + others * needed.forward) * 1e-12 if needed else None,
        ),
    }


def _velocities(context: TrainingContext, passes: int) -> tuple[float, float]:
    """Forwards of a training point, on the average of the updates: (those of a network in its turn, those of the other networks then).

    Args:
        passes: of a velocity with the rollout's guidance.
    """
    algorithm, networks = context.algorithm, ("policy", *context.config.train.networks)

    def forwards(weights: str, guidance: float | None = None) -> int:
        scale = algorithm.guidance(weights) if guidance is None else guidance
        return passes if scale is None else 2 if scale > 1 and context.adapter.cfg is not None else 1

    turns = [(1 / context.config.frequency_of(turn.network), turn) for turn in algorithm.turns(0)]
    trained = sum(share * forwards(turn.network) for share, turn in turns)
    return trained, sum(share * forwards(*query) for share, turn in turns for query in turn.needs if query[0] in networks)


def text_of(cond: Cond) -> int:
    """Tokens of the prompt, if the pipeline takes its embeddings by their usual name."""
    embeds: Any = cond.get("prompt_embeds")
    return embeds.shape[1] if torch.is_tensor(embeds) else len(embeds[0]) if embeds else 0


def rates(
    costs: Mapping[str, float], work: Mapping[str, Work], processes: int, peak: float | None, dropped: float = 0.0
) -> dict[str, float]:
    """What to log of an epoch.

    Args:
        costs: its seconds by phase, see `Meter.costs`.
        peak: TFLOP/s of a card; None where it is not known.
        dropped: the share of the micro-batches that were not trained on.
    """
    metrics: dict[str, float] = {}
    for phase, amount in work.items():
        seconds, share = costs.get(f"time/{phase}_s", 0.0), 1 - dropped * (phase == "optimise")
        if seconds <= 0 or amount.tokens <= 0:
            continue
        waited = costs.get(f"time/{phase}_wait_s", 0.0)
        metrics[f"perf/{phase}_tokens_per_s"] = amount.tokens * share * processes / (seconds + waited)
        if amount.tflop is not None:
            metrics[f"perf/{phase}_tflops"] = amount.tflop * share / seconds
            if peak is not None:
                metrics[f"perf/{phase}_share_of_peak"] = amount.tflop * share / seconds / peak
    return metrics


def peak_of(name: str) -> float | None:
    """TFLOP/s of a GPU of this name in 16 bits; None if it is not known."""
    return next((peak for part, peak in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)


def peak_of_device(device: torch.device, precision: str) -> float | None:
    """TFLOP/s of a device; None for a CPU, and if the run computes in 32 bits."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" and precision != "no" else None
