"""Runs of a tiny FLUX.1 one after the other in the same processes: what starts cost is paid once."""

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import Tensor

from flow_factory.config import load_config
from flow_factory.train import build
from flow_factory.training.run import Run
from tests.tiny.run import logged, read_state, write_run
from tests.tiny.side_by_side import side_by_side
from tests.tiny.weighed import counted, static_bytes


def several(
    folder: Path,
    processes: int,
    runs: Mapping[str, Sequence[str]],
    do: Callable[[Run], Any] | None = None,
    begin: Callable[[int], None] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Does the runs in so many processes; for each what each of its processes says of its engine.

    Args:
        runs: {run_name: overrides}
        do: does a run and says what is asked of it instead.
        begin: what each process, with its number, does first.
    """
    if not (folder / "tiny.yaml").exists():
        write_run(folder)
    side_by_side(processes, folder, _runs, processes, runs, do or proof, begin)
    return {name: [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(processes)] for name in runs}


SMOOTH = (
    "rewards.reward_model=tests.tiny.rewards.Bright", "train.adam_epsilon=1e-3", "log.save_freq=1", "log.save_model_only=false",
    "eval.eval_freq=2",
)  # fmt: skip
"""What a run has that is compared: a reward that knows no steps, and no division by tiny moments, for a last bit would become one."""
FULL = ("model.finetune_type=full", "model.target_modules=all", "model.master_weight_dtype=fp32")
EXACT = ("train/zero_variance_share", "train/on_policy_error")
OWN = ("train/first_update_effect", "train/on_policy_error")
"""Of the first point of the first process, which is another one in every number of processes."""
OFF = {1: 1e-5, 2: 1e-2}
"""By epoch, how far runs may be apart that add in another order: a share of the norm of all moments, or of the way that weights went.

The gradient of an update is a sum of at most 100 terms in float32, each exact to 6e-8, and the terms of a group cancel in part: some 1e-7
were measured. From the second epoch on, a value of a picture between two of its 256 levels may round to the other one, which moves a
smooth reward by 1e-5 of its spread, and a gradient in which a group almost cancels by more: some 1e-4 were measured. A gradient that is
summed where it should be averaged, noise of another sample, a row too much are shares of 0.1 and more."""


LAST = {2: OFF[2]}


def assert_same_run(run: Path, other: Path, exact: bool = True) -> None:
    """Two runs of two epochs, with the keys of `SMOOTH`, say the same and have the same weights.

    Args:
        exact: pictures and what follows from them are the same to the bit until the first update.
    """
    said, others = logged(run), logged(other)
    assert [line["step"] for line in said] == [line["step"] for line in others]
    if exact:
        assert_same_start(said, others)
    for a, b in zip(said, others, strict=True):
        for k in set(a) - set(OWN):
            assert a[k] == pytest.approx(b[k], rel=1e-3, abs=1e-4), k
    assert_same_weights(run, other, OFF if exact else dict.fromkeys(OFF, OFF[2]))


def assert_same_start(said: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> None:
    """Lines of metrics: up to the first epoch's, pictures and what follows from them are the same to the bit."""
    until = 1 + next(k for k, line in enumerate(said) if any(name.startswith("train/") for name in line))
    kept = [{k for k in line if "reward" in k or k in EXACT} for line in said[:until]]
    assert any(kept), "an epoch without rewards has an evaluation before it"
    for names, a, b in zip(kept, said[:until], others[:until], strict=True):
        assert {k: a[k] for k in names} == {k: b[k] for k in names}


def assert_same_weights(run: Path, other: Path, off: Mapping[int, float] = OFF) -> None:
    """Of the training states of these epochs: weights, their copies and moments, all of a kind together.

    A single weight whose moments are tiny may be off by much of its step: what counts is how far all are off together.
    """
    states = {epoch: state_of(other, epoch) for epoch in (1, 2)}
    wanted = {epoch: vectors(state) for epoch, state in states.items()}
    for epoch, allowed in off.items():
        state = state_of(run, epoch)
        assert state.keys() == states[epoch].keys()
        here = vectors(state)
        for kind, x in wanted[epoch].items():
            moments = kind.startswith("optimizer")
            whole = x.norm() if moments else (wanted[2][kind] - wanted[1][kind]).norm()
            assert (here[kind] - x).norm() <= allowed * whole, f"epoch {epoch}: {kind} is {(here[kind] - x).norm() / whole:.1e} off"
    assert not torch.equal(wanted[1]["weights/policy"], wanted[2]["weights/policy"]), "the weights move"


def state_of(run: Path, epoch: int) -> dict[str, Tensor]:
    return read_state(run / "checkpoints" / f"epoch_{epoch}")


def vectors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a kind, such as `weights/policy` or `optimizer/exp_avg`, as one vector of float64."""
    kinds: dict[str, list[Tensor]] = {}
    for name, tensor in sorted(state.items()):
        kinds.setdefault("/".join(name.split("/")[:2]), []).append(tensor.double().flatten())
    return {kind: torch.cat(parts) for kind, parts in kinds.items()}


def _runs(
    rank: int,
    processes: int,
    runs: Mapping[str, Sequence[str]],
    do: Callable[[Run], Any],
    begin: Callable[[int], None] | None,
) -> None:
    if begin is not None:
        begin(rank)
    for name, overrides in runs.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        run = build(load_config("tiny.yaml", [*overrides, f"run_name={name}", f"num_processes={processes}"]))
        Path(f"{name}.{rank}.json").write_text(json.dumps(do(run)))
        del run
        gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


def proof(run: Run) -> dict[str, Any]:
    """Does the run; what the engine really is: of the objects, not of the config."""
    run()
    engine, params = run.context.engine, list(run.context.policy.components.parameters())
    return {
        "engine": engine.name,
        "wrapped": type(engine.wrapped).__name__,
        "held": sum(engine.part(p).numel() for p in params),
        "whole": sum(engine.shape(p).numel() for p in params),
        "moments": sum(t.numel() for state in engine.optimizer.state.values() for t in map(_local, state.values()) if t.dim()),
        "trained": sum(engine.shape(p).numel() for p in run.context.policy.trained().values()),
        "bytes": counted(run),
        "estimate": static_bytes(run.context.config),
    }


def _local(tensor: Any) -> Any:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
