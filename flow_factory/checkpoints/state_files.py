"""The files of a training state. They are data only: reading them cannot run code.

<checkpoint>/state/part-00000.safetensors ...  rows of tensors, a file for each process that wrote
<checkpoint>/state/progress.json               counters, and the identity of the run
<checkpoint>/state/index.json                  the place of each row, and size and sha256 of every file; written last
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, NonNegativeInt
from safetensors import safe_open
from torch import Tensor

from flow_factory.checkpoints.checkpoint import CheckpointError, plainly
from flow_factory.data.fingerprints import file_sha256
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.utils.tensor_file import NAMES, write_tensors

INDEX, PROGRESS = "index.json", "progress.json"
FORMAT: Literal[1] = 1
"""The version of the files. A state of another version is refused."""


@dataclass(frozen=True)
class Slab:
    """Rows of a tensor, on the CPU, that a process writes or reads."""

    rows: Tensor
    first: int
    """The index of the first row."""
    shape: tuple[int, ...]
    """The shape of the whole tensor."""


Staged = Mapping[str, Tensor | Slab]
"""Name -> tensor. A plain tensor is whole, and the same on every process."""
Fill = Callable[[str, "Tensor | Slab"], None]
"""Reads the saved tensor of this name into a tensor, or into these rows."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Stored(_Part):
    """The expected size and sha256 of a file."""

    size: NonNegativeInt
    sha256: str


class Rows(_Part):
    """The file of rows `first` to `end` of a tensor, or of a whole 0-dim tensor."""

    file: str
    first: NonNegativeInt
    end: NonNegativeInt


class Spread(_Part):
    """A tensor: its shape, its dtype by safetensors' name, and the files of its rows."""

    shape: list[NonNegativeInt]
    dtype: str
    rows: list[Rows]


class Index(_Part):
    """`index.json`."""

    format: Literal[1]
    files: dict[str, Stored]
    tensors: dict[str, Spread]


class Saved(BaseModel):
    """`progress.json`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    epoch: NonNegativeInt
    updates: NonNegativeInt
    memory: dict[str, list[float]] = {}
    """See `training_state.Progress`."""
    run: dict[str, Any] = {}
    """See `identity.identity_of`."""


def write(state: Path, staged: Staged, progress: Mapping[str, Any], group: dist.ProcessGroup | None) -> None:
    """Writes this process's rows, and on the first process the index. All processes call this together.

    Args:
        group: the process group for the exchange of the index; None for a single process.

    Raises:
        CheckpointError: writing failed on any process, e.g. because its disk is full. All processes raise it.
    """
    rank = 0 if group is None else dist.get_rank(group)
    done: tuple[dict[str, Stored], dict[str, Spread]] | str
    try:
        done = _write_rows(state, staged, rank)
    except OSError as error:
        done = f"{type(error).__name__}: {error}"
    everyone = [done]
    if group is not None:
        everyone *= dist.get_world_size(group)
        wait_for_everyone("writing a training state")
        dist.all_gather_object(everyone, done, group)
    if failed := next((each for each in everyone if isinstance(each, str)), None):
        raise CheckpointError(f"{state} cannot be written: {failed}")
    if rank == 0:
        with plainly(state, "cannot be written"):
            _write_index(state, [each for each in everyone if not isinstance(each, str)], progress)


def _write_rows(state: Path, staged: Staged, rank: int) -> tuple[dict[str, Stored], dict[str, Spread]]:
    state.mkdir(parents=True, exist_ok=True)
    mine = {name: _rows_in(t) for name, t in staged.items() if rank == 0 or isinstance(t, Slab)}
    mine = {name: (t, first) for name, (t, first) in mine.items() if t.ndim == 0 or len(t) or rank == 0}
    file = state / f"part-{rank:05d}.safetensors"
    digest = write_tensors(file, {name: t for name, (t, _) in mine.items()})
    with file.open("rb") as written:
        os.fsync(written.fileno())
    spread = {
        name: Spread(
            shape=list(staged[name].shape),
            dtype=NAMES[t.dtype],
            rows=[Rows(file=file.name, first=first, end=first + (len(t) if t.ndim else 0))],
        )
        for name, (t, first) in mine.items()
    }
    return {file.name: Stored(size=file.stat().st_size, sha256=digest)}, spread


def _write_index(state: Path, parts: list[tuple[dict[str, Stored], dict[str, Spread]]], progress: Mapping[str, Any]) -> None:
    text = json.dumps(dict(progress), indent=2)
    (state / PROGRESS).write_text(text, encoding="utf-8")
    files = {PROGRESS: Stored(size=len(text.encode()), sha256=hashlib.sha256(text.encode()).hexdigest())}
    tensors: dict[str, Spread] = {}
    for stored, spread in parts:
        files |= stored
        for name, part in spread.items():
            rows = [*(tensors[name].rows if name in tensors else ()), *part.rows]
            tensors[name] = part.model_copy(update={"rows": sorted(rows, key=lambda r: r.first)})
    index = Index(format=FORMAT, files=files, tensors=dict(sorted(tensors.items())))
    (state / INDEX).write_text(index.model_dump_json(indent=1), encoding="utf-8")


def contents(folder: Path) -> tuple[Index, Saved]:
    """The index and the progress of a checkpoint's state, after a check of the files' sizes. It does not read tensors.

    Raises:
        CheckpointError: a file is missing, truncated or damaged, or of another version.
    """
    state = folder / "state"
    if (state / ".metadata").exists() and not (state / INDEX).exists():
        raise CheckpointError(
            f"{folder} has a training state of an earlier version, whose index is a pickle and is not read, since it could run code; "
            "model.resume_type: lora or full starts from its weights"
        )
    with plainly(folder, "is damaged"):
        index = Index.model_validate_json((state / INDEX).read_bytes())
        for name, stored in index.files.items():
            if Path(name).name != name:
                raise ValueError(f"{INDEX} names {name!r}, which is in another folder")
            if (size := (state / name).stat().st_size) != stored.size:
                raise EOFError(f"{name} is truncated or replaced: it has {size} bytes, and {INDEX} says {stored.size}")
        for name, spread in index.tensors.items():
            _require_whole(name, spread, index)
        text = (state / PROGRESS).read_bytes()
        if hashlib.sha256(text).hexdigest() != index.files[PROGRESS].sha256:
            raise ValueError(f"the checksum of {PROGRESS} is wrong")
        return index, Saved.model_validate_json(text)


def _require_whole(name: str, spread: Spread, index: Index) -> None:
    """Raises:
    ValueError: rows of a tensor are missing, or in a file without a checksum.
    """
    end = 0
    for rows in spread.rows:
        if rows.first != end or rows.file not in index.files:
            raise ValueError(f"{INDEX}: rows of {name!r} are missing")
        end = rows.end
    if not spread.rows or (spread.shape and end != spread.shape[0]):
        raise ValueError(f"{INDEX}: rows of {name!r} are missing")


def damaged(state: Path, index: Index, share: slice) -> list[str]:
    """The files of this share whose sha256 is wrong. It reads all their bytes."""
    return [name for name in sorted(index.files)[share] if file_sha256(str(state / name)) != index.files[name].sha256]


def read(state: Path, index: Index, targets: Staged) -> None:
    """Reads tensors into the targets.

    Raises:
        SafetensorError, ValueError: a file contradicts the index.
    """
    with reading(state, index) as fill:
        for name, target in targets.items():
            fill(name, target)


@contextmanager
def reading(state: Path, index: Index) -> Iterator[Fill]:
    """Yields a function that reads tensors one by one, so that only one has to be in main memory.

    Raises:
        SafetensorError, ValueError: a file contradicts the index. Nothing has been read.
    """
    with ExitStack() as stack:
        files = {name: stack.enter_context(safe_open(state / name, "pt")) for name in index.files if name != PROGRESS}
        for name, spread in sorted(index.tensors.items(), reverse=True):  # weights before the optimiser's state
            for rows in spread.rows:
                if files[rows.file].get_slice(name).get_shape() != ([rows.end - rows.first, *spread.shape[1:]] if spread.shape else []):
                    raise ValueError(f"{rows.file} has another shape for {name!r} than {INDEX}")

        def fill(name: str, target: Tensor | Slab) -> None:
            mine, first = _rows_in(target)
            for rows in index.tensors[name].rows:
                _fill(mine, first, rows, files[rows.file], name)

        yield fill


def _fill(mine: Tensor, first: int, rows: Rows, there: Any, name: str) -> None:
    """Copies the rows of a file that belong to this process."""
    if not mine.ndim:
        mine.copy_(there.get_tensor(name))
        return
    begin, end = max(first, rows.first), min(first + len(mine), rows.end)
    if begin < end:
        mine[begin - first : end - first].copy_(there.get_slice(name)[begin - rows.first : end - rows.first])


def _rows_in(target: Tensor | Slab) -> tuple[Tensor, int]:
    """(rows, index of the first)"""
    return (target.rows, target.first) if isinstance(target, Slab) else (target, 0)
