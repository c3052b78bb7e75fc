"""The work of `ff-export`: reads a checkpoint, and writes its weights in another format, or inside the base model."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flow_factory.checkpoints.checkpoint import begin, finish, model_kind, partial_of
from flow_factory.checkpoints.last_weights import last_weights
from flow_factory.checkpoints.lora_file import Lora, plain_name
from flow_factory.checkpoints.lora_formats import SUFFIX, file_of, in_dtype, place_of, widths, write_lora
from flow_factory.checkpoints.lora_names import by_module_names
from flow_factory.checkpoints.merging import merge_lora
from flow_factory.checkpoints.model_files import full_weights, lora_at, save_full
from flow_factory.checkpoints.stock import load_full
from flow_factory.config import RunConfig
from flow_factory.models.loading import DTYPES, family_of, load_parts, load_pipeline, sketch_adapter
from flow_factory.runs.fitting import checkpoint_of
from flow_factory.runs.provenance import provenance
from flow_factory.utils.errors import UserError, file_errors
from flow_factory.utils.model_index import name_source
from flow_factory.utils.tensor_file import write_tensors
from flow_factory.utils.terminal import hide_bars


@dataclass(frozen=True)
class Job:
    """What is to be written."""

    config: RunConfig
    checkpoint: Path
    to: str
    out: Path
    """A folder, or a file that ends in .safetensors; neither is there yet."""
    dtype: str | None
    """None: as saved; of a merged model the run's."""
    scale: float
    last: bool
    """The weights of the training state, not the reported ones."""

    @property
    def components(self) -> tuple[str, ...]:
        return self.config.model.target_components

    @property
    def name(self) -> str:
        """Of a file in a folder."""
        path = self.checkpoint.absolute()
        run = self.run
        return f"{run.name}_{path.name}" if run is not None and run != path else path.stem

    @property
    def run(self) -> Path | None:
        """The run's folder."""
        path = self.checkpoint.absolute()
        return next((folder for folder in (path, *path.parents[:2]) if (folder / "metrics.jsonl").is_file()), None)

    @property
    def header(self) -> dict[str, str]:
        return provenance(self.config, self.run, self.checkpoint.name)


def export(job: Job) -> list[Path]:
    """Writes all, and returns where.

    Raises:
        UserError: the checkpoint is damaged, the format does not exist for its model, or the place cannot be written.
    """
    hide_bars()
    lora = model_kind(job.checkpoint) == "lora"
    if not lora and job.to not in ("merged", "diffusers"):
        raise UserError(f"--to {job.to}: {job.checkpoint} has full weights, and this format is for LoRAs; write merged or diffusers")
    if not lora and job.scale != 1.0:
        raise UserError(f"--scale: {job.checkpoint} has full weights, and only a LoRA can be scaled; leave it out")
    with file_errors("--out", job.out, "name a place that can be written"):
        partial = partial_of(job.out)
        begin(partial)
        try:
            place = partial / job.out.name if job.out.suffix == SUFFIX else partial
            if job.to == "merged":
                _merged(job, place, lora)
            elif lora:
                _loras(job, place)
            else:
                _full(job, place)
            return _in_place(job.out, partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _in_place(out: Path, partial: Path) -> list[Path]:
    """Puts what was written where it belongs."""
    if out.suffix != SUFFIX:
        if out.exists():
            out.rmdir()  # it is empty
        finish(partial, out)
        name_source(out, str(out))
        return [out]
    written = sorted(partial.iterdir())
    for file in written:
        file.replace(out.parent / file.name)
    return [out.parent / file.name for file in written]


def _loras(job: Job, place: Path) -> None:
    sketch = sketch_adapter(*checkpoint_of(job.config))
    for component in job.components:
        module = sketch.field.bare[component]
        lora = in_dtype(_lora(job, component, module), None if job.dtype is None else DTYPES[job.dtype], job.scale)
        file = place_of(place, job.to, component, len(job.components) > 1, job.name)  # type: ignore[arg-type]
        write_lora(file, lora, job.to, component, type(module).__name__, widths(module), job.header)  # type: ignore[arg-type]


def _lora(job: Job, component: str, module: nn.Module) -> Lora:
    file, saved = lora_at(job.checkpoint, component)
    if not job.last:
        return by_module_names(str(file), saved, module)
    last = {plain_name(name): tensor for name, tensor in last_weights(job.checkpoint, component).items()}
    return replace(saved, tensors={name: last[name] for name in saved.tensors})


def _weights(job: Job, component: str, module: nn.Module) -> dict[str, Tensor]:
    saved = full_weights(job.checkpoint, component, module)
    if job.last:
        saved |= last_weights(job.checkpoint, component)
    dtype = None if job.dtype is None else DTYPES[job.dtype]
    return {name: t.to(dtype) if dtype and t.is_floating_point() else t for name, t in saved.items()}


def _full(job: Job, place: Path) -> None:
    """Transformers alone, as `save_pretrained` writes them, or in one file each."""
    sketch = sketch_adapter(*checkpoint_of(job.config))
    for component in job.components:
        weights = _weights(job, component, sketch.field.bare[component])
        if place.suffix == SUFFIX:
            write_tensors(file_of(place, component, len(job.components) > 1), weights, job.header | {"format": "pt"})
        else:
            save_full(place / component, sketch.field.bare[component], weights)


@torch.no_grad()
def _merged(job: Job, place: Path, lora: bool) -> None:
    """The whole pipeline, or a file of each transformer."""
    name, kind, _, pipeline = checkpoint_of(job.config)
    dtype, file = job.dtype or job.config.mixed_precision, place.suffix == SUFFIX
    family, pipe = family_of(name, kind, pipeline), None
    if file:
        parts: Mapping[str, Any] = load_parts(name, family, job.components, dtype)
    else:
        pipe = load_pipeline(name, family, DTYPES[dtype])
        parts = {component: getattr(pipe, component) for component in job.components}
    for component, module in parts.items():
        if lora:
            merge_lora(module, _lora(job, component, module), job.scale)
        else:
            load_full(module, _weights(job, component, module), job.checkpoint, component)
        if file:
            write_tensors(file_of(place, component, len(job.components) > 1), module.state_dict(), job.header | {"format": "pt"})
    if pipe is not None:
        pipe.save_pretrained(str(place), safe_serialization=True)  # a modular pipeline takes no Path
