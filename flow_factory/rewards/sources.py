"""The files of rewards: folders of transformers and single files of weights, on this machine or from the hub. None can run code."""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flow_factory.hparams import RewardArguments
from flow_factory.utils.errors import UserError
from flow_factory.utils.hub import cached, looks_local, require_source, unreachable
from flow_factory.utils.pretrained import tensors_of

FILES = {"model": "config.json", "processor": "tokenizer_config.json"}
"""The file that a folder of each kind must have."""


@dataclass(frozen=True)
class Weights:
    """A source of weights that a reward has asked for."""

    name: str
    place: Path | None
    """Its folder or file; None: it is not on this machine."""


_asked: ContextVar[list[Weights] | None] = ContextVar("asked", default=None)


@contextmanager
def asking() -> Iterator[list[Weights]]:
    """The weights that `require_folder` and `require_file` are asked for inside."""
    found: list[Weights] = []
    token = _asked.set(found)
    try:
        yield found
    finally:
        _asked.reset(token)


def _note(name: str, place: Path | None) -> None:
    found = _asked.get()
    if found is not None:
        found.append(Weights(name, place))


def named(config: RewardArguments, key: str, default: str) -> str:
    """The folder, file or hub name under one of the entry's own keys."""
    return str(config.extra_kwargs.get(key, default))


def require_folder(config: RewardArguments, key: str, name: str, file: str, now: bool) -> None:
    """Checks a name, and the headers of weights on this machine; see `BaseRewardModel.require_files`.

    Args:
        file: the file that the folder must have.
    """
    where, path = f"reward {config.name!r}: {key}", Path(name).expanduser()
    if not path.is_dir():
        require_source(name, where, file, now=now)
    folder = path if path.is_dir() else cached(name, file)
    if file == FILES["model"]:
        _note(name, folder)
    for weights in sorted(folder.glob("model*.safetensors")) if folder is not None and file == FILES["model"] else ():
        tensors_of(weights, where)


def _pretrained(auto: Any, name: str, config: RewardArguments, part: str, **options: Any) -> Any:
    """`auto.from_pretrained(name)` for a folder or a hub name.

    Raises:
        UserError: it does not load. The message names the reward and the path.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and unreachable() is not None:
        options["local_files_only"] = True  # else the hub is retried for minutes
    try:
        return auto.from_pretrained(folder if folder.is_dir() else name, **options)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"reward {config.name!r} cannot load its {part} from {name!r}: {reason}") from error


def processor_of(auto: Any, name: str, config: RewardArguments, part: str, **options: Any) -> Any:
    """A processor, tokenizer, image processor or config; see `_pretrained`."""
    return _pretrained(auto, name, config, part, **options)


def model_of(auto: Any, name: str, config: RewardArguments, part: str, **options: Any) -> Any:
    """A frozen model in the dtype of its files, which must have all of its weights.

    Raises:
        UserError: it does not load, or lacks weights.
    """
    model, loaded = _pretrained(auto, name, config, part, output_loading_info=True, **options)
    if loaded["missing_keys"]:
        raise UserError(f"reward {config.name!r}: the {part} {name!r} lacks weights, e.g. {sorted(loaded['missing_keys'])[0]}")
    return model.eval().requires_grad_(False)


def _parts(name: str) -> tuple[str, str]:
    """(owner/name, path inside) of a file on the hub."""
    owner, repository, path = name.split("/", 2)
    return f"{owner}/{repository}", path


def require_file(config: RewardArguments, key: str, name: str, now: bool) -> None:
    """Checks that a single file of weights exists: a path, or `owner/repository/file` of the hub.

    Raises:
        UserError: it does not exist.
    """
    where, path = f"reward {config.name!r}: {key}", Path(name).expanduser()
    if path.is_file():
        if path.suffix == ".safetensors":
            tensors_of(path, where)
        _note(name, path)
        return
    right = "write the path of a file, or owner/repository/file of the hub"
    if path.exists() or name.count("/") < 2 or looks_local(name.rpartition("/")[0] if name.count("/") == 2 else _parts(name)[0]):
        raise UserError(f"{where}: {name!r} is not a file; {right}")
    repository, file = _parts(name)
    require_source(repository, where, file, now=now)
    folder = cached(repository, file)
    _note(name, None if folder is None else folder / Path(file).name)


def tensors_in(config: RewardArguments, key: str, name: str) -> dict[str, Tensor]:
    """The tensors of a single file on the CPU, or those of its `state_dict`.

    A pickle is read by torch's reader that allows only tensors and plain values.

    Raises:
        UserError: the file is missing, or has no tensors.
    """
    require_file(config, key, name, now=True)
    path = Path(name).expanduser()
    try:
        if not path.is_file():
            path = Path(hf_hub_download(*_parts(name), local_files_only=unreachable() is not None))
        value = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"reward {config.name!r}: {key}: {name!r} cannot be read as tensors: {reason[:200]}") from error
    value = value.get("state_dict", value) if isinstance(value, dict) else value
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise UserError(f"reward {config.name!r}: {key}: {name!r} holds no tensors by name")
    return {k: v for k, v in value.items() if isinstance(v, Tensor)}


def lacking(config: RewardArguments, key: str, name: str, tensor: str) -> UserError:
    """The error of a file without a tensor of this name."""
    return UserError(f"reward {config.name!r}: {key}: {name!r} lacks the tensor {tensor!r}: it is of another architecture")


def fill(model: nn.Module, tensors: Mapping[str, Tensor], config: RewardArguments, key: str, name: str, assign: bool = False) -> None:
    """Loads tensors into a model by name and shape, freezes it, and sets it to evaluation mode.

    Args:
        assign: whether the tensors replace the model's parameters, which may be on the meta device, and keep their dtype.

    Raises:
        UserError: a tensor is missing, has another shape, or is not finite.
    """
    where = f"reward {config.name!r}: {key}: {name!r}"
    for wanted, tensor in model.state_dict().items():
        if wanted not in tensors:
            raise lacking(config, key, name, wanted)
        if tensors[wanted].shape != tensor.shape:
            shapes = f"{list(tensors[wanted].shape)} where {list(tensor.shape)} is wanted"
            raise UserError(f"{where}: {wanted!r} is {shapes}: it is of another architecture")
        if tensors[wanted].is_floating_point() and not tensors[wanted].isfinite().all():
            raise UserError(f"{where}: {wanted!r} is not a number (NaN or infinite): the file is damaged")
    model.load_state_dict({wanted: tensors[wanted] for wanted in model.state_dict()}, assign=assign)
    model.eval().requires_grad_(False)
