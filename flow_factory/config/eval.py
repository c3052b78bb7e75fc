"""`eval:` what the stock pipeline is asked for at an evaluation."""

from typing import Any, ClassVar

from pydantic import Field

from flow_factory.config.base import DERIVED, Batch, Denoising, Guidance, Height, Section, Seed, Size, Width
from flow_factory.config.train import TrainConfig


class EvalConfig(Section):
    """What the stock pipeline is asked for. Arguments of its `__call__` may stand here; those of `train:` are the default."""

    rest: ClassVar[str | None] = "call"

    resolution: Size = Field((1024, 1024), description="pixels of what is evaluated")
    height: Height = Field(DERIVED, description="pixels, instead of resolution's")
    width: Width = Field(DERIVED, description="pixels, instead of resolution's")
    per_device_batch_size: Batch = Field(1, description="pictures of a batch")
    group_size: Batch = Field(1, description="pictures of each row, each from a noise of its own; at 1 groupwise rewards are left out")
    guidance_scale: Guidance = Field(3.5, description="the pipeline's own guidance")
    num_inference_steps: Denoising = Field(30, description="denoising steps")
    eval_freq: int = Field(10, ge=0, description="epochs between two evaluations; 0 = never")
    max_rows: int | None = Field(None, ge=1, description="test rows of an evaluation, always the same, drawn by its seed; null = all")
    full_at_end: bool = Field(False, description="the evaluation after the last of max_epochs takes all rows beside max_rows")
    seed: Seed | None = Field(None, description="of the rows' fixed noise, and of max_rows' choice; null = train.seed")
    call: dict[str, Any] = Field(default_factory=dict, description="arguments for the pipeline's __call__")


def pipeline_kwargs(section: TrainConfig | EvalConfig) -> dict[str, Any]:
    """The section's arguments for the pipeline's `__call__`."""
    return {"height": section.height, "width": section.width, "guidance_scale": section.guidance_scale, **section.call}
