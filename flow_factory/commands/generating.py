"""The work of `ff-generate`: the stock pipeline of a run's evaluations, with the base model's and each checkpoint's weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
from PIL.PngImagePlugin import PngInfo

from flow_factory.checkpoints.stock import put_weights
from flow_factory.config import RunConfig, pipeline_kwargs
from flow_factory.data.mp4 import save_video
from flow_factory.models.base import ModelAdapter
from flow_factory.models.failures import named_rows
from flow_factory.models.loading import load_adapter
from flow_factory.policy.attention import without_cudnn
from flow_factory.reporting.pictures import contact_sheet
from flow_factory.reporting.samples import words
from flow_factory.runs.fitting import checkpoint_of
from flow_factory.types import Clip, Cond, Row, Sample
from flow_factory.utils.errors import UserError, file_errors
from flow_factory.utils.offload import to_cpu, to_device
from flow_factory.utils.terminal import bar, hide_bars


@dataclass(frozen=True)
class Job:
    """What is to be drawn."""

    config: RunConfig
    weights: Sequence[tuple[Path | None, str]]
    """Each checkpoint and its label; None is the base model, and comes first."""
    rows: Sequence[Row]
    seeds: Sequence[int]
    batch: int
    out: Path
    device: str | None
    offload: bool


def draw(job: Job) -> Path:
    """Draws all, and writes a file a picture and a contact sheet, whose path is returned.

    Raises:
        UserError: the pipeline does not load or cannot take a row; a checkpoint does not fit; the folder cannot be written.
    """
    hide_bars()
    without_cudnn()
    device = torch.device(job.device) if job.device else accelerate.PartialState().device
    name, kind, overrides, pipeline = checkpoint_of(job.config)
    adapter = load_adapter(name, kind, job.config.mixed_precision, None, overrides, pipeline)
    call = pipeline_kwargs(job.config.eval)
    adapter.check_call(call)
    _place(adapter, device, job.offload)
    with torch.no_grad():
        conds = [_encoded(adapter, row, call) for row in job.rows]
    drawn: dict[tuple[int, int], list[Sample]] = {}
    for checkpoint, label in job.weights:
        if checkpoint is not None:
            put_weights(adapter.pipe, checkpoint, job.config.model.target_components)
            for part in job.config.model.target_components:
                getattr(adapter.pipe, part).eval()
        work = [(k, job.seeds[n : n + job.batch]) for k in range(len(job.rows)) for n in range(0, len(job.seeds), job.batch)]
        for k, seeds in bar(work, label, "batch"):
            for seed, media in zip(seeds, _drawn(adapter, job, call, conds[k], k, seeds, device), strict=True):
                _write(job, label, job.rows[k], seed, media, call)
                drawn.setdefault((k, seed), []).append(Sample(f"{label}, seed {seed}: {job.rows[k].prompt}", media, {}))
    sheet = job.out / "sheet.png"
    with file_errors("--out", sheet, "name a folder that can be written"):
        contact_sheet([sample for samples in drawn.values() for sample in samples], columns=_columns(job)).save(sheet, "PNG")
    return sheet


def _columns(job: Job) -> int:
    """Those of one prompt and seed stand side by side; seeds share a line where there is one kind of weights."""
    return len(job.weights) if len(job.weights) > 1 else min(len(job.seeds), 8)


def _place(adapter: ModelAdapter, device: torch.device, offload: bool) -> None:
    if offload and device.type == "cpu":
        raise UserError("--offload: there is no accelerator to bring parts to; leave it out")
    if offload:
        adapter.pipe.enable_model_cpu_offload(device=device)
    else:
        adapter.pipe.to(device)


def _encoded(adapter: ModelAdapter, row: Row, call: dict[str, Any]) -> Cond:
    with named_rows([row], adapter, "encode", UserError):
        return to_cpu(adapter.encode(row, call))


def _drawn(
    adapter: ModelAdapter, job: Job, call: dict[str, Any], cond: Cond, k: int, seeds: Sequence[int], device: torch.device
) -> list[Any]:
    """The media of one row, from the noise of these seeds."""
    noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with named_rows([job.rows[k]], adapter, "draw", UserError):
        return adapter.evaluate(adapter.repeat(to_device(cond, device), len(seeds)), call, job.config.eval.num_inference_steps, noise)


def _write(job: Job, label: str, row: Row, seed: int, media: Any, call: dict[str, Any]) -> None:
    folder = job.out / label
    stem = f"{row.id:04d}_{words(row.prompt)}_seed{seed}"
    with file_errors("--out", folder, "name a folder that can be written"):
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(media, Clip):
            save_video(media, folder / f"{stem}.mp4")
            return
        told = PngInfo()
        known = {"prompt": row.prompt, "negative_prompt": row.negative_prompt, "seed": seed, "weights": label}
        known |= {"model": job.config.model.model_name_or_path, "num_inference_steps": job.config.eval.num_inference_steps}
        known |= {"diffusers": diffusers.__version__, **call}
        for key, value in known.items():
            if value is not None:
                told.add_itxt(key, str(value))
        media.save(folder / f"{stem}.png", pnginfo=told)
