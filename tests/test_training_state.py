"""A training state that was saved is the one that is loaded; one that is another run's, or damaged, is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import nn

from flow_factory.checkpoint import CheckpointError
from flow_factory.config.engine import EngineSettings
from flow_factory.engines import Engine
from flow_factory.training_state import load, stage, write
from flow_factory.weights import WeightStore
from tests.tiny.run import read_state

PROGRESS = {"epoch": 4, "updates": 8}
Run = tuple[nn.Module, WeightStore, Engine, Any]


def run(dtype: torch.dtype = torch.float32, copies: tuple[str, ...] = ("ema",), width: int = 3) -> Run:
    torch.manual_seed(0)
    model = nn.Linear(4, width).to(dtype)
    store = WeightStore(dict(model.named_parameters()))
    for name in copies:
        store.keep(name)
    engine = Engine(EngineSettings(), Accelerator(cpu=True), 1.0)
    engine.policy = SimpleNamespace(trained=lambda: dict(model.named_parameters()))  # type: ignore[assignment]
    engine.optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, store, engine, get_scheduler("cosine", engine.optimizer, num_warmup_steps=2, num_training_steps=9)


def train(run: Run, steps: range) -> None:
    model, store, engine, schedule = run
    for k in steps:
        model(torch.full((1, 4), k + 1.0, dtype=model.weight.dtype)).square().sum().backward()
        engine.optimizer.step()
        schedule.step()
        engine.optimizer.zero_grad()
        store.blend("ema", 0.9)


def save(folder: Path, run: Run) -> Path:
    write(folder / "state", stage(*run[1:3]), None)
    (folder / "state" / "progress.json").write_text(json.dumps(PROGRESS | {"schedule": run[3].state_dict()}))
    return folder


def values(run: Run) -> dict[str, torch.Tensor]:
    return {f"{copy}/{k}": t.clone() for copy, parts in run[1].state_dict().items() for k, t in parts.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_goes_on_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    first, second = run(dtype), run(dtype)
    train(first, range(4))
    assert load(save(tmp_path, first), *second[1:]) == PROGRESS
    for one in (first, second):
        train(one, range(4, 7))
    a, b = values(first), values(second)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert first[3].get_last_lr() == second[3].get_last_lr()
    assert all(
        torch.equal(x["exp_avg_sq"], y["exp_avg_sq"])
        for x, y in zip(first[2].optimizer.state.values(), second[2].optimizer.state.values(), strict=True)
    )


def test_before_the_first_step_there_is_no_optimiser_state(tmp_path: Path) -> None:
    first, second = run(), run()
    load(save(tmp_path, first), *second[1:])
    assert not second[2].optimizer.state and {k.split("/")[0] for k in read_state(tmp_path)} == {"weights"}


def test_a_parameter_that_was_never_stepped_still_is_not(tmp_path: Path) -> None:
    """The second expert's, where an epoch trains the first."""
    first, second = run(), run()
    first[0].weight.grad = torch.ones(3, 4)
    first[2].optimizer.step()
    load(save(tmp_path, first), *second[1:])
    assert list(second[2].optimizer.state) == [second[0].weight]


def test_making_room_for_the_optimisers_state_changes_nothing() -> None:
    one = run()
    before, rate = values(one), one[2].optimizer.param_groups[0]["lr"]
    one[2].warm()
    assert all(torch.equal(before[k], v) for k, v in values(one).items()) and one[2].optimizer.param_groups[0]["lr"] == rate
    assert all(p.grad is None for p in one[0].parameters()) and len(one[2].optimizer.state) == 2


@pytest.mark.parametrize(("other", "message"), [
    ({"copies": ("ema", "ref")}, r"the saved copies are ['ema', 'policy'], this run keeps ['ema', 'policy', 'ref']"),
    ({"copies": ()}, "the saved copies are ['ema', 'policy'], this run keeps ['policy']"),
    ({"width": 5}, "first at 'weights/policy/weight': other lora_rank, target_modules or optimizer?"),
])  # fmt: skip
def test_a_state_of_another_run_is_refused_and_changes_nothing(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    first, second = run(), run(**other)
    train(first, range(2))
    before = values(second)
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path} does not fit this run: {message}")):
        load(save(tmp_path, first), *second[1:])
    assert all(torch.equal(before[k], v) for k, v in values(second).items())


@pytest.mark.parametrize("spoil", [
    lambda state: (state / ".metadata").write_bytes(b"no"),
    lambda state: (state / ".metadata").unlink(),
    lambda state: (state / "__0_0.distcp").write_bytes(b"no"),
    lambda state: (state / "__0_0.distcp").unlink(),
    lambda state: (state / "progress.json").write_text("{"),
], ids=["metadata", "no metadata", "tensors", "no tensors", "progress"])  # fmt: skip
def test_a_damaged_state_is_refused(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    first, second = run(), run()
    train(first, range(2))
    spoil(save(tmp_path, first) / "state")
    with pytest.raises(CheckpointError, match=f"{tmp_path} is damaged: "):
        load(tmp_path, *second[1:])
