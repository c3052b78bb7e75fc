"""The conditions of a run's rows: those that it draws, shared out over processes, each encoded once."""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import Accelerator
from diffusers import SchedulerMixin
from torch import nn

from flow_factory.algorithms.base import Algorithm
from flow_factory.config import RunConfig
from flow_factory.data.cache import ConditionCache, Conditions, encode_rows
from flow_factory.data.fingerprints import file_sha256, module_fingerprint, settings_fingerprint
from flow_factory.errors import UserError
from flow_factory.models.base import ModelAdapter
from flow_factory.models.failures import named_rows
from flow_factory.patience import Work
from flow_factory.rows import rows_needed
from flow_factory.trainer import call_of
from flow_factory.types import Cond, Row

logger = logging.getLogger(__name__)

SAMPLE = 1000
"""Prompts whose tokens are counted at a start."""


def encode(
    config: RunConfig, adapter: ModelAdapter, algorithm: Algorithm, splits: list[Sequence[Row]], accelerator: Accelerator
) -> list[Sequence[Cond]]:
    """Conditions of the training and the test rows, under their sections' call arguments; of training rows those that the run draws.

    Training rows have a negative prompt where any of the algorithm's velocities is guided. Processes take rows in turn, and wait for each
    other as long as each goes on.

    Raises:
        UserError: the pipeline cannot encode a row.
        MeetingError: a process stands still, see `Work`.
    """
    encoders = [part for name in adapter.encoders if (part := getattr(adapter.pipe, name)) is not None]
    others = [part for part in adapter.pipe.components.values() if not isinstance(part, nn.Module | SchedulerMixin | None)]
    identity = [[module_fingerprint(module) for module in encoders], [settings_fingerprint(part) for part in (*encoders, *others)]]
    call = call_of(config.train)
    scales = [s for s in map(algorithm.guidance, algorithm.weights) if s is not None]
    guided = next((c for c in (call, *(adapter.with_guidance(call, s) for s in scales)) if adapter.guided(c)), call)
    wanted = (rows_needed(config, len(splits[0])), range(len(splits[1])))
    work = Work("encoding")
    work.beat("loading")
    conds: list[Sequence[Cond]] = [
        encode_split(config, adapter, rows, of, (call, identity), accelerator, work)
        for rows, of, call in zip(splits, wanted, (guided, call_of(config.eval)), strict=True)
    ]
    work.wait()
    return conds


def share_of(config: RunConfig, accelerator: Accelerator) -> tuple[int, int]:
    """(k, n): this process encodes every n-th of the rows, from the k-th on; see `data.preprocess_parallelism`."""
    if config.data.preprocess_parallelism == "global":
        return accelerator.process_index, accelerator.num_processes
    if (here := os.environ.get("LOCAL_WORLD_SIZE")) is None:  # started by something that does not tell: each does all that is missing
        return 0, 1
    return accelerator.local_process_index, int(here)


def encode_split(
    config: RunConfig, adapter: ModelAdapter, rows: Sequence[Row], wanted: Sequence[int], known: tuple[dict[str, Any], list[list[str]]],
    accelerator: Accelerator, work: Work,
) -> Conditions:  # fmt: skip
    """The conditions of some rows, from the cache where nothing that they depend on has changed.

    Args:
        wanted: the rows that are needed.
        known: call arguments, and what the encoders are.
    """
    call, identity = known
    asked = adapter.encoded_by(call)
    versions = [diffusers.__version__, version("transformers")]
    checkpoint = config.model.model_name_or_path if not identity[0] else None  # nothing of it was fingerprinted
    parts = [source_of(adapter), checkpoint, identity, asked, adapter.guided(call), versions, config.mixed_precision]
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    if accelerator.is_main_process:
        warn_overlong(adapter, [rows[k] for k in wanted], call)
    placed = False

    def encode_row(row: Row) -> Cond:
        nonlocal placed
        if not placed:  # where every row is known, the encoders need not fit
            adapter.place(accelerator.device)
            placed = True
        work.beat(f"encoding {row.source}")
        with named_rows([row], adapter, "encode", UserError):
            return adapter.encode(row, call)

    cache = ConditionCache(Path(config.data.cache_dir), fingerprint, about(config))
    with torch.no_grad():
        return encode_rows(rows, encode_row, cache, accelerator.is_main_process, wanted, share_of(config, accelerator))


def about(config: RunConfig) -> dict[str, str]:
    """What `ff-data cache` says of the rows; paths as they are from everywhere."""
    data, model = (str(Path(n).absolute()) if Path(n).is_dir() else n for n in (config.data.dataset_dir, config.model.model_name_or_path))
    return {"dataset_dir": data, "model": model, "model_type": config.model.model_type}


def source_of(adapter: ModelAdapter) -> list[str]:
    """Module, name and code of the adapter's classes: an adapter that is changed encodes anew."""
    classes = [c for c in type(adapter).__mro__ if issubclass(c, ModelAdapter)]
    files = [sys.modules[c.__module__].__file__ for c in classes]
    digests = [file_sha256(f) if f else "" for f in files]
    return [f"{c.__module__}:{c.__qualname__}:{d}" for c, d in zip(classes, digests, strict=True)]


def warn_overlong(adapter: ModelAdapter, rows: Sequence[Row], call: dict[str, Any]) -> None:
    """Says once how many prompts the encoder cuts, of a sample where there are many."""
    sample = rows[:: -(-len(rows) // SAMPLE)] if rows else rows
    lengths = []
    for row in sample:
        with named_rows([row], adapter, "encode", UserError):
            lengths.append((adapter.tokens(row, call), row))
    cut = [(has, takes, row) for (has, takes), row in lengths if has > takes]
    if cut:
        has, takes, row = max(cut, key=lambda c: c[0])
        logger.warning("%d of %d prompts are longer than the encoder takes (%d tokens) and are cut; the longest has %d: row %d, %r",
                       len(cut), len(sample), takes, has, row.id, row.prompt[:60])  # fmt: skip
