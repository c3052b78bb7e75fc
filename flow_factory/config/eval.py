"""`eval:` how evaluations call the stock pipeline."""

from typing import Any, ClassVar

from pydantic import Field

from flow_factory.config.base import DERIVED, Batch, Denoising, Guidance, Height, Section, Seed, Size, Width
from flow_factory.config.train import TrainConfig


class EvalConfig(Section):
    """How evaluations call the stock pipeline. The section also takes arguments of its `__call__`; those of `train:` are the default."""

    rest: ClassVar[str | None] = "call"

    resolution: Size = Field((1024, 1024), description="size of the evaluation's images in pixels")
    height: Height = Field(DERIVED, description="pixels; replaces the height of resolution")
    width: Width = Field(DERIVED, description="pixels; replaces the width of resolution")
    per_device_batch_size: Batch = Field(1, description="images in a batch")
    group_size: Batch = Field(1, description="images per row, each from its own fixed noise; with 1, groupwise rewards are skipped")
    guidance_scale: Guidance = Field(3.5, description="the pipeline's guidance scale")
    num_inference_steps: Denoising = Field(30, description="denoising steps")
    eval_freq: int = Field(10, ge=0, description="epochs between two evaluations; 0 = never")
    max_rows: int | None = Field(
        None, ge=1, description="number of test rows in an evaluation; seed chooses them once, so they are always the same; null = all"
    )
    full_at_end: bool = Field(False, description="after the last of max_epochs, evaluate all rows as well")
    seed: Seed | None = Field(None, description="seed of the rows' fixed noise and of the choice of max_rows; null = train.seed")
    call: dict[str, Any] = Field(default_factory=dict, description="arguments for the pipeline's __call__")


def pipeline_kwargs(section: TrainConfig | EvalConfig) -> dict[str, Any]:
    """The section's arguments for the pipeline's `__call__`."""
    return {"height": section.height, "width": section.width, "guidance_scale": section.guidance_scale, **section.call}
