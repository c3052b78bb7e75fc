"""Checkpoints: whole or absent, in the formats that diffusers reads.

    <run>/checkpoints/epoch_12/            LoRA: pytorch_lora_weights.safetensors, for `pipe.load_lora_weights(folder)`, and
                                           adapter_model.safetensors with its config, for `PeftModel.from_pretrained`
                                           full: transformer/ as `save_pretrained` writes it, for `from_pretrained`
    <run>/checkpoints/epoch_12/state/      with save_model_only false: what a resumed run needs to go on exactly
    <run>/checkpoints/abandoned-1/         those after an earlier one that the run went on from

A folder is written beside its place and then renamed.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import split_torch_state_dict_into_shards
from peft import set_peft_model_state_dict
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flow_factory.errors import UserError, file_errors
from flow_factory.lora_file import LORA_FILE, PEFT_FILE, lora_file, lora_in, read_lora, save_lora
from flow_factory.policy import Policy
from flow_factory.tensor_file import write_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
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


def collect(
    policy: Policy, whole: Callable[[nn.Parameter], Tensor] = lambda p: p.detach().cpu(), keep: bool = True
) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint has of each component, on the CPU: the LoRA, or all weights and buffers, as they are now.

    Args:
        whole: all values of a parameter of which this process may hold a shard, see `engines.Engine.whole`.
        keep: False on the processes that only help to gather.
    """
    lora, out = lora_of(policy), {}
    for component, module in policy.models.items():
        params = {k: p for k, p in module.named_parameters() if not lora or "lora_" in k}
        values = ((k, whole(p)) for k, p in params.items())
        out[component] = {k: v.clone() if v.device == params[k].device else v for k, v in values if keep}
        if not lora and keep:
            buffers = dict(module.named_buffers())
            out[component] |= {k: buffers[k].cpu() for k in module.state_dict() if k in buffers}
    return out


def save_model(
    folder: Path, policy: Policy, pipeline: type[DiffusionPipeline], collected: Mapping[str, Mapping[str, Tensor]] | None = None
) -> None:
    """The trained weights, as they are now or were when they were collected, in the formats of diffusers and PEFT."""
    weights = collected or collect(policy)
    for name, module in policy.models.items():
        if lora_of(policy):
            save_lora(folder if name == "transformer" else folder / name, module, weights[name], pipeline)
        else:
            _save_full(folder / name, module, weights[name])


def _save_full(folder: Path, module: Any, weights: Mapping[str, Tensor]) -> None:
    """As `save_pretrained` would, but for the order of the bytes and the files' modes."""
    module.save_config(folder)
    pattern = WEIGHTS.replace(".safetensors", "{suffix}.safetensors")
    split = split_torch_state_dict_into_shards(dict(weights), filename_pattern=pattern, max_shard_size="10GB")
    for file, names in split.filename_to_tensors.items():
        write_tensors(folder / file, {name: weights[name] for name in names}, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_model(path: Path, policy: Policy) -> None:
    """Writes saved weights into the model built from the config.

    Args:
        path: a checkpoint's folder, or the file of a LoRA.

    Raises:
        CheckpointError: it holds another kind of weights, ones of other names, shapes or scale, or is damaged; nothing has changed.
    """
    kind, lora = model_kind(path), lora_of(policy)
    if lora != (kind == "lora"):
        raise CheckpointError(f"{path} holds {kind} weights, but model.finetune_type is {'lora' if lora else 'full'}")
    load = _load_lora if lora else _load_full
    for write in [load(path, name, module) for name, module in policy.models.items()]:
        write()


def _load_lora(path: Path, component: str, module: Any) -> Callable[[], object]:
    """Checks one transformer's LoRA; returns what writes it into the model."""
    file = path if path.is_file() else lora_file(path / component) or (lora_file(path) if component == "transformer" else None)
    if file is None:
        raise CheckpointError(f"{path} has no LoRA of {component}, which model.target_components names")
    with plainly(file, "is damaged"):
        saved = read_lora(file)
    here = lora_in(module)
    if saved.unlike is not None:
        raise CheckpointError(f"{file} is another kind of LoRA: {saved.unlike}; merge it into the model, and name that")
    if problem := _difference(here.tensors, saved.tensors):
        raise CheckpointError(f"{file} does not fit this model: {problem}; it has {saved}; this run has {here}")
    if saved.scaled != here.alpha:
        origin = "was trained with" if saved.alpha is not None else "says no alpha, which diffusers reads as"
        raise CheckpointError(f"{file} {origin} model.lora_alpha: {saved.scaled:g}; with {here.alpha} it would be another model")
    return lambda: set_peft_model_state_dict(module, dict(saved.tensors))


def _load_full(path: Path, component: str, module: nn.Module) -> Callable[[], object]:
    """The same of all weights; other programs have one transformer's at the root."""
    folder = path / component if (path / component / "config.json").is_file() else path
    files = [file for file in sorted(folder.glob("*.safetensors")) if SHARD.fullmatch(file.name)]
    with plainly(folder, "is damaged"):
        if not files:
            raise FileNotFoundError(f"no {WEIGHTS}")
        saved = {name: tensor for file in files for name, tensor in load_file(file).items()}
    here = module.state_dict()
    if problem := _difference(here, saved):
        raise CheckpointError(f"{folder} does not fit this model: {problem}")
    return lambda: _copy(here, saved)


def _difference(here: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> str | None:
    """Why saved weights are not this model's."""
    if wrong := sorted(set(here) ^ set(saved)):
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return f"it {'lacks' if wrong[0] in here else 'has the unknown'} {wrong[0]!r}{more}"
    return next(
        (f"{k!r} is {list(t.shape)} there and {list(here[k].shape)} here" for k, t in sorted(saved.items()) if t.shape != here[k].shape),
        None,
    )


@torch.no_grad()
def _copy(here: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    for key, tensor in saved.items():
        here[key].copy_(tensor)


def lora_of(policy: Policy) -> bool:
    return all(getattr(module, "peft_config", None) for module in policy.models.values())


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
    """Whole checkpoints in order of their epochs; of those that were set aside none."""
    found = [(int(m[1]), p) for p in folder.glob(f"{name}*") if (m := re.fullmatch(rf"{name}(\d+)", p.name, re.ASCII))]
    return [p for _, p in sorted(found)]


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
        raise CheckpointError(f"{path} {what}: {'.'.join(map(str, first['loc']))[:80]}: {first['msg']}") from error
    except (OSError, EOFError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path} {what}: {type(error).__name__}: {error}") from error
