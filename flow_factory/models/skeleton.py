"""A checkpoint's pipeline without its weights, to learn its limits before gigabytes are read."""

import importlib
import inspect
from typing import Any

from accelerate import init_empty_weights
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.guiders import BaseGuidance

from flow_factory.models.parts import import_pipeline


def empty_pipeline(checkpoint: str, pipeline: str) -> Any:
    """The pipeline `module:Class` with its scheduler, its diffusers models on the meta device, and no other parts.

    Args:
        checkpoint: folder or hub name; only its configs are read.
    """
    parts: dict[str, Any] = {}
    for name, value in DiffusionPipeline.load_config(checkpoint).items():
        if isinstance(value, list) and len(value) == 2:
            parts[name] = _empty(checkpoint, name, *value)
        elif not name.startswith("_"):
            parts[name] = value
    cls = import_pipeline(pipeline)
    takes = inspect.signature(cls.__init__).parameters
    parts |= {name: None for name, p in takes.items() if name not in parts and p.default is p.empty and name != "self"}
    return cls(**{name: part for name, part in parts.items() if name in takes})


def _empty(checkpoint: str, name: str, library: str | None, kind: str | None) -> Any:
    cls = getattr(importlib.import_module(library), kind or "") if library == "diffusers" else None
    if cls is not None and issubclass(cls, SchedulerMixin | BaseGuidance):
        return cls.from_pretrained(checkpoint, subfolder=name)
    if cls is None or not issubclass(cls, ModelMixin):
        return None
    with init_empty_weights():
        return cls.from_config(cls.load_config(checkpoint, subfolder=name))
