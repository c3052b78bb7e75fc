"""A checkpoint behind its family's adapter: for the trainer, and for scripts and notebooks that want a rollout or a velocity without it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.models.parts import call_dtype, import_pipeline
from flow_factory.models.quantized import quantizer
from flow_factory.models.quantized_linear import DYNAMIC
from flow_factory.models.skeleton import empty_pipeline
from flow_factory.utils.errors import UserError
from flow_factory.utils.hub import require_source
from flow_factory.utils.pretrained import BROKEN, KEY, LoadError, check_loaded
from flow_factory.utils.processors import substitutes

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "no": torch.float32}


def load_adapter(
    model_name_or_path: str,
    model_type: str,
    dtype: str = "fp32",
    dtypes: Mapping[str, str] | None = None,
    scheduler_overrides: Mapping[str, Any] | None = None,
    pipeline_class: str | None = None,
    quantization: str | None = None,
    without: Sequence[str] = (),
) -> ModelAdapter:
    """Loads a pipeline and puts it behind its family's adapter.

    Args:
        dtype: "fp32", "bf16" or "fp16".
        dtypes: of single parts that have another one.
        scheduler_overrides: arguments for the constructor of the pipeline's own scheduler.
        pipeline_class: for `model_type: diffusers`, where the checkpoint does not say it.
        quantization: `model.quantization` of the transformers; see `quantized.check_quantization`.
        without: parts that are not loaded; see `load_parts`.

    Raises:
        LoadError: it does not load.
        UnknownName: no such family.
    """
    family = family_of(model_name_or_path, model_type, pipeline_class)
    kinds: Any = DTYPES[dtype]
    if others := {part: DTYPES[other] for part, other in (dtypes or {}).items() if DTYPES[other] != kinds}:
        kinds = {"default": kinds, **others}
    options: dict[str, Any] = dict.fromkeys(without)
    if quantization is not None and quantization not in DYNAMIC:  # whose layers are rounded when the whole is built
        options["quantization_config"] = quantizer(quantization, family.components, DTYPES[dtype])
    pipe = load_pipeline(model_name_or_path, family, kinds, **options)
    for model in filter(None, map(pipe.components.get, others)):  # a pipeline may ask it in what dtype to encode
        call_dtype(model, DTYPES[dtype])
    return _adapter(family, pipe, scheduler_overrides)


def load_parts(name: str, family: type[ModelAdapter], parts: Sequence[str], dtype: str) -> dict[str, nn.Module]:
    """Some models of a checkpoint, loaded as with the whole pipeline; of the others it has the configs at most.

    Raises:
        LoadError: they do not load.
    """
    with one_sentence(name, family):
        others = empty_pipeline(name, family.pipeline).components
        named = [part for part, entry in DiffusionPipeline.load_config(name).items() if isinstance(entry, list) and len(entry) == 2]
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
        passed, later = substitutes(name, {k: v for k, v in DiffusionPipeline.load_config(name).items() if k not in options})
        cls = import_pipeline(family.pipeline)
        pipe = cls.from_pretrained(name, torch_dtype=dtype, use_safetensors=True, **passed, **options)  # never a pickle
        check_loaded(name, {part: module for part, module in pipe.components.items() if part not in options})
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
    made_for = DiffusionPipeline.load_config(name).get("_class_name", wanted)
    if made_for in (wanted, *family.also_loads):
        return
    right = [known for known in MODELS if MODELS[known].pipeline.partition(":")[2] == made_for]
    advice = f"model_type: {right[0]}" if right else f"model_type: diffusers with pipeline_class: {made_for}"
    raise LoadError(f"{KEY}: {name!r} is a {made_for}, not a {wanted}; write {advice}")
