"""A team of two processes beside one process, for each family whose sequences can be split."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.models import MODELS
from flow_factory.policy.context_parallel import split_sequences
from flow_factory.types import Step
from tests.models.cases import CASES
from tests.models.harness import Tiny, trained
from tests.tiny.pipelines import saved

SPLIT = [name for name, case in CASES.items() if MODELS[case.model_type].splits]
FULL: dict[str, Any] = {"finetune_type": "full", "master_weight_dtype": "fp32"}


def gradient(t: Tiny, params: dict[str, nn.Parameter], step: Step, memo: ConditionMemo) -> dict[str, Tensor]:
    """Of some loss at this step; of a parameter that it does not reach, zeros."""
    found = torch.autograd.grad(t.velocity(step, memo=memo).square().mean(), list(params.values()), allow_unused=True)
    return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(params.items(), found, strict=True)}


def compared(name: str) -> dict[str, Any]:
    """Of a case, trained in full and with its blocks checkpointed: how far the team is off one process."""
    t, policy = trained(name, checkpointing=True, **FULL)
    params, memo = policy.trained(), ConditionMemo()
    steps = t.roll(memo=memo)[1].kept
    before = [(t.velocity(s, memo=memo).detach(), gradient(t, params, s, memo)) for s in steps]
    split_sequences(t.adapter, 2, torch.device("cpu"))
    off, parts = [], []
    for step, (v, whole) in zip(steps, before, strict=True):
        mine = gradient(t, params, step, memo)
        summed = {k: g.clone() for k, g in mine.items()}
        for g in summed.values():
            dist.all_reduce(g)
        off.append({"velocity": distance(t.velocity(step, memo=memo), v), "gradient": max(distance(summed[k], whole[k]) for k in whole)})
        parts.append(max(distance(mine[k], whole[k]) for k in whole))
    memo = ConditionMemo()
    exact = [t.exact(s, memo=memo) for s in t.roll(memo=memo)[1].kept]
    return {"off": off, "parts": parts, "exact": exact}


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference, in units of the largest value."""
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item()


def compare(rank: int) -> None:
    """Writes RANK.json, {case: what differs}."""
    for name in SPLIT:  # now: of several processes, transformers would have the first alone write a checkpoint
        saved(CASES[name].checkpoint)
    dist.init_process_group("gloo")
    Path(f"{rank}.json").write_text(json.dumps({name: compared(name) for name in SPLIT}))
    dist.destroy_process_group()
