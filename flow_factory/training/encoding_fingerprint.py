"""The fingerprint of an encoding: everything that a row's condition depends on, except the row."""

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers

from flow_factory.config import RunConfig
from flow_factory.data.fingerprints import file_sha256
from flow_factory.models.base import ModelAdapter
from flow_factory.training.text_encoders import Identity


def fingerprint_of(config: RunConfig, adapter: ModelAdapter, call: dict[str, Any], identity: Identity) -> str:
    """sha256 of the adapter's code, the encoders, the call arguments, the precision and the versions of the libraries.

    Args:
        identity: fingerprints of the encoders.
    """
    inputs = adapter.encoded_by(call)
    versions = [diffusers.__version__, version("transformers")]
    checkpoint = config.model.model_name_or_path if not identity[0] else None  # the name stands for files that have no fingerprint
    parts = [adapter_sources(adapter), checkpoint, identity, inputs, adapter.guided(call), versions, config.mixed_precision]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def about(config: RunConfig) -> dict[str, str]:
    """What `ff-data cache` shows of the rows. Paths are absolute."""
    data, model = (str(Path(n).absolute()) if Path(n).exists() else n for n in (config.data.dataset_dir, config.model.model_name_or_path))
    return {"dataset_dir": data, "model": model, "model_type": config.model.model_type}


def adapter_sources(adapter: ModelAdapter) -> list[str]:
    """Module, name and hash of the source of each of the adapter's classes. A changed adapter encodes its rows again."""
    classes = [c for c in type(adapter).__mro__ if issubclass(c, ModelAdapter)]
    files = [sys.modules[c.__module__].__file__ for c in classes]
    digests = [file_sha256(f) if f else "" for f in files]
    return [f"{c.__module__}:{c.__qualname__}:{d}" for c, d in zip(classes, digests, strict=True)]
