"""The training state for an exact resumption: weights, their copies, the optimiser's state, counters.

Names and shapes do not depend on the engine or the number of processes, so a run may be resumed with others. The tensors are
weights/<copy>/<parameter> and optimizer/<key>/<parameter>. For the files see `state_files`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from accelerate.utils import gather_object

from flow_factory.checkpoints.checkpoint import CheckpointError, checkpoints, plainly
from flow_factory.checkpoints.state_files import Index, Saved, Staged, contents, damaged, reading
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.distributed.engines import Engine
from flow_factory.policy.weight_store import WeightStore


@dataclass
class Progress:
    """The progress of the run, saved with the training state."""

    epoch: int = 0
    """The next epoch. All before it are complete."""
    updates: int = 0
    """The number of optimiser steps, which is also the position of the learning rate's schedule."""
    memory: dict[str, list[float]] = field(default_factory=dict)
    """Values that algorithms remember of earlier epochs, see `training.kl_gate`."""


def stage(store: WeightStore, engine: Engine) -> Staged:
    """CPU copies of the tensors, or parts of them, that this process writes. All processes call this together."""
    shapes = {name: engine.shape(p) for name, p in store.params.items()}
    copies = store.state_dict().items()
    out = {f"weights/{copy}/{name}": engine.stage(part, shapes[name]) for copy, parts in copies for name, part in parts.items()}
    return out | {f"optimizer/{name}": value for name, value in engine.moments().items()}


def load(folder: Path, store: WeightStore, engine: Engine, schedule: Any) -> Progress:
    """Loads the state of a checkpoint into the parts of a run. All processes call this together.

    Each process reads its own parts, tensor by tensor. Weights, moments and counters come from the state. Learning rate, betas, weight
    decay and schedule remain those of the run.

    Raises:
        CheckpointError: the state is of another run, or damaged. The run has not changed then.
    """
    progress = restore(folder, store, engine)
    advance(schedule, progress.updates)
    return Progress(progress.epoch, progress.updates, dict(progress.memory))


def restore(folder: Path, store: WeightStore, engine: Engine) -> Saved:
    """The part of `load` that is of weights, their copies and moments: the learning rate's schedule stays where it stands.

    Raises:
        CheckpointError: as `load`.
    """
    index, progress = whole_contents(folder)
    with _or_another(folder):
        mine = slice(engine.accelerator.process_index, None, engine.accelerator.num_processes)
        broken = damaged(folder / "state", index, mine)
        wait_for_everyone("reading a training state")
        if wrong := gather_object(broken):
            raise ValueError(f"the checksum of {wrong[0]} is wrong")
    saved = {name: tuple(spread.shape) for name, spread in index.tensors.items()}
    moments = {name.removeprefix("optimizer/") for name in saved if name.startswith("optimizer/")}
    if moments:
        engine.warm()
    copies = {f"weights/{copy}/{name}": (name, part) for copy, parts in store.state_dict().items() for name, part in parts.items()}
    shapes = {key: tuple(engine.shape(store.params[name])) for key, (name, _) in copies.items()}
    if problem := misfit(saved, shapes | {f"optimizer/{name}": shape for name, shape in engine.moment_shapes().items()}):
        raise CheckpointError(f"{folder} does not fit this run: {problem}")
    with _or_another(folder), reading(folder / "state", index) as fill:
        for key, (_, part) in copies.items():
            target = engine.room(part, shapes[key])
            fill(key, target)
            engine.unstage(target, part)
        engine.load_moments(moments, lambda name, target: fill(f"optimizer/{name}", target))
    wait_for_everyone("reading a training state")
    engine.written()
    engine.adopted()
    return progress


def whole_contents(folder: Path) -> tuple[Index, Saved]:
    """`state_files.contents`, with an error that names another complete checkpoint."""
    with _or_another(folder):
        return contents(folder)


def advance(schedule: Any, steps: int) -> None:
    """Sets the learning rate's schedule, and the optimiser's rate, to their values after this many steps."""
    if steps:
        schedule.last_epoch, schedule._step_count = steps - 1, steps + 1  # the second avoids a warning of torch
        schedule.step()


@contextmanager
def _or_another(folder: Path) -> Iterator[None]:
    """Adds the name of another complete checkpoint to the error of a damaged one."""
    try:
        with plainly(folder, "is damaged"):
            yield
    except CheckpointError as error:
        whole = next((c for c in reversed(checkpoints(folder.parent)) if c != folder and _is_whole(c)), None)
        advice = f"no other in {folder.parent} has a whole training state"
        if whole is not None:
            advice = f"go on from a whole one: {quote(f'model.resume_path={whole}')}"
        raise CheckpointError(f"{error}; {advice}") from error


def _is_whole(folder: Path) -> bool:
    try:
        contents(folder)
    except CheckpointError:
        return False
    return True


def misfit(saved: Mapping[str, tuple[int, ...]], here: Mapping[str, tuple[int, ...]]) -> str | None:
    """The reason why a saved state does not fit this run."""
    copies = [sorted({k.split("/")[1] for k in names if k.startswith("weights/")}) for names in (saved, here)]
    if copies[0] != copies[1]:
        return f"the saved copies are {copies[0]}, this run keeps {copies[1]}"
    saved = dict(sorted(saved.items(), reverse=True))  # weights before the optimiser's state
    wrong = [k for k in saved if k not in here] + [k for k in here if k not in saved and k.startswith("weights/")]
    wrong += [k for k, size in saved.items() if k in here and here[k] != size]
    return f"first at {wrong[0]!r}: other lora_rank, target_modules or optimizer?" if wrong else None
