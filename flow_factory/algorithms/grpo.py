"""Flow-GRPO: a clipped policy gradient on the Gaussian transitions of an SDE sampler (arXiv 2505.05470)."""

from collections.abc import Iterator

from torch import Tensor

from flow_factory.algorithms.base import Algorithm
from flow_factory.algorithms.losses import approx_kl, clip_fractions, clipped_objective, kl_exact, kl_v, kl_x
from flow_factory.config import GRPOConfig, SchedulerConfig
from flow_factory.dynamics import DYNAMICS
from flow_factory.randomness import choose_steps
from flow_factory.types import Metrics, Point, Rollout, Step, Velocity


class GRPO(Algorithm):
    """max(-A r, -A clip(r)) on the epoch's stochastic steps, plus kl_beta times the distance to the reference."""

    Config = GRPOConfig
    config: GRPOConfig

    def __init__(self, config: GRPOConfig, scheduler: SchedulerConfig):
        super().__init__(config, scheduler)
        self.kernel = DYNAMICS[scheduler.dynamics_type]
        self.weights = ("ref",) if config.kl_beta > 0 else ()

    def noisy(self, epoch: int) -> tuple[int, ...]:
        candidates = self.scheduler.stochastic_steps(self.config.num_inference_steps, self.config.first_step)
        return choose_steps(candidates, self.scheduler.num_sde_steps, self.config.seed, epoch)

    def points(self, rollout: Rollout) -> Iterator[Point]:
        low, high = self.config.adv_clip_range
        advantage = rollout.advantage.clamp(low, high)
        for step in rollout.steps:
            yield Point(step.x.to(step.dtype), step.t, step.s, rollout.cond, advantage, step, rollout.memo)

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        step = point.step
        assert step is not None  # `points` makes them so
        v = velocity(point)
        mean, std = self._transition(point, step, v)
        logp = self.kernel.log_prob(step.x1.float(), mean, std)
        objective, ratio = clipped_objective(logp, step.logp, point.advantage, self.config.clip_range)
        low, high = clip_fractions(ratio, self.config.clip_range)
        policy = loss = objective.mean()
        metrics = {
            "policy_loss": policy, "ratio": ratio, "ratio_error": (ratio - 1).abs().max(), "clip_frac_low": low, "clip_frac_high": high,
            "clip_frac": low + high, "approx_kl": approx_kl(logp, step.logp),
        }  # fmt: skip
        if self.config.kl_beta > 0:
            ref = velocity(point, "ref")
            kl = self._kl(v, ref, mean, self._transition(point, step, ref)[0], std)
            loss = policy + self.config.kl_beta * kl
            metrics |= {"kl_div": kl, "kl_loss": self.config.kl_beta * kl}
        return loss, {k: m.detach() for k, m in ({"loss": loss} | metrics).items()}

    def on_policy_error(self, metrics: Metrics) -> tuple[Tensor, float]:
        low, high = self.config.clip_range
        return metrics["ratio_error"], 0.1 * min(-low, high)

    def _transition(self, point: Point, step: Step, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.kernel.step(point.x.float(), v.float(), point.s, step.s1, self.scheduler.noise_level, step.ceiling)

    def _kl(self, v: Tensor, v_ref: Tensor, mean: Tensor, mean_ref: Tensor, std: Tensor) -> Tensor:
        if self.config.kl_type == "v-based":
            return kl_v(v.float(), v_ref.float()).mean()
        return (kl_x(mean, mean_ref) if self.config.kl_type == "x-based" else kl_exact(mean, mean_ref, std)).mean()
