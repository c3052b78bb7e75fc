"""The work of `ff-generate`: the stock pipeline of a run's evaluations, with the base model's and each checkpoint's weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL.PngImagePlugin import PngInfo

from flow_factory.commands.drawing import StockPipeline
from flow_factory.commands.places import WRITABLE
from flow_factory.config import RunConfig, pipeline_kwargs
from flow_factory.data.mp4 import save_video
from flow_factory.reporting.pictures import contact_sheet
from flow_factory.reporting.samples import words
from flow_factory.types import Clip, Row, Sample
from flow_factory.utils.errors import file_errors
from flow_factory.utils.terminal import bar, note

SHEET = 64
"""The most lines of a contact sheet: viewers do not open very long images."""


@dataclass(frozen=True)
class Job:
    """The samples to draw."""

    config: RunConfig
    weights: Sequence[tuple[Path | None, str]]
    """(checkpoint, label); None is the base model, which comes first."""
    rows: Sequence[Row]
    seeds: Sequence[int]
    batch: int
    out: Path
    device: str | None
    offload: bool


def draw(job: Job) -> Path:
    """Draws all samples, and writes a file for each and a contact sheet. Returns the path of the sheet.

    Raises:
        UserError: the pipeline does not load or cannot draw a row; a checkpoint does not fit; the folder cannot be written.
    """
    section, pipeline = job.config.eval, StockPipeline(job.config, job.device, job.offload)
    conds = pipeline.encoded(job.rows, section)
    work = [(k, seed) for k in range(len(job.rows)) for seed in job.seeds]
    columns = _columns(job)
    shown: dict[tuple[int, int], list[Sample]] = {pair: [] for pair in work[: SHEET * columns // len(job.weights)]}
    for checkpoint, label in job.weights:
        pipeline.take(checkpoint)
        for some in bar(pipeline.batches(work, job.batch, lambda pair: conds[pair[0]]), label, "batch"):
            noise = [torch.Generator("cpu").manual_seed(seed) for _, seed in some]
            rows = [job.rows[k] for k, _ in some]
            for (k, seed), media in zip(some, pipeline.draw(rows, [conds[k] for k, _ in some], section, noise), strict=True):
                _write(job, label, job.rows[k], seed, media)
                if (k, seed) in shown:
                    shown[k, seed].append(Sample(f"{label}, seed {seed}: {job.rows[k].prompt}", media, {}))
    sheet = job.out / "sheet.png"
    if len(shown) < len(work):
        note(f"{sheet} shows the first {len(shown)} of {len(work)} pairs of prompt and seed; there is a file for each sample")
    with file_errors("--out", sheet, WRITABLE):
        contact_sheet([sample for samples in shown.values() for sample in samples], columns=columns).save(sheet, "PNG")
    return sheet


def _columns(job: Job) -> int:
    """The number of columns: samples of one prompt and seed are side by side. With one kind of weights, seeds share a line."""
    return len(job.weights) if len(job.weights) > 1 else min(len(job.seeds), 8)


def _write(job: Job, label: str, row: Row, seed: int, media: Any) -> None:
    folder = job.out / label
    stem = f"{row.id:04d}_{words(row.prompt)}_seed{seed}"
    with file_errors("--out", folder, WRITABLE):
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(media, Clip):
            save_video(media, folder / f"{stem}.mp4")
            return
        metadata = PngInfo()
        known = {"prompt": row.prompt, "negative_prompt": row.negative_prompt, "seed": seed, "weights": label}
        known |= {"model": job.config.model.model_name_or_path, "num_inference_steps": job.config.eval.num_inference_steps}
        known |= {"diffusers": diffusers.__version__, **pipeline_kwargs(job.config.eval)}
        for key, value in known.items():
            if value is not None:
                metadata.add_itxt(key, str(value))
        media.save(folder / f"{stem}.png", pnginfo=metadata)
