"""Base of the algorithms that learn from the log-probabilities of an SDE rollout's transitions."""

from collections.abc import Iterator

import torch
from torch import Tensor

from flow_factory.algorithms.base import Algorithm
from flow_factory.algorithms.held import kl_term
from flow_factory.algorithms.losses import approx_kl, kl_exact, kl_v, kl_x
from flow_factory.algorithms.losses.steps import step_weights
from flow_factory.config import SchedulerConfig, TransitionConfig
from flow_factory.core.dynamics import DYNAMICS
from flow_factory.core.step_selection import select_steps
from flow_factory.types import Metrics, Point, Rollout, Step, Velocity


class OnTransitions(Algorithm):
    """A loss of the ratio of the transitions' likelihoods, plus kl_beta times the distance to the reference."""

    config: TransitionConfig

    def __init__(self, config: TransitionConfig, scheduler: SchedulerConfig, per_sample_times: bool = False):
        super().__init__(config, scheduler, per_sample_times)
        self.kernel = DYNAMICS[scheduler.dynamics_type]
        self.weights = ("ref",) if config.kl_beta > 0 else ()
        self.candidates = scheduler.stochastic_steps(config.num_inference_steps, config.first_step)
        self.with_schedule = config.step_weight != "none"

    def guidance(self, weights: str) -> float | None:
        return self.config.kl_guidance_scale if weights == "ref" else None

    def noisy(self, epoch: int, group: int) -> tuple[int, ...]:
        if self.scheduler.step_selection == "fraction":
            return self.candidates
        return select_steps(self.scheduler, self.candidates, self.config.seed, epoch, group)

    def kept(self, epoch: int, group: int) -> tuple[int, ...]:
        return select_steps(self.scheduler, self.candidates, self.config.seed, epoch, group)

    def points(self, rollout: Rollout) -> Iterator[Point]:
        low, high = self.config.adv_clip_range
        advantage = rollout.advantage.clamp(low, high)
        known = {"memo": rollout.memo, "schedule": rollout.schedule, "kl_weight": rollout.kl_weight, "unheld": rollout.unheld}
        for step in rollout.steps:
            yield Point(step.x.to(step.dtype), step.t, step.s, rollout.cond, advantage, step, **known)

    def size(self, rollout: Rollout) -> int:
        return len(rollout.steps)

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        step = point.step
        assert step is not None  # `points` makes them so
        v = velocity(point)
        mean, std = self._transition(point, step, v)
        logp = self.kernel.log_prob(step.x1.float(), mean, std)
        objective, ratio, bounded = self._objective(point, step, logp, mean, std)
        weight = self.weight(point)
        policy = loss = (objective if weight is None else weight * objective).mean()
        metrics = {"policy_loss": policy, "ratio": ratio, "ratio_error": (ratio - 1).abs().max(), "approx_kl": approx_kl(logp, step.logp)}
        if weight is not None:
            metrics["step_weight"] = weight
        if self.config.kl_beta > 0:
            each = self._distances(point, step, velocity, v, mean, std)
            term, term_metrics = kl_term(self.config, point, each)
            loss, metrics = policy + term, metrics | term_metrics
        return loss, {k: m.detach() for k, m in ({"loss": loss} | metrics | bounded).items()}

    def weight(self, point: Point) -> Tensor | None:
        """(n,) weight of the samples' objective at this point; None: equal weights."""
        if self.config.step_weight == "none":
            return None
        assert point.step is not None and point.schedule is not None  # `with_schedule`
        eta = self.scheduler.noise_level
        weights = step_weights(self.kernel, self.config.step_weight, point.schedule[1], self.candidates, eta)
        return weights[self.candidates.index(point.step.index)].to(point.advantage).expand_as(point.advantage)

    def _objective(self, point: Point, step: Step, logp: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """(the loss to minimise, the ratio), (n,) each, and metrics of the bound."""
        raise NotImplementedError(f"{type(self).__name__} has no objective")

    def _transition(self, point: Point, step: Step, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.kernel.step(point.x.float(), v.float(), point.s, step.s1, self.scheduler.noise_level, step.ceiling)

    def _distances(self, point: Point, step: Step, velocity: Velocity, v: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """(n,) distances from the reference; 0 if no sample has a KL term: then its velocity is not computed."""
        if point.unheld:
            return torch.zeros_like(point.advantage)
        ref = velocity(point, "ref")
        if self.config.kl_type == "v-based":
            return kl_v(v.float(), ref.float())
        mean_ref = self._transition(point, step, ref)[0]
        return kl_x(mean, mean_ref) if self.config.kl_type == "x-based" else kl_exact(mean, mean_ref, std)
