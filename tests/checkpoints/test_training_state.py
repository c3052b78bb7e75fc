"""A training state that was saved is the one that is loaded; one that is another run's is refused."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.runs.training_state import Progress, load
from tests.checkpoints.states import run, save, train, values
from tests.tiny.run import read_state

OTHER: dict[str, Any] = {"lr": 0.003, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.7, "length": 40}


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


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    one, other = (save(tmp_path / name, run()) / "state" for name in "ab")
    assert all((other / p.name).read_bytes() == p.read_bytes() for p in one.iterdir())
    (tmp_path / "plain").touch()
    assert {p.stat().st_mode for p in one.iterdir()} == {(tmp_path / "plain").stat().st_mode}
