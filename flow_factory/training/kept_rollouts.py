"""The finished part of an interrupted epoch: its samples and their scores, saved next to the training state.

<checkpoint>/rollouts/part-00000.safetensors ...  a file for each process: tensors and images, described in its metadata
<checkpoint>/rollouts/index.json                  the identity of the run, and size and sha256 of every file; written last
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import diffusers
import peft
import torch
import transformers
from accelerate.utils import broadcast_object_list, gather_object
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open

import flow_factory
from flow_factory.checkpoints.checkpoint import CheckpointError, plainly
from flow_factory.checkpoints.state_files import INDEX, Stored
from flow_factory.config import RunConfig, config_tree
from flow_factory.data.fingerprints import file_sha256
from flow_factory.data.packing import MALFORMED
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.training.finished_work import FinishedWork, UnkeptError, packed, unpacked
from flow_factory.utils.tensor_file import write_tensors

if TYPE_CHECKING:
    from flow_factory.training.trainer import Trainer

FOLDER, METADATA = "rollouts", "rollouts"
FORMAT: Literal[1] = 1
"""The version of the files. Files of another version are ignored."""
NO_PART = ("log", "eval", "eval_rewards", "main_process_port", "distributed_timeout", "model.resume_path", "model.resume_type",
           "train.max_epochs", "data.cache_dir")  # fmt: skip
"""Keys of the config that may change, because no sample and no score depends on them."""
SHARE = 0.5
"""The share of the disk's free space that may be used."""


class Contents(BaseModel):
    """`index.json`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    format: Literal[1]
    of: dict[str, Any]
    """See `whose`."""
    files: dict[str, Stored]


# -- saving -----------------------------------------------------------------------------------------------------------------------------


def keep(trainer: "Trainer", checkpoint: Path) -> str | None:
    """Saves the finished part of the current epoch. All processes call this at the same place.

    Args:
        checkpoint: the checkpoint with the epoch's state.

    Returns:
        A line about the result; None if there is nothing to save.
    """
    done = trainer.collector.done_so_far()
    if done is None:
        return None
    if trainer.context.accelerator.is_main_process:
        shutil.rmtree(_partial(checkpoint), ignore_errors=True)  # from an earlier interruption
    try:
        tensors, text, problem = *packed(done), None
    except UnkeptError as error:
        tensors, text, problem = {}, "", str(error)
    wait_for_everyone("gathering rollouts")
    size, free = sum(t.nbytes for t in tensors.values()), shutil.disk_usage(checkpoint).free
    everyone = gather_object([(size, free, problem, len(done.rollouts))])
    size, problem = sum(one[0] for one in everyone), next((one[2] for one in everyone if one[2]), None)
    problem = problem or _too_much(size / 1e9, trainer.context.config.log.rollouts_gb, everyone[0][1] / 1e9)
    many = f"{sum(one[3] for one in everyone)} micro-batches of epoch {trainer.context.progress.epoch + 1}"
    problem = problem or _write(trainer, checkpoint, tensors, text)
    return f"{many} are not kept: {problem}" if problem else f"{many} are kept beside the state ({size / 1e9:.2g} GB)"


def _too_much(size: float, most: float, free: float) -> str | None:
    if size > most:
        return f"they are {size:.3g} GB, and log.rollouts_gb is {most:g}"
    return f"they are {size:.3g} GB, and the disk has {free:.3g} GB left" if size > SHARE * free else None


def _write(trainer: "Trainer", checkpoint: Path, tensors: Mapping[str, torch.Tensor], text: str) -> str | None:
    """Writes this process's file, and on the main process the index. Returns the reason if it failed on any process."""
    main, partial = trainer.context.accelerator.is_main_process, _partial(checkpoint)
    file = partial / f"part-{trainer.context.accelerator.process_index:05d}.safetensors"
    mine: tuple[str, dict[str, Any]] | str
    try:
        partial.mkdir(exist_ok=True)
        digest = write_tensors(file, tensors, {METADATA: text})
        mine = file.name, {"size": file.stat().st_size, "sha256": digest}
    except OSError as error:
        mine = _reason(error)
    wait_for_everyone("writing rollouts")
    everyone = gather_object([mine])
    problem = next((one for one in everyone if isinstance(one, str)), None)
    if main and problem is None:
        try:
            _finish(checkpoint, Contents(format=FORMAT, of=identity_of(trainer, checkpoint), files=dict(everyone)))
        except OSError as error:
            problem = _reason(error)
    if main and problem is not None:
        shutil.rmtree(partial, ignore_errors=True)
    return problem


def _reason(error: OSError) -> str:
    return f"{type(error).__name__}: {error}"


def _partial(checkpoint: Path) -> Path:
    return checkpoint / f".partial-{FOLDER}"


def _finish(checkpoint: Path, contents: Contents) -> None:
    """Flushes all files to the disk, then renames the folder to its final name."""
    partial, old = _partial(checkpoint), checkpoint / f".old-{FOLDER}"
    (partial / INDEX).write_text(contents.model_dump_json(indent=1), encoding="utf-8")
    for path in partial.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(old, ignore_errors=True)  # from an earlier interruption
    if (checkpoint / FOLDER).exists():
        (checkpoint / FOLDER).rename(old)
    partial.rename(checkpoint / FOLDER)
    shutil.rmtree(old, ignore_errors=True)


def clear(checkpoints: Path, but: Path) -> None:
    """Removes the rollouts of finished epochs from checkpoints, on the main process, when the checkpoint `but` is complete."""
    for folder in checkpoints.glob(f"**/*{FOLDER}"):
        if folder.parent != but and folder.name in (FOLDER, f".partial-{FOLDER}", f".old-{FOLDER}"):
            shutil.rmtree(folder, ignore_errors=True)


# -- loading ----------------------------------------------------------------------------------------------------------------------------


def restore(trainer: "Trainer", checkpoint: Path) -> str | None:
    """Loads the finished part of the next epoch from a checkpoint. All processes call this together.

    If the files are damaged or of another run on any process, no process uses them.

    Returns:
        A line about the result; None if there is nothing to load.
    """
    folder, found = checkpoint / FOLDER, None
    wait_for_everyone("looking for rollouts")
    if not broadcast_object_list([folder.is_dir()])[0]:
        return None
    problem = None
    try:
        found = _read(trainer, checkpoint)
    except CheckpointError as error:
        problem = str(error)
    wait_for_everyone("reading rollouts")
    everyone = gather_object([(problem, 0 if found is None else len(found.rollouts))])
    epoch, problem = trainer.context.progress.epoch + 1, next((one[0] for one in everyone if one[0]), None)
    if problem is not None:
        return f"the samples of epoch {epoch} that were kept cannot be used, and are drawn again: {problem}"
    trainer.collector.done = found
    return f"{sum(one[1] for one in everyone)} micro-batches of epoch {epoch} are reused"


def _read(trainer: "Trainer", checkpoint: Path) -> FinishedWork:
    """Raises:
    CheckpointError: the files are damaged, or of another run.
    """
    folder = checkpoint / FOLDER
    with plainly(folder, "is damaged"):
        contents = Contents.model_validate_json((folder / INDEX).read_bytes())
        here = identity_of(trainer, checkpoint)
        for key in sorted({*contents.of, *here}):
            if (was := contents.of.get(key)) != (now := here.get(key)):
                raise CheckpointError(f"{key} was {json.dumps(was)[:80]}, and is {json.dumps(now)[:80]}")
        name = f"part-{trainer.context.accelerator.process_index:05d}.safetensors"
        if name not in contents.files or file_sha256(str(folder / name)) != contents.files[name].sha256:
            raise ValueError(f"the checksum of {name} is wrong")
        with safe_open(folder / name, "pt") as file:
            tensors, text = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()[METADATA]  # noqa: SIM118
        try:
            return unpacked(tensors, text, trainer.collector)
        except CheckpointError:
            raise
        except MALFORMED as error:
            raise ValueError(f"{name} holds something else") from error


# -- identity ---------------------------------------------------------------------------------------------------------------------------


def identity_of(trainer: "Trainer", checkpoint: Path) -> dict[str, Any]:
    """Everything that samples and scores of an epoch depend on, except the rows, in parts that an error message can name."""
    state = checkpoint / "state" / INDEX
    context = trainer.context
    return dict(_config(context.config)) | trainer.identity | {
        "the state": file_sha256(str(state)), "the epoch": context.progress.epoch, "the device": device_of(context.accelerator.device),
        "torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
        "the program": code_of(trainer),
    }  # fmt: skip


def _config(config: RunConfig) -> Iterator[tuple[str, Any]]:
    """The dotted keys of the config that count, with their values."""

    def spread(tree: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            key = before + name
            if key in NO_PART:
                continue
            if isinstance(value, dict):
                yield from spread(value, f"{key}.")
            else:
                yield key, value

    yield from spread(config_tree(config), "")
    yield "log.num_samples", config.log.num_samples


def device_of(device: torch.device) -> str:
    """The kind of the device. Another kind rounds differently."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def code_of(trainer: "Trainer") -> str:
    """sha256 of the program, and of the modules of a user's own adapter, algorithm and rewards."""
    own = [trainer.context.adapter, trainer.context.algorithm, *(reward.model for reward in trainer.context.rewards.rewards)]
    modules = {sys.modules[c.__module__] for one in own for c in type(one).__mro__}
    files = {str(f) for f in Path(flow_factory.__file__).parent.rglob("*.py")} | {f for m in modules if (f := getattr(m, "__file__", None))}
    return hashlib.sha256("".join(file_sha256(f) for f in sorted(files)).encode()).hexdigest()
