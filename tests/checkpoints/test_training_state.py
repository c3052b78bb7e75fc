"""A training state that was saved is the one that is loaded; one that is another run's, or damaged, is refused."""

import json
import os
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from safetensors.torch import load_file
from torch import nn

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.checkpoints.state_files import write
from flow_factory.config.engine import EngineSettings
from flow_factory.distributed.engines import Engine
from flow_factory.policy.weight_store import WeightStore
from flow_factory.runs.training_state import Progress, load, stage
from flow_factory.utils.tensor_file import write_tensors
from tests.tiny.run import read_state

OTHER: dict[str, Any] = {"lr": 0.003, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.7, "length": 40}
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_goes_on_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    first, second = run(dtype), run(dtype)
    train(first, range(4))
    assert load(save(tmp_path, first, 4), *second[1:]) == Progress(4, 4)
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


# -- the config rules where the state does not -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_the_rate_is_the_configs_at_the_states_step(tmp_path: Path, steps: int) -> None:
    """Another rate, other betas, another length: what a run with that config would have after so many steps."""
    first, second, straight = run(), run(**OTHER), run(**OTHER)
    train(first, range(steps))
    train(straight, range(steps))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(save(tmp_path, first, steps), *second[1:])
    for one in (second, straight):
        one[2].optimizer.step()
        one[3].step()
    ((group,), (wanted,)) = (one[2].optimizer.param_groups for one in (second, straight))
    keys = ("lr", "betas", "eps", "weight_decay", "initial_lr")
    assert {k: group[k] for k in keys} == {k: wanted[k] for k in keys}
    assert second[3].last_epoch == straight[3].last_epoch


# -- damaged, or hostile -----------------------------------------------------------------------------------------------------------

TENSORS = "part-00000.safetensors"


def damaged(folder: Path, spoil: Callable[[Path], object]) -> str:
    """What is said of a state after this; nothing of the run that it was for has changed."""
    first, second = run(), run()
    train(first, range(2))
    spoil(save(folder, first, 2) / "state")
    before = values(second)
    with pytest.raises(CheckpointError) as error:
        load(folder, *second[1:])
    assert all(torch.equal(before[k], v) for k, v in values(second).items())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("spoil", [
    lambda state: (state / TENSORS).write_bytes(b"no"),
    lambda state: (state / TENSORS).unlink(),
    lambda state: (state / "index.json").write_bytes(b"no"),
    lambda state: (state / "index.json").unlink(),
    lambda state: (state / "progress.json").write_text("{"),
    lambda state: (state / "progress.json").unlink(),
], ids=["tensors", "no tensors", "index", "no index", "progress", "no progress"])  # fmt: skip
def test_a_damaged_state_is_refused(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    assert damaged(tmp_path, spoil).startswith(f"{tmp_path} is damaged: ")


def test_a_bit_that_flipped_is_found(tmp_path: Path) -> None:
    """In a number, in a header, in the counters."""
    saved = save(tmp_path, run()) / "state"
    for name in (TENSORS, "progress.json"):
        whole = (saved / name).read_bytes()
        for place in range(0, len(whole), len(whole) // 6):
            (saved / name).write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(CheckpointError, match=f"is damaged: ValueError: the checksum of {name} is wrong"):
                load(tmp_path, *run()[1:])
        (saved / name).write_bytes(whole)
    load(tmp_path, *run()[1:])


def edited(**keys: Any) -> Callable[[Path], object]:
    """The index with other values; those of `weight` are of one tensor's place."""

    def edit(state: Path) -> None:
        index = json.loads((state / "index.json").read_text())
        index["tensors"]["weights/policy/weight"] |= keys.pop("weight", {})
        (state / "index.json").write_text(json.dumps(index | keys))

    return edit


FILE = {"size": 3, "sha256": ""}


@pytest.mark.parametrize(("spoil", "message"), [
    (edited(format=2), "format: Input should be 1"),
    (edited(files={"../../secret": FILE}), "names '../../secret', which is in another folder"),
    (edited(files={"/etc/passwd": FILE}), "names '/etc/passwd', which is in another folder"),
    (edited(files=[]), "files: Input should be an object"),
    (edited(more=1), "more: Extra inputs are not permitted"),
    (edited(weight={"rows": []}), "rows of 'weights/policy/weight' are missing"),
    (edited(weight={"rows": [{"file": TENSORS, "first": 1, "end": 3}]}), "rows of 'weights/policy/weight' are missing"),
    (edited(weight={"rows": [{"file": "x", "first": 0, "end": 3}]}), "rows of 'weights/policy/weight' are missing"),
    (edited(weight={"shape": [3, -4]}), "shape.1: Input should be greater than or equal to 0"),
    (edited(weight={"shape": [2, 4], "rows": [{"file": TENSORS, "first": 0, "end": 2}]}), "first at 'weights/policy/weight'"),
    (lambda state: (state / "index.json").write_text("[" * 100000), "recursion|nest"),
])  # fmt: skip
def test_an_index_that_lies_is_refused(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    assert re.search(message, damaged(tmp_path, spoil))


def test_a_file_that_has_something_else_than_the_index_says_is_refused(tmp_path: Path) -> None:
    """With the right checksum, as somebody who made it would write it."""
    for tensors, message in (
        ({"weights/policy/weight": torch.zeros(3, 9)}, "has another shape for 'weights/policy/weight'"),
        ({"other": torch.zeros(3)}, "does not contain tensor weights/"),
        ({"weights/policy/weight": torch.zeros(())}, "dimension|shape|slice"),
    ):

        def spoil(state: Path, tensors: dict[str, torch.Tensor] = tensors) -> None:
            index = json.loads((state / "index.json").read_text())
            everything = {k: t.clone() for k, t in load_file(state / TENSORS).items() if "other" not in tensors}
            digest = write_tensors(state / TENSORS, everything | tensors)
            index["files"][TENSORS] = {"size": (state / TENSORS).stat().st_size, "sha256": digest}
            (state / "index.json").write_text(json.dumps(index))

        assert re.search(message, damaged(tmp_path, spoil))


class Hostile:
    """As a pickle it writes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_a_strangers_state_runs_no_code(tmp_path: Path) -> None:
    """As torch's own index, which earlier versions of this program read; as a file of tensors; beside a state that is damaged."""
    mark = tmp_path / "mark"
    bad = pickle.dumps(Hostile(mark))

    def spoil(state: Path) -> None:
        for name in (".metadata", "progress.json", TENSORS, "__0_0.distcp"):
            (state / name).write_bytes(bad)

    def old(state: Path) -> None:
        spoil(state)
        (state / "index.json").unlink()

    first, second = tmp_path / "epoch_1", tmp_path / "epoch_2"
    said = damaged(first, old)
    assert re.search("a training state of an earlier version, .*model.resume_type: lora or full starts from its weights; no other in", said)
    assert "is damaged" in damaged(second, spoil)
    assert not mark.exists()
    pickle.loads(bad)
    assert mark.exists(), "it would have"


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    one, other = (save(tmp_path / name, run()) / "state" for name in "ab")
    assert all((other / p.name).read_bytes() == p.read_bytes() for p in one.iterdir())
    (tmp_path / "plain").touch()
    assert {p.stat().st_mode for p in one.iterdir()} == {(tmp_path / "plain").stat().st_mode}
