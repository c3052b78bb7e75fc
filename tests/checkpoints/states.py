"""A small model with its optimiser, whose state is saved."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import nn

from flow_factory.checkpoints.state_files import write
from flow_factory.config.engine import EngineSettings
from flow_factory.distributed.engines import Engine
from flow_factory.policy.weight_store import WeightStore
from flow_factory.runs.training_state import stage

Run = tuple[nn.Module, WeightStore, Engine, Any]


def run(dtype: torch.dtype = torch.float32, copies: tuple[str, ...] = ("ema",), width: int = 3, length: int = 9, **keys: Any) -> Run:
    torch.manual_seed(0)
    model = nn.Linear(4, width).to(dtype)
    store = WeightStore(dict(model.named_parameters()))
    for name in copies:
        store.keep(name)
    engine = Engine(EngineSettings(), Accelerator(cpu=True), 1.0)
    engine.policy = SimpleNamespace(trained=lambda: dict(model.named_parameters()))  # type: ignore[assignment]
    engine.optimizer = torch.optim.AdamW(model.parameters(), **{"lr": 0.1} | keys)
    return model, store, engine, get_scheduler("cosine", engine.optimizer, num_warmup_steps=2, num_training_steps=length)


def train(run: Run, steps: range) -> None:
    model, store, engine, schedule = run
    for k in steps:
        model(torch.full((1, 4), k + 1.0, dtype=model.weight.dtype)).square().sum().backward()
        engine.optimizer.step()
        schedule.step()
        engine.optimizer.zero_grad()
        store.blend("ema", 0.9)


def save(folder: Path, run: Run, updates: int = 0) -> Path:
    write(folder / "state", stage(*run[1:3]), {"epoch": 4, "updates": updates}, None)
    return folder


def values(run: Run) -> dict[str, torch.Tensor]:
    return {f"{copy}/{k}": t.clone() for copy, parts in run[1].state_dict().items() for k, t in parts.items()}
