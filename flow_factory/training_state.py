"""What a resumed run needs to go on exactly: weights, their copies, optimiser, learning rate, counters.

Kept by torch's distributed checkpoint, each process writing what it holds, under names and shapes that no engine and no number of
processes has a part in: a run may go on in another number of processes, or on another engine.

    <checkpoint>/state/.metadata, *.distcp     weights/<copy>/<parameter>, optimizer/<key>/<parameter>
    <checkpoint>/state/progress.json           written last of all
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from flow_factory.checkpoint import CheckpointError, checkpoints
from flow_factory.engines import Engine
from flow_factory.weights import WeightStore

warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)  # one process alone


@dataclass
class Progress:
    """How far the run has come; saved with the training state."""

    epoch: int = 0
    """The next epoch; all before it are complete."""
    updates: int = 0
    """Optimiser steps taken."""


def stage(store: WeightStore, engine: Engine) -> dict[str, Tensor]:
    """Copies of all tensors of the state, on the CPU. Called by all processes together."""
    shapes = {name: engine.shape(p) for name, p in store.params.items()}
    copies = store.state_dict().items()
    out = {f"weights/{copy}/{name}": engine.stage(part, shapes[name]) for copy, parts in copies for name, part in parts.items()}
    return out | {f"optimizer/{name}": value for name, value in engine.moments().items()}


def write(folder: Path, staged: dict[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Writes this process's tensors, each once over all processes. Called by all together.

    Args:
        group: through which they agree on who writes what; None for one process alone.

    Raises:
        CheckpointError: the disk is full, or the like.
    """
    with plainly(folder, "cannot be written"):
        dcp.save(staged, storage_writer=dcp.FileSystemWriter(folder), process_group=group, no_dist=group is None)


def load(folder: Path, store: WeightStore, engine: Engine, schedule: Any) -> dict[str, Any]:
    """Puts the state of a checkpoint into what a run has built; returns the progress.

    Raises:
        CheckpointError: it is another run's, or damaged; nothing of the run has changed.
    """
    with _or_another(folder):
        metadata, progress = contents(folder)
    saved = {k: tuple(m.size) for k, m in metadata.state_dict_metadata.items()}  # type: ignore[union-attr]
    if any(name.startswith("optimizer/") for name in saved):
        engine.warm()
    targets = stage(store, engine)
    if problem := misfit(saved, targets):
        raise CheckpointError(f"{folder} does not fit this run: {problem}")
    targets = {k: t for k, t in targets.items() if k in saved}
    with _or_another(folder):
        dcp.load(targets, storage_reader=dcp.FileSystemReader(folder / "state"), no_dist=not dist.is_initialized())
    for copy, parts in store.state_dict().items():
        for name, part in parts.items():
            engine.unstage(targets[f"weights/{copy}/{name}"], part)
    engine.load_moments({k.removeprefix("optimizer/"): t for k, t in targets.items() if k.startswith("optimizer/")})
    engine.written()
    engine.adopted()
    schedule.load_state_dict(progress.pop("schedule"))
    for group, rate in zip(engine.optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate
    return progress


def contents(folder: Path) -> tuple[Metadata, dict[str, Any]]:
    """(names and shapes of the saved tensors, progress) of a checkpoint all of whose files have their length; numbers are not read.

    Raises:
        CheckpointError: a file is missing or cut off.
    """
    state = folder / "state"
    with plainly(folder, "is damaged"):
        metadata = dcp.FileSystemReader(state).read_metadata()
        for piece in metadata.storage_data.values():
            if (state / piece.relative_path).stat().st_size < piece.offset + piece.length:
                raise EOFError(f"{piece.relative_path} is cut off")
        return metadata, json.loads((state / "progress.json").read_text())


@contextmanager
def _or_another(folder: Path) -> Iterator[None]:
    """Adds to what is wrong with a checkpoint which one beside it is whole."""
    try:
        with plainly(folder, "is damaged"):
            yield
    except CheckpointError as error:
        whole = next((c for c in reversed(checkpoints(folder.parent)) if c != folder and _is_whole(c)), None)
        advice = (
            f"go on from a whole one: model.resume_path={whole}" if whole else f"no other in {folder.parent} has a whole training state"
        )
        raise CheckpointError(f"{error}; {advice}") from error


def _is_whole(folder: Path) -> bool:
    try:
        contents(folder)
    except CheckpointError:
        return False
    return True


def misfit(saved: Mapping[str, tuple[int, ...]], here: Mapping[str, Tensor]) -> str | None:
    """Why a saved state is not this run's."""
    copies = [sorted({k.split("/")[1] for k in names if k.startswith("weights/")}) for names in (saved, here)]
    if copies[0] != copies[1]:
        return f"the saved copies are {copies[0]}, this run keeps {copies[1]}"
    wrong = [k for k in saved if k not in here] + [k for k in here if k not in saved and k.startswith("weights/")]
    wrong += [k for k, size in saved.items() if k in here and tuple(here[k].shape) != size]
    return f"first at {wrong[0]!r}: other lora_rank, target_modules or optimizer?" if wrong else None


@contextmanager
def plainly(folder: Path, what: str) -> Iterator[None]:
    """Turns what torch's distributed checkpoint and the file system raise into a `CheckpointError`."""
    try:
        yield
    except CheckpointError:
        raise
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise CheckpointError(f"{folder} {what}: {type(reason).__name__}: {reason}") from error
    except (OSError, EOFError, ValueError, KeyError, UnpicklingError, SafetensorError) as error:
        raise CheckpointError(f"{folder} {what}: {type(error).__name__}: {error}") from error
