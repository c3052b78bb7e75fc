"""`train:` of on-policy distillation, and its teachers."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from flow_factory.config.algorithm_fields import TimeRange
from flow_factory.config.base import DERIVED, Batch, Device, Folder, Name, Names, Section, Shown, derived, show
from flow_factory.config.scheduler import SchedulerConfig
from flow_factory.config.train import TrainConfig
from flow_factory.core.step_range import index_window


def _named(name: str) -> str:
    if "/" in name:
        raise ValueError(f"{show(name)} would cut the names of metrics in two; write it without /")
    return name


class TeacherConfig(Section):
    """A LoRA over the same base, which the policy learns from on the rows of its data sets."""

    path: Folder = Field(description="safetensors file of a LoRA, its folder, or a run's folder")
    name: Annotated[
        Name,
        AfterValidator(_named),
        derived(lambda above: Path(str(above.get("path", "teacher"))).stem),
        Shown(default="the last part of path"),
    ] = Field(DERIVED, description="name in metrics")
    applicable_datasets: Annotated[Names | None, Shown("list of names, or null")] = Field(
        None, description="the data sets that it teaches (data.datasets.N.name); null = all that are trained on"
    )
    guidance_scale: float | None = Field(
        None, ge=0, le=1000, description="classifier-free guidance of its velocity; 1 = none, null = that of the rollout"
    )

    def teaches(self, dataset: str) -> bool:
        """Whether it is for the rows of this data set."""
        return self.applicable_datasets is None or dataset in self.applicable_datasets


def _entries(value: Any) -> Any:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(entry, (dict, TeacherConfig)) for entry in value):
        raise ValueError(f"wants a list of teachers, such as [{{path: saves/ocr, applicable_datasets: [ocr]}}], got {show(value)}")
    return tuple(value)


Teachers = Annotated[tuple[TeacherConfig, ...], BeforeValidator(_entries), Shown("list")]


class OPDConfig(TrainConfig):
    """DiffusionOPD: the policy is drawn to its teachers' velocities at the states that it goes through itself; no rewards."""

    judged: ClassVar[bool] = False
    by_dynamics: ClassVar[bool] = True

    trainer_type: str = Field("diffusion-opd", description="algorithm")
    teachers: Teachers = Field(description="LoRAs to learn from, one for each data set: {path, name, applicable_datasets, guidance_scale}")
    teacher_param_device: Device = Field("auto", description="device of their weights; auto = that of the trained weights")
    loss_target: Literal["xt", "v", "x0"] = Field(
        "xt", description="what is compared: xt = the next state (over its variance, where it has noise), v = the velocity, x0 = x - s v"
    )
    self_normalize: bool = Field(
        False, description="divide a sample's error by its own size, so that small errors pull as much as large ones"
    )
    timestep_range: TimeRange = Field(
        (0.0, 0.99), description="trained part of the path from noise (0) to data (1); xt with noise: the stochastic steps instead"
    )
    gradient_step_per_epoch: Batch = Field(1, description="optimiser steps per epoch; only the first is on-policy")

    def by_variance(self, scheduler: SchedulerConfig) -> bool:
        """Whether errors are measured in a step's noise, which only stochastic steps have."""
        return self.loss_target == "xt" and scheduler.dynamics_type != "ODE"

    def distilled_steps(self, scheduler: SchedulerConfig) -> tuple[int, ...]:
        """Steps of a rollout that may be trained on."""
        if self.by_variance(scheduler):
            return scheduler.stochastic_steps(self.num_inference_steps, self.first_step)
        first, last = index_window(self.num_inference_steps, self.timestep_range)
        return tuple(range(max(first, self.first_step), last))

    def points_per_batch(self, scheduler: SchedulerConfig) -> int:
        if self.by_variance(scheduler):
            return scheduler.trained_steps(self.num_inference_steps, self.first_step)
        return len(self.distilled_steps(scheduler))
