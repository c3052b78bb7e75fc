"""All weights of a transformer in one file: by diffusers' names, or by those of the original code, which diffusers' own converters know."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from torch import Tensor

from flow_factory.checkpoints.checkpoint import CheckpointError
from flow_factory.utils.tensor_file import DTYPES, read_header

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")
OTHERS = ("vae.", "first_stage_model.", "text_encoders.", "cond_stage_model.", "conditioner.", "audio_vae.", "vocoder.")
"""Beginnings of the names of other parts, in files with a whole pipeline."""


def by_own_names(file: Path, tensors: Mapping[str, Tensor], module: Any) -> dict[str, Tensor]:
    """The same weights by the names of a transformer, of diffusers.

    Raises:
        CheckpointError: they are of another model, as far as the names say it.
    """
    wanted = module.state_dict().keys()
    found = {name: t for name, t in tensors.items() if not name.startswith(OTHERS)}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): t for name, t in found.items()}
    if found.keys() == wanted:
        return found
    kind = next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in SINGLE_FILE_LOADABLE_CLASSES), None)
    if kind is None:
        text = f"its names are not those of {type(module).__name__}, for which diffusers has no other single files"
        raise CheckpointError(f"{file} does not fit this model: {text}; name a folder or file by diffusers' names")
    entry: Any = SINGLE_FILE_LOADABLE_CLASSES[kind]
    try:
        return dict(entry["checkpoint_mapping_fn"](checkpoint=found, config=dict(module.config)))
    except (
        KeyError,
        ValueError,
        RuntimeError,
        IndexError,
        AttributeError,
        TypeError,
    ) as error:  # of other names or shapes
        text = f"diffusers cannot convert it to {kind}: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise CheckpointError(f"{file} does not fit this model: {text}") from error


def shapes_in(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file without their values, on the meta device.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        return {name: torch.empty(t.shape, dtype=DTYPES.get(t.dtype), device="meta") for name, t in read_header(file).items()}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} {error}") from error
