"""DiffusionOPD (arXiv 2605.15055): on-policy distillation of several teachers, a LoRA each, into one policy."""

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from flow_factory.algorithms.base import Algorithm, LoraFile
from flow_factory.algorithms.losses import kl_v
from flow_factory.algorithms.losses.distillation import distillation_loss
from flow_factory.config import OPDConfig, SchedulerConfig, TrainConfig
from flow_factory.core.dynamics import DYNAMICS, slope
from flow_factory.core.step_selection import select_steps
from flow_factory.types import Metrics, Point, Rollout, Step, Velocity


class DiffusionOPD(Algorithm):
    """The squared difference between the policy's velocity and that of the row's teacher, at the states of the policy's own path."""

    Config: ClassVar[type[TrainConfig]] = OPDConfig
    config: OPDConfig
    reads_final = False

    def __init__(self, config: OPDConfig, scheduler: SchedulerConfig, per_sample_times: bool = False):
        super().__init__(config, scheduler, per_sample_times)
        self.teachers = {f"teacher {teacher.name}": teacher for teacher in config.teachers}
        """Name of the weights -> teacher."""
        names = enumerate(self.teachers.items())
        self.files = {name: LoraFile(t.path, f"train.teachers.{k}.path", config.teacher_param_device) for k, (name, t) in names}
        self.weights = tuple(self.teachers)
        self.kernel = DYNAMICS[scheduler.dynamics_type]
        self.candidates = scheduler.stochastic_steps(config.num_inference_steps, config.first_step)

    def guidance(self, weights: str) -> float | None:
        return self.teachers[weights].guidance_scale if weights in self.teachers else None

    def needs(self, weights: str, rollout: Rollout) -> bool:
        return self.teachers[weights].teaches(rollout.row.dataset)

    def noisy(self, epoch: int, group: int) -> tuple[int, ...]:
        if not self.kernel.stochastic:
            return ()
        return self.candidates if self.scheduler.step_selection == "fraction" else self._selected(epoch, group)

    def kept(self, epoch: int, group: int) -> tuple[int, ...]:
        if self.config.by_variance(self.scheduler):
            return self._selected(epoch, group)
        return self.config.distilled_steps(self.scheduler)

    def _selected(self, epoch: int, group: int) -> tuple[int, ...]:
        return select_steps(self.scheduler, self.candidates, self.config.seed, epoch, group)

    def points(self, rollout: Rollout) -> Iterator[Point]:
        known = {"memo": rollout.memo, "dataset": rollout.row.dataset}
        for step in rollout.steps:
            yield Point(step.x.to(step.dtype), step.t, step.s, rollout.cond, rollout.advantage, step, **known)

    def size(self, rollout: Rollout) -> int:
        return len(rollout.steps)

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        assert point.step is not None  # `points` makes them so
        mine = next(name for name, teacher in self.teachers.items() if teacher.teaches(point.dataset))
        v, v_teacher = velocity(point).float(), velocity(point, mine).float()
        factor, std = self._compared(point.step)
        loss = distillation_loss(v, v_teacher, factor, std, self.config.self_normalize).mean()
        error = kl_v(v, v_teacher).detach()
        metrics = {"loss": loss.detach(), "teacher_error": error}
        if len(self.teachers) > 1:  # empty of the others, for all processes have the same names
            metrics |= {f"teacher_error/{t.name}": error[: len(error) * (name == mine)] for name, t in self.teachers.items()}
        return loss, metrics

    def _compared(self, step: Step) -> tuple[Tensor, Tensor | None]:
        """The derivative of the compared quantity in v, and the standard deviation by which it is divided."""
        if self.config.loss_target == "v":
            return step.s.new_ones(()), None
        if self.config.loss_target == "x0":
            return -step.s, None
        eta = self.scheduler.noise_level
        factor = slope(self.kernel, step.s, step.s1, eta, step.ceiling)
        if not self.kernel.stochastic:
            return factor, None
        return factor, self.kernel.step(factor, factor, step.s, step.s1, eta, step.ceiling)[1]
