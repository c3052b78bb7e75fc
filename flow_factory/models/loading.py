"""Loads a checkpoint with its family's adapter: for the trainer, and for scripts and notebooks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModularPipeline
from torch import nn

from flow_factory.distributed.read_ahead import once_a_machine, read_ahead
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.models.blocks import load_blocks
from flow_factory.models.parts import call_dtype, import_pipeline
from flow_factory.models.quantized import quantizer
from flow_factory.models.quantized_linear import DYNAMIC
from flow_factory.models.skeleton import empty_pipeline
from flow_factory.utils.errors import UserError
from flow_factory.utils.hub import cached, require_source
from flow_factory.utils.model_index import KEY, WEIGHTS, LoadError, model_index
from flow_factory.utils.pretrained import BROKEN, check_loaded, on_disk, stored_dtype, weight_files
from flow_factory.utils.processors import substitutes
from flow_factory.utils.stock_dtypes import dtype_of

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "no": torch.float32}


def load_adapter(
    model_name_or_path: str,
    model_type: str,
    dtype: str | torch.dtype = "fp32",
    dtypes: Mapping[str, str] | None = None,
    scheduler_overrides: Mapping[str, Any] | None = None,
    pipeline_class: str | None = None,
    quantization: str | None = None,
    without: Sequence[str] = (),
) -> ModelAdapter:
    """Loads a pipeline and puts it behind its family's adapter.

    Args:
        dtype: "fp32", "bf16" or "fp16", or torch's.
        dtypes: of single parts that have another one.
        scheduler_overrides: arguments for the constructor of the pipeline's own scheduler.
        pipeline_class: for `model_type: diffusers`, where the checkpoint does not say it.
        quantization: `model.quantization` of the transformers; see `quantized.check_quantization`.
        without: parts that are not loaded; see `load_parts`.

    Raises:
        LoadError: it does not load.
        UnknownName: no such family.
    """
    dtype = _known(dtype)
    family = family_of(model_name_or_path, model_type, pipeline_class)
    kinds: Any = DTYPES[dtype]
    if others := {part: DTYPES[other] for part, other in (dtypes or {}).items() if DTYPES[other] != kinds}:
        kinds = {"default": kinds, **others}
    options: dict[str, Any] = dict.fromkeys(without)
    if quantization is not None and quantization not in DYNAMIC:  # whose layers are rounded when the whole is built
        options["quantization_config"] = quantizer(quantization, family.components, DTYPES[dtype])
    pipe = load_pipeline(model_name_or_path, family, kinds, **options)
    for model in filter(None, map(pipe.components.get, others)):
        stock_buffers(model, DTYPES[dtype])
        call_dtype(model, DTYPES[dtype])  # a pipeline may ask it in what dtype to encode
    return _adapter(family, pipe, scheduler_overrides)


def _known(dtype: str | torch.dtype) -> str:
    found = dtype if isinstance(dtype, str) else next((name for name, its in DTYPES.items() if its == dtype), None)
    if found not in DTYPES:
        raise LoadError(f"dtype: {dtype!r} is not one of fp32, bf16, fp16")
    return found


def download(name: str, family: type[ModelAdapter]) -> None:
    """Brings a hub name's files to this machine, if they are not there: by one of its processes.

    Raises:
        LoadError: they cannot be had.
    """
    with one_sentence(name, family):
        fetch = partial(import_pipeline(family.pipeline).download, name, use_safetensors=True)
        once_a_machine(fetch, missing=lambda: on_disk(name) is None)


def files_of(name: str, parts: Mapping[str, Any]) -> list[Path]:
    """The weights of parts of a checkpoint, in the order in which they are loaded; none where it is not on this machine.

    Args:
        parts: entries of its model_index.json.
    """
    folder = Path(name) if Path(name).is_dir() else cached(name, "model_index.json")
    found = [] if folder is None else [(folder / part, WEIGHTS[entry[0]]) for part, entry in parts.items() if _has_weights(entry)]
    return [file for part, kind in found if part.is_dir() and _whole(part, kind) for file in weight_files(part, kind)]


def _has_weights(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and entry[0] in WEIGHTS


def _whole(part: Path, kind: str) -> bool:
    """Not a tokenizer's folder, or one that lacks its weights, which loading will say."""
    return (part / kind).is_file() or (part / f"{kind}.index.json").is_file()


def stored_dtypes(name: str, family: type[ModelAdapter]) -> dict[str, str]:
    """Of the transformers of a checkpoint on this machine: the dtype of their files, in which they are loaded without a copy.

    Raises:
        LoadError: a file is missing or damaged.
    """
    folder = on_disk(name)
    if folder is None:
        return {}
    kept = getattr(family.transformer_class(), "_keep_in_fp32_modules", None) or ()
    found = {part: stored_dtype(folder / part, kept) for part in family.components if (folder / part).is_dir()}
    return {part: dtype for part, dtype in found.items() if dtype is not None}


def stock_buffers(model: Any, precision: torch.dtype) -> None:
    """Has a model that was loaded in another dtype its buffers as a pipeline of this one has them."""
    before, in_files = torch.get_default_dtype(), model.state_dict().keys()
    torch.set_default_dtype(precision)
    try:
        with init_empty_weights():
            twin = type(model).from_config(model.config)  # makes those that are in no file
    finally:
        torch.set_default_dtype(before)
    made = dict(twin.named_buffers())
    for name, buffer in model.named_buffers():
        if name in in_files:
            buffer.data = buffer.data.to(dtype_of(model, name, precision)) if buffer.is_floating_point() else buffer.data
        else:
            buffer.data = made[name].data


def load_parts(name: str, family: type[ModelAdapter], parts: Sequence[str], dtype: str) -> dict[str, nn.Module]:
    """Some models of a checkpoint, loaded as with the whole pipeline; of the others it has the configs at most.

    Raises:
        LoadError: they do not load.
    """
    with one_sentence(name, family):
        others = empty_pipeline(name, family.pipeline).components
        named = [part for part, entry in model_index(name).items() if isinstance(entry, list) and len(entry) == 2]
    pipe = load_pipeline(name, family, DTYPES[dtype], **{part: others.get(part) for part in named if part not in parts})
    return {part: module for part in parts if (module := getattr(pipe, part)) is not None}


def sketch_adapter(
    model_name_or_path: str, model_type: str, scheduler_overrides: Mapping[str, Any] | None = None, pipeline_class: str | None = None
) -> ModelAdapter:
    """The same without weights: it knows sizes and schedules. Reads configs only.

    Raises:
        LoadError: they are not there, or are another family's.
    """
    family = family_of(model_name_or_path, model_type, pipeline_class)
    with one_sentence(model_name_or_path, family):
        check_kind(model_name_or_path, family)
        pipe = empty_pipeline(model_name_or_path, family.pipeline)
    return _adapter(family, pipe, scheduler_overrides)


def _adapter(family: type[ModelAdapter], pipe: Any, overrides: Mapping[str, Any] | None) -> ModelAdapter:
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **(overrides or {}))
    return family(pipe)


def family_of(name: str, model_type: str, pipeline_class: str | None) -> type[ModelAdapter]:
    """Raises:
    LoadError: there is no such folder and no such hub name, or `model_type: diffusers` cannot read from it which pipeline it is.
    """
    family: type[ModelAdapter] = MODELS[model_type]
    require_source(name, KEY, "model_index.json", LoadError)
    with one_sentence(name, family):
        return family.of(name, pipeline_class)


def load_pipeline(name: str, family: type[ModelAdapter], dtype: torch.dtype | dict[str, torch.dtype], **options: Any) -> Any:
    """`from_pretrained` of a folder or hub name, with more options for it; parts among them are not loaded.

    Raises:
        LoadError: one sentence on why it does not load.
    """
    with one_sentence(name, family):
        check_kind(name, family)
        index = {k: v for k, v in model_index(name).items() if k not in options}
        passed, later = substitutes(name, index)
        cls = import_pipeline(family.pipeline)
        load = partial(load_blocks, cls, index=index) if issubclass(cls, ModularPipeline) else cls.from_pretrained
        with read_ahead(files_of(name, index)):
            pipe = load(name, torch_dtype=dtype, use_safetensors=True, **passed, **options)  # never a pickle
            precision = dtype["default"] if isinstance(dtype, dict) else dtype
            check_loaded(name, {part: module for part, module in pipe.components.items() if part not in options}, precision)
        pipe.register_modules(**later)
        return pipe


@contextmanager
def one_sentence(name: str, family: type[ModelAdapter]) -> Iterator[None]:
    """Turns what loading raises into a `LoadError`."""
    try:
        yield
    except UserError:
        raise
    except BROKEN as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "the folder" if Path(name).exists() else "the hub name (there is no such folder)"
        kind = family.pipeline.partition(":")[2] or "a pipeline of diffusers"
        raise LoadError(f"{KEY}: {where} {name!r} does not load as {kind}: {reason}") from error


def check_kind(name: str, family: type[ModelAdapter]) -> None:
    """Raises:
    LoadError: the checkpoint is another family's; the message says which.
    """
    wanted = family.pipeline.partition(":")[2]
    made_for = model_index(name).get("_class_name", wanted)
    if made_for in (wanted, *family.also_loads):
        return
    right = [known for known in MODELS if MODELS[known].pipeline.partition(":")[2] == made_for]
    advice = f"model_type: {right[0]}" if right else f"model_type: diffusers with pipeline_class: {made_for}"
    raise LoadError(f"{KEY}: {name!r} is a {made_for}, not a {wanted}; write {advice}")
