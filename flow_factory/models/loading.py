"""A checkpoint behind its family's adapter: for the trainer, and for scripts and notebooks that want a rollout or a velocity without it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from flow_factory.errors import UserError
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter, import_pipeline

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "no": torch.float32}


class LoadError(UserError):
    """A checkpoint that does not load; one sentence says why."""


def load_adapter(
    model_name_or_path: str,
    model_type: str,
    dtype: str = "fp32",
    trained_dtype: str | None = None,
    scheduler_overrides: Mapping[str, Any] | None = None,
) -> ModelAdapter:
    """Loads a pipeline and puts it behind its family's adapter.

    Args:
        dtype: "fp32", "bf16" or "fp16"; of all parts but the trainable ones, if `trained_dtype` is given for them.
        scheduler_overrides: arguments for the constructor of the pipeline's own scheduler.

    Raises:
        LoadError: it does not load.
        UnknownName: no such family.
    """
    family = MODELS[model_type]
    kinds: Any = DTYPES[dtype]
    if trained_dtype is not None and DTYPES[trained_dtype] != kinds:
        kinds = {"default": kinds, **dict.fromkeys(family.components, DTYPES[trained_dtype])}
    pipe = load_pipeline(model_name_or_path, family.pipeline, kinds)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **(scheduler_overrides or {}))
    return family(pipe)


def load_pipeline(name: str, path: str, dtype: torch.dtype | dict[str, torch.dtype]) -> Any:
    """`from_pretrained` of a folder or hub name.

    Raises:
        LoadError: one sentence on why it does not load.
    """
    cls = import_pipeline(path)
    try:
        return cls.from_pretrained(name, torch_dtype=dtype)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "the folder" if Path(name).exists() else "the hub name (there is no such folder)"
        raise LoadError(f"model.model_name_or_path: {where} {name!r} does not load as {cls.__name__}: {reason}") from error
