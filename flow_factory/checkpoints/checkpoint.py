"""Checkpoints: folders that are whole or absent.

    <run>/checkpoints/epoch_12/            LoRA: pytorch_lora_weights.safetensors, for `pipe.load_lora_weights(folder)`, and
                                           adapter_model.safetensors with its config, for `PeftModel.from_pretrained`
                                           full: transformer/ as `save_pretrained` writes it, for `from_pretrained`
    <run>/checkpoints/epoch_12/state/      with save_model_only false: what a resumed run needs to go on exactly
    <run>/checkpoints/abandoned-1/         those after an earlier one that the run went on from; `.abandoned-1-after-2` while they are moved

A folder is written beside its place and then renamed.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from safetensors import SafetensorError

from flow_factory.checkpoints.lora_file import LORA_FILE, PEFT_FILE, lora_file
from flow_factory.utils.errors import UserError, file_errors

WEIGHTS = "diffusion_pytorch_model.safetensors"
UNDER_WAY = re.compile(r"\.abandoned-(\d+)-after-(\d+)", re.ASCII)
"""The folder into which checkpoints after an epoch are being moved: number, epoch."""
SHARD = re.compile(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors")
PLACES = (("", "checkpoint-"), ("checkpoints", "checkpoint-"), ("checkpoints", "epoch_"))
"""Folders and names of checkpoints in a run's folder, ours last."""
Kind = Literal["lora", "full", "state"]


class CheckpointError(UserError):
    """A folder that is not what it should be; the message says what it is."""


def partial_of(folder: Path) -> Path:
    """Where a checkpoint is written before it has its name; what a cut leaves."""
    return folder.with_name(f".partial-{folder.name}")


def begin(partial: Path) -> None:
    """An empty folder, whatever an earlier cut left there."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def finish(partial: Path, folder: Path) -> None:
    """Brings all to the disk, then puts it in its place."""
    for path in partial.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if folder.exists():
        old = folder.with_name(f".old-{folder.name}")
        shutil.rmtree(old, ignore_errors=True)  # of an earlier cut
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)


def kind_of(folder: Path) -> Kind:
    """What can be resumed from a folder: a training state, a LoRA or full weights.

    Raises:
        CheckpointError: none of them.
    """
    if has_state(folder):
        return "state"
    return model_kind(folder)


def has_state(folder: Path) -> bool:
    """Or what is left of one, which `training_state.load` will say."""
    return (folder / "state").is_dir()


def model_kind(path: Path) -> Literal["lora", "full"]:
    """What kind of weights a checkpoint has, with or without a training state beside them.

    Raises:
        CheckpointError: none.
    """
    with file_errors("model.resume_path", path, "name a checkpoint that can be read", CheckpointError):
        here = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    if path.suffix == ".safetensors" and path.is_file() or any(map(lora_file, (path, *path.glob("transformer*")))):
        return "lora"
    if any(path.glob("*/config.json")) or ("config.json" in here and any(map(SHARD.fullmatch, here))):
        return "full"
    if any(name.endswith((".pkl", ".bin", ".pt", ".pth", ".ckpt")) for name in here):
        raise CheckpointError(f"model.resume_path: {path} holds pickles, which can run code and are not read; name safetensors weights")
    seen = ", ".join(here[:6]) or ("empty" if path.is_dir() else "no safetensors file" if path.exists() else "no such folder or file")
    raise CheckpointError(
        f"model.resume_path: {path} is no checkpoint ({seen}); one holds state/, {LORA_FILE}, {PEFT_FILE} or transformer/config.json"
    )


def newest(folder: Path) -> Path:
    """The last whole checkpoint of a run folder, also of other programs'; any other path as it is."""
    found = [c for place, name in PLACES for c in checkpoints(folder / place, name)]
    return found[-1] if found else folder


def newest_state(folder: Path) -> Path | None:
    """The last whole checkpoint of a run folder that has a training state; None where there is none yet."""
    return next((path for path in reversed(checkpoints(folder / "checkpoints")) if has_state(path)), None)


def checkpoints(folder: Path, name: str = "epoch_") -> list[Path]:
    """Whole checkpoints in order of their epochs; of those that were set aside none, nor of those left where a cut stopped the moving."""
    begun = setting_aside(folder)
    return [path for epoch, path in numbered(folder, name) if begun is None or epoch <= begun[1]]


def numbered(folder: Path, name: str = "epoch_") -> list[tuple[int, Path]]:
    """(epoch, checkpoint) of all that are in a folder, in their order."""
    return sorted((int(m[1]), p) for p in folder.glob(f"{name}*") if (m := re.fullmatch(rf"{name}(\d+)", p.name, re.ASCII)))


def setting_aside(folder: Path) -> tuple[int, int] | None:
    """(number, epoch) where a start was cut while it moved the checkpoints after the epoch to `abandoned-<number>`."""
    return next(((int(m[1]), int(m[2])) for p in folder.glob(".abandoned-*") if (m := UNDER_WAY.fullmatch(p.name))), None)


def prune(folder: Path, keep_last_n: int | None, written: Path | None = None) -> None:
    """Deletes all but the last checkpoints, and never the one that was just written."""
    if keep_last_n is not None:
        for old in checkpoints(folder)[:-keep_last_n]:
            if old != written:
                shutil.rmtree(old)


@contextmanager
def plainly(path: Path, what: str) -> Iterator[None]:
    """Turns what the file system and damaged files raise into a `CheckpointError`."""
    try:
        yield
    except CheckpointError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}." for part in first["loc"])[:80].rstrip(".")
        raise CheckpointError(f"{path} {what}: ValueError: {f'{where}: ' if where else ''}{first['msg']}") from error
    except (OSError, EOFError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path} {what}: {type(error).__name__}: {error}") from error
