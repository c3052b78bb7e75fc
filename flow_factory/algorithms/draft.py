"""ReFL (arXiv 2304.05977) and DRaFT-K (arXiv 2309.17400): the gradient of a differentiable reward through the sampler's last K steps.

For an Euler step x_{i+1} = x_i + dt v(x_i) and lam_i = dL / dx_i, back-propagation is dL/dtheta += dt lam_{i+1} dv/dtheta(x_i) and
lam_i = lam_{i+1} + dt lam_{i+1} dv/dx(x_i). That is a forward and a backward of each step, from the last one on, at the states of the
rollout. It needs the memory of one step for any K, and one forward for each backward, as every engine requires.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from flow_factory.algorithms.base import Algorithm
from flow_factory.algorithms.losses.draft import path_loss, slope_before, velocity_kl
from flow_factory.config import DRaFTConfig, SchedulerConfig, TrainConfig
from flow_factory.types import Metrics, Point, Rollout, Velocity


class DRaFT(Algorithm):
    """-score of the final images, plus kl_beta times the distance to the reference at the trained steps."""

    Config: ClassVar[type[TrainConfig]] = DRaFTConfig
    config: DRaFTConfig
    through_sampler: ClassVar[bool] = True

    def __init__(self, config: DRaFTConfig, scheduler: SchedulerConfig, per_sample_times: bool = False):
        super().__init__(config, scheduler, per_sample_times)
        self.weights = ("ref",) if config.kl_beta > 0 else ()

    def noisy(self, epoch: int, group: int) -> tuple[int, ...]:
        return ()

    def kept(self, epoch: int, group: int) -> tuple[int, ...]:
        return tuple(self.config.last_steps)

    def objective(self, score: Tensor) -> Tensor:
        return -score

    def points(self, rollout: Rollout) -> Iterator[Point]:
        """The points from the last step back. The gradient of a point in its state is the input of the next point."""
        slope = rollout.slope
        for step in reversed(rollout.steps):
            x = step.x.float().detach().requires_grad_(not self.config.stop_gradient and step is not rollout.steps[0])
            factor = torch.zeros((), requires_grad=True)
            yield Point(x, step.t, step.s, rollout.cond, rollout.advantage, step, memo=rollout.memo, slope=slope, factor=factor)
            if x.grad is not None and factor.grad is not None and slope is not None:
                slope = slope_before(slope, x.grad, factor.grad * len(rollout.steps) / len(x))

    def size(self, rollout: Rollout) -> int:
        return len(rollout.steps)

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        """The loss times the number of steps, because the mean over points must be their sum. Only its gradient is meaningful."""
        step, many = point.step, len(self.config.last_steps)
        assert step is not None and point.slope is not None and point.factor is not None  # `points` makes them so
        v = velocity(point).float()
        loss = many * path_loss(v, point.slope, step.s, step.s1).mean() + (point.factor - point.factor.detach())
        metrics = {"slope": point.slope.flatten(1).norm(dim=1)}
        if self.config.kl_beta > 0:
            kl = velocity_kl(v, velocity(point, "ref").float(), step.s).mean()
            loss = loss + self.config.kl_beta * kl
            metrics |= {"kl_div": kl, "kl_loss": self.config.kl_beta * kl}
        return loss, {k: m.detach() for k, m in metrics.items()}
