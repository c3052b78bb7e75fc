"""Checkpoints: folders that are complete or absent.

    <run>/checkpoints/epoch_12/            LoRA: pytorch_lora_weights.safetensors, for `pipe.load_lora_weights(folder)`, and
                                           adapter_model.safetensors with its config, for `PeftModel.from_pretrained`
                                           full: transformer/ as `save_pretrained` writes it, for `from_pretrained`
    <run>/checkpoints/epoch_12/state/      with save_model_only false: the training state for an exact resumption
    <run>/checkpoints/abandoned-1/         checkpoints after the one that the run resumed from; `.abandoned-1-after-2` while they are moved

A folder is written under another name and then renamed.
"""

import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from safetensors import SafetensorError

from flow_factory.checkpoints.known_runs import is_run, runs_hint, runs_in, some_of
from flow_factory.checkpoints.lora_file import LORA_FILE, PEFT_FILE, holds_lora, lora_file
from flow_factory.utils.errors import UserError, file_errors
from flow_factory.utils.files import absolute

WEIGHTS = "diffusion_pytorch_model.safetensors"
UNDER_WAY = re.compile(r"\.abandoned-(\d+)-after-(\d+)", re.ASCII)
"""The name of the folder into which checkpoints after an epoch are being moved: number, epoch."""
SHARD = re.compile(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors")
PLACES = (("", "checkpoint-"), ("", "epoch_"), ("checkpoints", "checkpoint-"), ("checkpoints", "epoch_"))
"""(folder, name prefix) of checkpoints in the folder of a run, or in its folder of checkpoints, those of this program last."""
HUB_NAME = re.compile(r"(hf:/+)?\w[\w.-]*(/\w[\w.-]*)+(@[\w./-]+)?")
"""owner/name, and how other programs write a folder or a revision of it; a relative path may look the same."""
Kind = Literal["lora", "full", "state"]


class CheckpointError(UserError):
    """A folder is not the expected checkpoint. The message says what it is."""


def partial_of(folder: Path) -> Path:
    """The folder in which a checkpoint is written before it is renamed. An interruption leaves it behind."""
    return folder.with_name(f".partial-{folder.name}")


def begin(partial: Path) -> None:
    """Creates the folder, and removes what an earlier interruption left there."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def finish(partial: Path, folder: Path) -> None:
    """Flushes all files to the disk, then renames the folder."""
    for path in partial.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if folder.exists():
        old = folder.with_name(f".old-{folder.name}")
        shutil.rmtree(old, ignore_errors=True)  # from an earlier interruption
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)


def kind_of(folder: Path) -> Kind:
    """The kind of a folder to resume from: a training state, a LoRA or full weights.

    Raises:
        CheckpointError: it has none of them.
    """
    if has_state(folder):
        return "state"
    return model_kind(folder)


def has_state(folder: Path) -> bool:
    """Whether there is a training state, even an incomplete one, which `training_state.load` reports."""
    return (folder / "state").is_dir()


def model_kind(path: Path, key: str = "model.resume_path") -> Literal["lora", "full"]:
    """The kind of a checkpoint's weights, with or without a training state.

    Args:
        key: what named it, for messages.

    Raises:
        CheckpointError: it has no weights.
    """
    with file_errors(key, path, "name a checkpoint that can be read", CheckpointError):
        here = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    if path.suffix == ".safetensors" and path.is_file():
        try:
            return "lora" if holds_lora(path) else "full"
        except ValueError as error:
            raise CheckpointError(f"{key}: {path} {error}") from error
    if any(map(lora_file, (path, *path.glob("*")))):
        return "lora"
    if any(path.glob("*/config.json")) or ("config.json" in here and any(map(SHARD.fullmatch, here))):
        return "full"
    if any(name.endswith((".pkl", ".bin", ".pt", ".pth", ".ckpt")) for name in here):
        raise CheckpointError(f"{key}: {path} holds pickles, which can run code; name safetensors weights")
    anew = "; with its run_name, model.resume_path=auto starts it anew" if key == "model.resume_path" and is_run(path) else ""
    raise CheckpointError(f"{key}: {path} {_no_checkpoint(path, here)}{anew}")


def _no_checkpoint(path: Path, here: Sequence[str]) -> str:
    """What a path is instead of a checkpoint, and what would be one."""
    if is_run(path):
        return "is a run without a checkpoint; one is written every log.save_freq epochs and at the end"
    if path.is_dir() and (runs := runs_in(path)):
        return f"holds runs; name one (newest first): {some_of(runs)}"
    seen = ", ".join(here[:6]) or ("empty" if path.is_dir() else "no safetensors file" if path.exists() else "no such folder or file")
    hint = "" if path.exists() else _beside(path) or runs_hint(path)
    right = f".{hint}" if hint else f"; one holds state/, {LORA_FILE}, {PEFT_FILE} or transformer/config.json"
    local = path.exists() or (hint and Path(path.parts[0]).exists())
    if not local and HUB_NAME.fullmatch(str(path)):
        right += "; if it is on the hub, download it, and name the folder"
    return f"is not a checkpoint ({seen}){right}"


def _beside(missing: Path) -> str:
    """The last checkpoints of the run that a missing one would be in; empty if there is none."""
    home = next((place for place in (missing.parent, missing.parent / "checkpoints") if checkpoints(place)), None)
    return "" if home is None else f" {home} has {', '.join(path.name for path in checkpoints(home)[:-5:-1])}"


def newest(folder: Path) -> Path:
    """The last complete checkpoint in the folder of a run, also of other programs; any other path is returned unchanged."""
    found = [c for place, name in PLACES for c in checkpoints(folder / place, name)]
    return found[-1] if found else folder


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is in."""
    return absolute(checkpoint).parent.parent


def newest_state(folder: Path) -> Path | None:
    """The last complete checkpoint with a training state in the folder of a run; None if there is none."""
    return next((path for path in reversed(checkpoints(folder / "checkpoints")) if has_state(path)), None)


def checkpoints(folder: Path, name: str = "epoch_") -> list[Path]:
    """Complete checkpoints in the order of their epochs, without abandoned ones, even if an interruption has stopped their move."""
    begun = unfinished_archive(folder)
    return [path for epoch, path in numbered(folder, name) if begun is None or epoch <= begun[1]]


def numbered(folder: Path, name: str = "epoch_") -> list[tuple[int, Path]]:
    """(epoch, checkpoint) of all checkpoints in a folder, in the order of their epochs."""
    return sorted((int(m[1]), p) for p in folder.glob(f"{name}*") if (m := re.fullmatch(rf"{name}(\d+)", p.name, re.ASCII)))


def unfinished_archive(folder: Path) -> tuple[int, int] | None:
    """(number, epoch) if a start was interrupted while it moved the checkpoints after the epoch to `abandoned-<number>`; else None."""
    return next(((int(m[1]), int(m[2])) for p in folder.glob(".abandoned-*") if (m := UNDER_WAY.fullmatch(p.name))), None)


def prune(folder: Path, keep_last_n: int | None, but: Collection[Path | None] = ()) -> None:
    """Deletes all checkpoints except the last ones and those that are named."""
    if keep_last_n is not None:
        for old in checkpoints(folder)[:-keep_last_n]:
            if old not in but:
                shutil.rmtree(old)


@contextmanager
def plainly(path: Path, what: str) -> Iterator[None]:
    """Turns errors of the file system and of damaged files into a `CheckpointError`."""
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
