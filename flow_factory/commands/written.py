"""What `ff-export` says at its end: each file or folder that it wrote, and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flow_factory.checkpoints.checkpoint import model_kind
from flow_factory.checkpoints.lora_formats import SUFFIX
from flow_factory.commands.data_cache import size
from flow_factory.models.loading import family_of
from flow_factory.reporting.model_card import whole_in
from flow_factory.runs.fitting import checkpoint_of
from flow_factory.utils.model_index import modular_index
from flow_factory.utils.tensor_file import read_header

if TYPE_CHECKING:
    from flow_factory.commands.exporting import Job

PLACES = {
    "comfyui": "put it into ComfyUI's models/loras, and take it in the node LoraLoaderModelOnly",
    "kohya": "name it to sd-scripts or musubi-tuner, or put it into ComfyUI's models/loras",
}
"""Formats of other programs -> where their users put a file."""


def written_lines(job: Job, paths: list[Path]) -> list[str]:
    """A line for each path with its format, tensors and size, and one on how to load them."""
    return [f"{path}: {_contents(job, path)}" for path in paths] + [f"load it: {_loading(job, paths)}"]


def _contents(job: Job, path: Path) -> str:
    files = [path] if path.is_file() else sorted(path.rglob(f"*{SUFFIX}"))
    tensors = [tensor for file in files for tensor in read_header(file).values()]
    dtypes = ", ".join(sorted({tensor.dtype for tensor in tensors}))
    kind = "a LoRA" if job.to != "merged" and model_kind(job.checkpoint) == "lora" else "full weights"
    much = size(sum(file.stat().st_size for file in files))
    return f"{job.to}, {kind} of {len(tensors)} tensors ({dtypes}), {much}, from {job.checkpoint}"


def _loading(job: Job, paths: list[Path]) -> str:
    first = paths[0]
    if job.to in PLACES:
        return PLACES[job.to]
    if job.to == "peft":
        places = [place for place, _ in _lora_places(job, paths)]
        return "; ".join(f'PeftModel.from_pretrained(pipe.{c}, "{place}")' for c, place in zip(job.components, places, strict=False))
    if job.to == "diffusers" and model_kind(job.checkpoint) == "lora":
        return "; ".join(f'pipe.load_lora_weights("{place}"{option})' for place, option in _lora_places(job, paths))
    if whole_in(first):
        return f'{"ModularPipeline" if modular_index(first) else "DiffusionPipeline"}.from_pretrained("{first}")'
    name, kind, _, pipeline = checkpoint_of(job.config)
    cls = family_of(name, kind, pipeline).transformer_class().__name__
    if first.is_dir():
        return "; ".join(f'{cls}.from_pretrained("{first}", subfolder="{component}")' for component in job.components)
    known = zip(paths, job.components, strict=False)
    return "; ".join(f'{cls}.from_single_file("{file}", config="{name}", subfolder="{component}")' for file, component in known)


def _lora_places(job: Job, paths: list[Path]) -> list[tuple[Path, str]]:
    """(what diffusers loads, further arguments) of each trained transformer."""
    folder = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
    places = paths if folder is None else [folder if c == "transformer" else folder / c for c in job.components]
    options = ["" if component == "transformer" else f", load_into_{component}=True" for component in job.components]
    return list(zip(places, options, strict=False))
