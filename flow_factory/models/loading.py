"""A checkpoint behind its family's adapter: for the trainer, and for scripts and notebooks that want a rollout or a velocity without it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from flow_factory.errors import UserError
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.models.parts import import_pipeline
from flow_factory.models.processors import substitutes

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "no": torch.float32}
BROKEN = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, ImportError, SafetensorError)
"""What diffusers and transformers raise for a checkpoint that is damaged or of another kind."""


class LoadError(UserError):
    """A checkpoint that does not load; one sentence says why."""


def load_adapter(
    model_name_or_path: str,
    model_type: str,
    dtype: str = "fp32",
    trained_dtype: str | None = None,
    scheduler_overrides: Mapping[str, Any] | None = None,
    pipeline_class: str | None = None,
) -> ModelAdapter:
    """Loads a pipeline and puts it behind its family's adapter.

    Args:
        dtype: "fp32", "bf16" or "fp16"; of all parts but the trainable ones, if `trained_dtype` is given for them.
        scheduler_overrides: arguments for the constructor of the pipeline's own scheduler.
        pipeline_class: for `model_type: diffusers`, where the checkpoint does not say it.

    Raises:
        LoadError: it does not load.
        UnknownName: no such family.
    """
    family = MODELS[model_type].of(model_name_or_path, pipeline_class)
    kinds: Any = DTYPES[dtype]
    if trained_dtype is not None and DTYPES[trained_dtype] != kinds:
        kinds = {"default": kinds, **dict.fromkeys(family.components, DTYPES[trained_dtype])}
    pipe = load_pipeline(model_name_or_path, family, kinds)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **(scheduler_overrides or {}))
    return family(pipe)


def load_pipeline(name: str, family: type[ModelAdapter], dtype: torch.dtype | dict[str, torch.dtype]) -> Any:
    """`from_pretrained` of a folder or hub name.

    Raises:
        LoadError: one sentence on why it does not load.
    """
    cls = import_pipeline(family.pipeline)
    try:
        index = DiffusionPipeline.load_config(name)
        check_kind(name, index.get("_class_name", cls.__name__), family)
        passed, later = substitutes(name, index)
        pipe = cls.from_pretrained(name, torch_dtype=dtype, **passed)
        pipe.register_modules(**later)
    except BROKEN as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "the folder" if Path(name).exists() else "the hub name (there is no such folder)"
        raise LoadError(f"model.model_name_or_path: {where} {name!r} does not load as {cls.__name__}: {reason}") from error
    return pipe


def check_kind(name: str, made_for: str, family: type[ModelAdapter]) -> None:
    """Raises:
    LoadError: the checkpoint is another family's; the message says which.
    """
    if made_for in (family.pipeline.partition(":")[2], *family.also_loads):
        return
    right = [known for known in MODELS if known != "diffusers" and MODELS.path(known) and _serves(known, made_for)]
    advice = f"model_type: {right[0]}" if right else f"model_type: diffusers with pipeline_class: {made_for}"
    raise LoadError(f"model.model_name_or_path: {name!r} is a {made_for}, not a {family.pipeline.partition(':')[2]}; write {advice}")


def _serves(model_type: str, made_for: str) -> bool:
    return MODELS[model_type].pipeline.partition(":")[2] == made_for
