"""Checkpoints: whole or absent, in the formats that diffusers reads.

    <run>/checkpoints/epoch_12/            LoRA: pytorch_lora_weights.safetensors, for `pipe.load_lora_weights(folder)`
                                           full: transformer/ as `save_pretrained` writes it, for `from_pretrained`
    <run>/checkpoints/epoch_12/state/      with save_model_only false: what a resumed run needs to go on exactly

A folder is written beside its place and then renamed.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flow_factory.errors import UserError
from flow_factory.policy import Policy

LORA_FILE = "pytorch_lora_weights.safetensors"
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
    """The trained weights, as they are now or were when they were collected, in diffusers' own format."""
    weights = collected or collect(policy)
    for name, module in policy.models.items():
        if lora_of(policy):
            _save_lora(_lora_folder(folder, name), module, weights[name], pipeline)
        else:
            _save_full(folder / name, module, weights[name])


def _save_full(folder: Path, module: Any, weights: Mapping[str, Tensor]) -> None:
    """By a twin of the model, since a model that is shared out has shards only."""
    with init_empty_weights():
        twin = type(module).from_config(module.config)
    twin.load_state_dict(weights, assign=True)
    twin.save_pretrained(folder)


def _lora_folder(folder: Path, component: str) -> Path:
    """The second expert's has a folder of its own: `pipe.load_lora_weights(folder / "transformer_2", load_into_transformer_2=True)`."""
    return folder if component == "transformer" else folder / component


def _save_lora(folder: Path, module: Any, weights: Mapping[str, Tensor], pipeline: Any) -> None:
    layers = get_peft_model_state_dict(module, state_dict=dict(weights))
    if hasattr(pipeline, "save_lora_weights"):
        pipeline.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=_adapter(module))
    else:  # for `pipe.transformer.load_lora_adapter(folder, use_safetensors=True)`
        metadata = {f"transformer.{k}": v for k, v in _adapter(module).items()}
        tensors = {f"transformer.{k}": v.contiguous() for k, v in layers.items()}
        save_file(tensors, folder / LORA_FILE, metadata={"lora_adapter_metadata": json.dumps(metadata), "format": "pt"})


def _adapter(module: Any) -> dict[str, Any]:
    """The LoRA's config; sets in a fixed order, so that equal checkpoints are equal files."""
    return {k: sorted(v) if isinstance(v, set) else v for k, v in module.peft_config["default"].to_dict().items()}


def load_model(folder: Path, policy: Policy) -> None:
    """Writes saved weights into the model built from the config.

    Raises:
        CheckpointError: the folder holds another kind of weights, ones of other names, shapes or scale, or a damaged file.
    """
    kind, lora = model_kind(folder), lora_of(policy)
    if lora != (kind == "lora"):
        raise CheckpointError(f"{folder} holds {kind} weights, but model.finetune_type is {'lora' if lora else 'full'}")
    for name, module in policy.models.items():
        try:
            if lora:
                _load_lora(_lora_folder(folder, name), module)
            else:
                _copy(folder, module, type(module).from_pretrained(folder / name, torch_dtype=torch.float32).state_dict())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder} is damaged: {error}") from error


def _load_lora(folder: Path, module: Any) -> None:
    if not (folder / LORA_FILE).is_file():
        raise CheckpointError(f"{folder} has no {LORA_FILE}, and model.target_components asks for one")
    saved, scales = load_file(folder / LORA_FILE), _lora_metadata(folder)
    part = {k.removeprefix("transformer."): v for k, v in saved.items()}
    _check(folder, get_peft_model_state_dict(module), part)
    here = module.peft_config["default"].lora_alpha
    if (there := scales.get("transformer.lora_alpha", here)) != here:
        raise CheckpointError(f"{folder} was trained with model.lora_alpha: {there}; with {here} it would be another model")
    set_peft_model_state_dict(module, part)


def lora_of(policy: Policy) -> bool:
    return all(getattr(module, "peft_config", None) for module in policy.models.values())


def _lora_metadata(folder: Path) -> dict[str, Any]:
    """What diffusers writes beside the weights (`transformer.lora_alpha`, ...); empty for a file of another origin."""
    with safe_open(folder / LORA_FILE, "pt") as file:
        return json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))


def _check(folder: Path, here: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    if wrong := sorted(set(here) ^ set(saved)):
        problem = f"it {'lacks' if wrong[0] in here else 'has the unknown'} {wrong[0]!r} (and {len(wrong) - 1} more)"
    elif wrong := [k for k, t in saved.items() if t.shape != here[k].shape]:
        problem = f"{wrong[0]!r} is {list(saved[wrong[0]].shape)} there and {list(here[wrong[0]].shape)} here"
    else:
        return
    raise CheckpointError(f"{folder} does not fit this model: {problem}; other lora_rank or target_modules?")


@torch.no_grad()
def _copy(folder: Path, module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    here = module.state_dict()
    _check(folder, here, saved)
    for key, tensor in saved.items():
        here[key].copy_(tensor)


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


def model_kind(folder: Path) -> Literal["lora", "full"]:
    """What kind of weights a checkpoint has, with or without a training state beside them.

    Raises:
        CheckpointError: none.
    """
    if (folder / LORA_FILE).is_file():
        return "lora"
    if any(folder.glob("*/config.json")):
        return "full"
    here = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "no such folder"
    raise CheckpointError(
        f"model.resume_path: {folder} is no checkpoint ({here or 'empty'}); one holds state/, {LORA_FILE} or transformer/config.json"
    )


def newest(folder: Path) -> Path:
    """The last whole checkpoint of a run folder; any other folder as it is."""
    epochs = checkpoints(folder / "checkpoints")
    return epochs[-1] if epochs else folder


def newest_state(folder: Path) -> Path | None:
    """The last whole checkpoint of a run folder that has a training state; None where there is none yet."""
    return next((path for path in reversed(checkpoints(folder / "checkpoints")) if has_state(path)), None)


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in order of their epochs."""
    found = [(int(m[1]), p) for p in folder.glob("epoch_*") if (m := re.fullmatch(r"epoch_(\d+)", p.name))]
    return [p for _, p in sorted(found)]


def prune(folder: Path, keep_last_n: int | None) -> None:
    """Deletes all but the last checkpoints."""
    if keep_last_n is not None:
        for old in checkpoints(folder)[:-keep_last_n]:
            shutil.rmtree(old)
