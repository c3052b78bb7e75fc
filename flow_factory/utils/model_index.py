"""Which parts a checkpoint has: its model_index.json, or the index of a modular pipeline in the same form. No code of it is run."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from flow_factory.utils.errors import UserError

KEY = "model.model_name_or_path"
WEIGHTS = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}
"""The libraries' file names of a part's weights. Weights in several files have an index of this name with `.index.json`."""
INDEX, MODULAR = "model_index.json", "modular_model_index.json"
BLOCKS = "modular_config.json"
"""Where a modular pipeline names blocks of its own."""


class LoadError(UserError):
    """A checkpoint does not load. The message has the reason in one sentence."""


class MissingError(LoadError):
    """A file of a checkpoint is missing."""


def read_json(file: Path) -> dict[str, Any]:
    """Raises:
    LoadError: the file is missing or is not a JSON object.
    """
    if not file.exists():
        raise MissingError(f"{KEY}: {file}: No such file or directory; download it again")
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise LoadError(f"{KEY}: {file} is not JSON: {error}; download it again") from error
    if not isinstance(value, dict):
        raise LoadError(f"{KEY}: {file} is not a JSON object; download it again")
    return value


def model_index(name: str) -> dict[str, Any]:
    """The index of a folder or hub name: (library, class) of each part, and values of the pipeline's config.

    Raises:
        OSError: there is none, or it is damaged.
        LoadError: see `modular_index`.
    """
    return modular_index(Path(name)) or DiffusionPipeline.load_config(name)


def modular_index(folder: Path) -> dict[str, Any] | None:
    """The index of a modular pipeline in the same form; None: this is not a folder of one.

    Raises:
        LoadError: it is damaged, or names code or parts of somebody else.
    """
    if not _is_modular(folder):
        return None
    index = read_json(folder / MODULAR)
    _require_stock_blocks(folder, index)
    parts = {part: _part_of(folder, part, entry) for part, entry in index.items() if isinstance(entry, list)}
    return {k: v for k, v in index.items() if k not in parts} | {part: entry for part, entry in parts.items() if entry is not None}


def name_source(folder: Path, source: str) -> None:
    """Has the index of a modular pipeline, if the folder has one, say that its parts come from this folder or repository."""
    if not _is_modular(folder):
        return
    index = read_json(folder / MODULAR)
    for entry in index.values():
        if isinstance(entry, list) and entry[2].get("pretrained_model_name_or_path") is not None:
            entry[2]["pretrained_model_name_or_path"] = source
    (folder / MODULAR).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _is_modular(folder: Path) -> bool:
    return not (folder / INDEX).exists() and (folder / MODULAR).is_file()


def class_of(library: str, name: str) -> Any:
    """The class of a part, by what an index says of it."""
    return getattr(importlib.import_module(library if library in WEIGHTS else f"diffusers.pipelines.{library}"), name)


def _require_stock_blocks(folder: Path, index: Mapping[str, Any]) -> None:
    own = read_json(folder / BLOCKS) if (folder / BLOCKS).is_file() else {}
    blocks = index.get("_blocks_class_name")
    if "auto_map" in own or "auto_map" in index or not hasattr(diffusers, str(blocks or "ModularPipeline")):
        raise LoadError(
            f"{KEY}: {folder} has blocks of its own ({blocks or BLOCKS}); code of a checkpoint is never run, only diffusers' blocks"
        )


def _part_of(folder: Path, part: str, entry: list[Any]) -> list[str] | None:
    """(library, class) of a part of a modular pipeline; None: the checkpoint has no such part."""
    if len(entry) != 3 or not isinstance(entry[2], dict):
        raise LoadError(f"{KEY}: {folder / MODULAR}: {part} is no [library, class, source]; download it again")
    library, kind = entry[2].get("type_hint") or entry[:2]
    source = entry[2].get("pretrained_model_name_or_path")
    if not (folder / part).is_dir():
        if source is None:
            return None
        raise MissingError(
            f"{KEY}: {folder} has no {part}, which {MODULAR} takes from {source!r}; save the whole pipeline (save_pretrained)"
        )
    if library not in WEIGHTS and not hasattr(diffusers.pipelines, str(library)):  # some pipelines have parts of their own
        raise LoadError(f"{KEY}: {folder / MODULAR}: {part} is of {library!r}; parts of {' and '.join(WEIGHTS)} are known")
    return [library, kind]
