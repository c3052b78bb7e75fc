"""Files of trained weights, LoRA or full, written for diffusers and PEFT, and read from both."""

import json
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import split_torch_state_dict_into_shards
from peft import set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from flow_factory.checkpoints.checkpoint import SHARD, WEIGHTS, CheckpointError, model_kind, plainly
from flow_factory.checkpoints.lora_file import Lora, lora_file, lora_in, read_lora, save_lora
from flow_factory.checkpoints.lora_fit import Form, as_own, require_fit
from flow_factory.checkpoints.lora_names import by_module_names
from flow_factory.checkpoints.original_names import linear_shapes
from flow_factory.checkpoints.single_file import by_own_names, shapes_in
from flow_factory.models.base import ModelAdapter
from flow_factory.policy.lora import MAIN, role_of
from flow_factory.policy.policy import Policy
from flow_factory.utils.tensor_file import write_tensors


def collect(
    policy: Policy,
    whole: Callable[[nn.Parameter, bool], Tensor | None] = lambda p, keep: p.detach().cpu() if keep else None,
    keep: bool = True,
) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint has of each component, on the CPU: the policy's LoRA, or all weights and buffers, as they are now.

    Args:
        whole: all values of a parameter of which this process may hold a shard, see `engines.Engine.whole`.
        keep: False on the processes that only help to gather, and copy nothing.
    """
    lora, out = lora_of(policy), {}
    for component, module in policy.models.items():
        params = {k: p for k, p in module.named_parameters() if not lora or "lora_" in k and role_of(k) == MAIN}
        values = ((k, whole(p, keep)) for k, p in params.items())
        out[component] = {k: v.clone() if v.device == params[k].device else v for k, v in values if v is not None}
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
            save_full(folder / name, module, weights[name])


def save_full(folder: Path, module: Any, weights: Mapping[str, Tensor]) -> None:
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
    load = _load_lora if lora else partial(_load_full, unmaterialized=policy.wanted)
    for write in [load(path, name, module) for name, module in policy.models.items()]:
        write()


def _load_lora(path: Path, component: str, module: Any) -> Callable[[], object]:
    """Checks one transformer's LoRA; returns what writes it into the model."""
    file, saved = lora_at(path, component)
    here = lora_in(module)
    saved = by_module_names(str(file), saved, module)
    shapes = {name: t.shape for name, t in here.tensors.items()}
    linear = linear_shapes(module)
    ranks = dict.fromkeys(linear, here.ranks[-1]) | {layer: here.rank(layer) for layer in here.layers}
    own_form = Form(lambda layer: ranks.get(layer, here.ranks[-1]), here.scale_of, here.dora)
    require_fit("model.resume_path", str(file), saved, own_form, linear, {name: linear[name] for name in here.layers})
    own = as_own(saved, shapes, here.scale_of, start=here.tensors)
    return lambda: set_peft_model_state_dict(module, own)


def lora_of_component(path: Path, component: str) -> Path:
    """The file of one transformer's LoRA; the first transformer's may stand at the root.

    Raises:
        CheckpointError: there is none.
    """
    file = path if path.is_file() else lora_file(path / component) or (lora_file(path) if component == "transformer" else None)
    if file is None:
        raise CheckpointError(f"{path} has no LoRA of {component}, which model.target_components names")
    return file


def lora_at(path: Path, component: str) -> tuple[Path, Lora]:
    """One transformer's LoRA, and its file.

    Raises:
        CheckpointError: there is none, it is damaged, or of another kind.
    """
    file = lora_of_component(path, component)
    with plainly(file, "is damaged"):
        saved = read_lora(file)
    if saved.unlike is not None:
        raise CheckpointError(f"{file} is another kind of LoRA: {saved.unlike}; merge it into the model, and name the merged model")
    return file, saved


def full_files(path: Path, component: str) -> list[Path]:
    """The files of one transformer's weights; other programs have them at the root, or in one file.

    Raises:
        CheckpointError: there are none, or one cannot be read.
    """
    if path.is_file():
        return [path]
    folder = path / component if (path / component / "config.json").is_file() else path
    files = [file for file in sorted(folder.glob("*.safetensors")) if SHARD.fullmatch(file.name)]
    with plainly(folder, "is damaged"):
        if not files:
            raise FileNotFoundError(f"no {WEIGHTS}")
        for file in files:
            with safe_open(file, "pt"):  # reads the header, and compares the size
                pass
    return files


def full_weights(path: Path, component: str, module: Any) -> dict[str, Tensor]:
    """All weights of one transformer, by its own names.

    Raises:
        CheckpointError: there are none, or a file is damaged or of another model.
    """
    files = full_files(path, component)
    with plainly(path, "is damaged"):
        saved = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return by_own_names(path, saved, module) if path.is_file() else saved


def require_full(path: Path, components: Sequence[str], sketch: ModelAdapter | None) -> None:
    """That there are all weights of these transformers; with a sketch, that those of a single file fit.

    Raises:
        CheckpointError: see `full_weights`.
    """
    if path.is_file() and len(components) > 1:
        text = f"one file has the weights of one transformer, and model.target_components are {', '.join(components)}"
        raise CheckpointError(f"{path}: {text}; name a folder with one of each")
    for component in components:
        full_files(path, component)
        module = sketch.field.bare.get(component) if sketch is not None and path.is_file() else None
        if module is not None:
            there = by_own_names(path, shapes_in(path), module)
            if problem := _difference(module.state_dict(), there):
                raise CheckpointError(f"{path} does not fit this model: {problem}")


def _load_full(path: Path, component: str, module: nn.Module, unmaterialized: Container[nn.Parameter]) -> Callable[[], object]:
    """The same of all weights. Those that are not yet materialized are the file's memory until then."""
    saved = full_weights(path, component, module)
    here = module.state_dict()
    if problem := _difference(here, saved):
        where = path if path.is_file() else full_files(path, component)[0].parent
        raise CheckpointError(f"{where} does not fit this model: {problem}")
    mapped = {name: p for name, p in module.named_parameters() if p in unmaterialized}
    return lambda: _take(here, mapped, saved)


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
def _take(here: Mapping[str, Tensor], mapped: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
    for key, tensor in saved.items():
        if key in mapped:
            mapped[key].data = tensor
        else:
            here[key].copy_(tensor)


def lora_of(policy: Policy) -> bool:
    return all(getattr(module, "peft_config", None) for module in policy.models.values())
