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
from flow_factory.run import Run
from flow_factory.train import build
from tests.tiny.run import logged, read_state, write_run
from tests.tiny.side_by_side import side_by_side
from tests.tiny.weighed import counted, static_bytes


def several(
    folder: Path, processes: int, runs: Mapping[str, Sequence[str]], timeout: float = 240, do: Callable[[Run], dict[str, Any]] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Does the runs in so many processes; for each what each of its processes says of its engine.

    Args:
        runs: {run_name: overrides}
        do: does a run and says what is asked of it instead.
    """
    if not (folder / "tiny.yaml").exists():
        write_run(folder)
    side_by_side(processes, folder, _runs, processes, runs, do or proof, timeout=timeout)
    return {name: [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(processes)] for name in runs}


EXACT = ("train/zero_variance_share", "train/on_policy_error")


def assert_same_run(run: Path, other: Path, exact: bool = True) -> None:
    """Two runs of two epochs, which both save their training states, say the same and have the same weights.

    Args:
        exact: pictures and what follows from them are the same to the bit until the first update.
    """
    said, others = logged(run), logged(other)
    assert [line["step"] for line in said] == [line["step"] for line in others]
    if exact:
        assert_same_start(said, others)
    for a, b in zip(said, others, strict=True):
        for k in set(a) - {"train/first_update_effect", "train/on_policy_error"}:  # of each process's own first point
            assert a[k] == pytest.approx(b[k], rel=1e-3, abs=1e-5), k
    states = [[read_state(folder / "checkpoints" / f"epoch_{epoch}") for folder in (run, other)] for epoch in (1, 2)]
    for here, there in states:
        assert_near(here, there)
    first, second = (there for _, there in states)
    assert [k for k in first if "policy" in k and not torch.equal(first[k], second[k])], "the weights move"


def assert_same_start(said: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> None:
    """Lines of metrics: up to the first epoch's, pictures and what follows from them are the same to the bit."""
    until = 1 + next(k for k, line in enumerate(said) if any(name.startswith("train/") for name in line))
    for a, b in zip(said[:until], others[:until], strict=True):
        kept = [k for k in a if "reward" in k or k in EXACT]
        assert kept and {k: a[k] for k in kept} == {k: b[k] for k in kept}


def assert_near(here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> None:
    """Training states whose sums went in another order."""
    assert here.keys() == there.keys()
    for k in here:
        torch.testing.assert_close(here[k], there[k], rtol=0, atol=1e-6, msg=lambda text, k=k: f"{k}: {text}")


def _runs(rank: int, processes: int, runs: Mapping[str, Sequence[str]], do: Callable[[Run], dict[str, Any]]) -> None:
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
    engine, params = run.trainer.engine, list(run.trainer.policy.components.parameters())
    return {
        "engine": engine.name,
        "wrapped": type(engine.wrapped).__name__,
        "held": sum(engine.part(p).numel() for p in params),
        "whole": sum(engine.shape(p).numel() for p in params),
        "moments": sum(t.numel() for state in engine.optimizer.state.values() for t in map(_local, state.values()) if t.dim()),
        "trained": sum(engine.shape(p).numel() for p in run.trainer.policy.trained().values()),
        "bytes": counted(run),
        "estimate": static_bytes(run.trainer.config),
    }


def _local(tensor: Any) -> Any:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
