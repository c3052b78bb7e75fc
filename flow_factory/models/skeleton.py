"""A checkpoint's pipeline without its weights, to learn its limits before gigabytes are read."""

import importlib
import inspect
from typing import Any

from accelerate import init_empty_weights
from diffusers import ModelMixin, ModularPipeline, SchedulerMixin
from diffusers.guiders import BaseGuidance

from flow_factory.models.blocks import blocks_pipeline
from flow_factory.models.parts import import_pipeline
from flow_factory.utils.model_index import model_index
from flow_factory.utils.processors import substitutes


def empty_pipeline(checkpoint: str, pipeline: str) -> Any:
    """The pipeline `module:Class` with its scheduler, its diffusers models on the meta device, and no other parts.

    Args:
        checkpoint: folder or hub name; only its configs are read.
    """
    parts: dict[str, Any] = {}
    for name, value in model_index(checkpoint).items():
        if isinstance(value, list) and len(value) == 2:
            parts[name] = _empty(checkpoint, name, *value)
        elif not name.startswith("_"):
            parts[name] = value
    cls = import_pipeline(pipeline)
    if issubclass(cls, ModularPipeline):
        return blocks_pipeline(cls, checkpoint, parts)
    takes = inspect.signature(cls.__init__).parameters
    parts |= {name: None for name, p in takes.items() if name not in parts and p.default is p.empty and name != "self"}
    given = {name: part for name, part in parts.items() if name in takes}
    try:
        return cls(**given)
    except AttributeError:  # some (Qwen-Image-2.1) look into their tokenizer or processor
        return cls(**given | {name: part for name, part in text_parts(checkpoint).items() if name in takes})


def text_parts(checkpoint: str) -> dict[str, Any]:
    """The checkpoint's tokenizers and processors."""
    index = model_index(checkpoint)
    passed, later = substitutes(checkpoint, index)
    found = {name: part for name, part in (passed | later).items() if part is not None}
    for name, value in index.items():
        if name not in found and name.startswith(("tokenizer", "processor")) and isinstance(value, list) and value[0] == "transformers":
            cls = getattr(importlib.import_module("transformers"), value[1])
            found[name] = cls.from_pretrained(checkpoint, subfolder=name)
    return found


def _empty(checkpoint: str, name: str, library: str | None, kind: str | None) -> Any:
    cls = getattr(importlib.import_module(library), kind or "") if library == "diffusers" else None
    if cls is not None and issubclass(cls, SchedulerMixin | BaseGuidance):
        return cls.from_pretrained(checkpoint, subfolder=name)
    if cls is None or not issubclass(cls, ModelMixin):
        return None
    with init_empty_weights():
        return cls.from_config(cls.load_config(checkpoint, subfolder=name))
