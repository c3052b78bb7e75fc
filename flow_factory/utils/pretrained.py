"""Checks of a checkpoint: before loading, that all files are there and complete (by headers); after it, that all weights are finite."""

import importlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import ImageProcessingMixin, PreTrainedTokenizerBase, ProcessorMixin

from flow_factory.utils.errors import file_errors
from flow_factory.utils.hub import cached, unreachable
from flow_factory.utils.model_index import INDEX, KEY, WEIGHTS, LoadError, MissingError, modular_index, read_json
from flow_factory.utils.stock_dtypes import dtype_of
from flow_factory.utils.tensor_file import read_header

BROKEN = (
    OSError, ValueError, LookupError, TypeError, RuntimeError, AttributeError, ImportError, ArithmeticError, AssertionError,
    NameError, SafetensorError,
)  # fmt: skip
"""The errors that diffusers and transformers raise for a damaged checkpoint, for one of another kind, or without a package they need."""
WIDTHS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
"""safetensors' names of dtypes -> those of mixed_precision."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
PIECE = 2**22
"""The number of weights that are checked at a time: a float32 copy of a whole tensor may have gigabytes."""


def on_disk(name: str) -> Path | None:
    """The folder of a checkpoint on this machine, which may be a snapshot in the hub's cache. None if it must be downloaded.

    Raises:
        LoadError: the snapshot is damaged, or incomplete while the hub is unreachable.
    """
    if Path(name).is_dir():
        return Path(name)
    folder = cached(name, "model_index.json")
    if folder is None:
        return None
    try:
        check_folder(folder, {})
    except MissingError as error:
        if (reason := unreachable()) is not None:
            raise LoadError(f"{error}; it is not in the hub's cache, and {reason}") from error
        return None
    return folder


def check_folder(folder: Path, models: Mapping[str, nn.Module]) -> None:
    """Checks that all parts of the pipeline's index are there and complete, by names, sizes and headers.

    Args:
        models: parts on the meta device, whose tensors must be in the files by name and shape.

    Raises:
        LoadError: a part is missing or damaged; the message names the file.
    """
    with file_errors(KEY, folder, "the checkpoint must be readable", LoadError):
        for part, entry in (modular_index(folder) or read_json(folder / INDEX)).items():
            if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(name, str) for name in entry):
                continue
            library, kind = entry
            cls = getattr(importlib.import_module(library), kind, None) if library in WEIGHTS else None
            if not isinstance(cls, type):
                continue
            if not (folder / part).is_dir():
                raise MissingError(f"{KEY}: {folder / part} is missing: model_index.json names a {kind} there")
            if issubclass(cls, PreTrainedTokenizerBase):
                _check_tokenizer(folder / part, cls)
            elif issubclass(cls, ProcessorMixin | ImageProcessingMixin):
                _check_configs(folder / part, "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
            elif issubclass(cls, nn.Module):
                shapes = _check_weights(folder / part, WEIGHTS[library])
                if part in models and "quantization_config" not in read_json(folder / part / "config.json"):
                    _check_names(folder / part, models[part], shapes)


def tensors_of(file: Path, key: str = KEY) -> dict[str, list[int]]:
    """Name -> shape, from the header of a complete safetensors file.

    Raises:
        LoadError: the file is damaged or truncated.
    """
    try:
        return {name: tensor.shape for name, tensor in read_header(file).items()}
    except ValueError as error:
        raise LoadError(f"{key}: {file} {error}; download it again") from error


def _check_weights(part: Path, name: str) -> dict[str, list[int]]:
    """Name -> shape of all tensors of a part."""
    read_json(part / "config.json")
    shapes: dict[str, list[int]] = {}
    for file in weight_files(part, name):
        if not file.is_file():
            raise MissingError(f"{KEY}: {file} is missing, and {name}.index.json names it; download it again")
        shapes |= tensors_of(file)
    return shapes


def weight_files(part: Path, name: str) -> list[Path]:
    """The safetensors files of a part: one, or those of an index. Other variants in the folder are ignored.

    Raises:
        LoadError: there is no such file, or the index is damaged.
    """
    index = part / f"{name}.index.json"
    if (part / name).is_file():
        return [part / name]
    if not index.is_file():
        pickles = [p.name for p in sorted(part.iterdir()) if p.suffix in PICKLES]
        if pickles:
            raise LoadError(f"{KEY}: {part} has its weights as a pickle ({pickles[0]}), which can run code: convert it to {name}")
        raise MissingError(f"{KEY}: {part} has no {name}, only {', '.join(sorted(p.name for p in part.iterdir())) or 'nothing'}")
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
        raise LoadError(f"{KEY}: {index} has no weight_map; download it again")
    return [part / file for file in sorted(set(placed.values()))]


def stored_dtype(part: Path, kept: Sequence[str] = ()) -> str | None:
    """The dtype of a diffusers model's files ("fp32", "fp16" or "bf16"); None if they have several dtypes, or others.

    Args:
        kept: substrings of names that are ignored, because diffusers casts these weights to float32.

    Raises:
        LoadError: see `weight_files`.
    """
    headers = [read_header(file) for file in weight_files(part, WEIGHTS["diffusers"])]
    found = {tensor.dtype for header in headers for name, tensor in header.items() if {*kept}.isdisjoint(name.split("."))}
    return WIDTHS.get(found.pop()) if len(found) == 1 else None


def _check_names(part: Path, model: nn.Module, shapes: Mapping[str, list[int]]) -> None:
    for name, tensor in model.state_dict().items():
        if name not in shapes:
            raise LoadError(f"{KEY}: {part} lacks the tensor {name!r}, which its config.json asks for; download it again")
        if math.prod(shapes[name]) != tensor.numel():
            raise LoadError(f"{KEY}: {part}: {name!r} is {shapes[name]} in the file and {list(tensor.shape)} in config.json")


def _check_tokenizer(part: Path, cls: type[PreTrainedTokenizerBase]) -> None:
    try:
        cls.from_pretrained(str(part))
    except Exception as error:
        if not isinstance(error, BROKEN) and type(error) is not Exception:  # the Rust code of tokenizers raises a bare Exception
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LoadError(f"{KEY}: {part} does not load as {cls.__name__}: {reason}") from error


def _check_configs(part: Path, *names: str) -> None:
    there = [part / name for name in names if (part / name).is_file()]
    if not there:
        raise MissingError(f"{KEY}: {part} has none of {', '.join(names)}")
    for file in there:
        read_json(file)


def check_loaded(name: str, parts: Mapping[str, Any], precision: torch.dtype) -> None:
    """Checks that every weight of a loaded pipeline came from its files and is finite.

    Args:
        name: the folder or hub name, for the message.
        precision: the dtype in which it must be finite.

    Raises:
        LoadError: a weight is missing in the files, or is NaN or infinite.
    """
    for part, module in parts.items():
        if not isinstance(module, nn.Module):
            continue
        if (lost := _made_up(Path(name) / part, module)) is not None:
            raise LoadError(f"{KEY}: {name}/{part} lacks the tensor {lost!r}; download it again")
        for key, weight in module.named_parameters():
            if type(weight.data) is not torch.Tensor or not weight.is_floating_point() or weight.itemsize == 1:
                continue  # quantised: its values differ from the file's, and may not support sums
            computed = dtype_of(module, key, precision)
            if not all(_finite(piece.to(computed)) for piece in weight.detach().flatten().split(PIECE)):
                kind = str(computed).removeprefix("torch.")
                raise LoadError(
                    f"{KEY}: {name}/{part}: {key!r} is not a number (NaN or infinite) in {kind}: the file is damaged, or mixed_precision "
                    "too narrow"
                )


def _finite(weights: Tensor) -> bool:
    """Whether all values are finite. Their sum is the fastest test, unless it overflows itself."""
    return bool(weights.sum(dtype=torch.float32).isfinite()) or bool(weights.isfinite().all())


def _made_up(folder: Path, module: nn.Module) -> str | None:
    """The name of a parameter that no file has: it is on the meta device, or transformers has initialised it randomly.

    Names are compared by their last two words and numbers, because transformers renames the prefixes.
    """
    named = dict(module.named_parameters())  # of tied parameters only the first
    if (empty := next((key for key, weight in named.items() if weight.is_meta), None)) is not None:
        return empty
    stored = [_last(key) for file in sorted(folder.glob("*.safetensors")) for key in tensors_of(file)]
    there, wanted = Counter(stored), Counter(map(_last, named))
    few = next((last for last, n in wanted.items() if 0 < there[last] < n), None)
    return next((key for key in named if _last(key) == few), None)


def _last(key: str) -> str:
    return ".".join([word for word in key.split(".") if not word.isdecimal()][-2:])
