"""Flow-GRPO: a clipped policy gradient on the Gaussian transitions of an SDE sampler (arXiv 2505.05470)."""

from collections.abc import Iterator

from torch import Tensor

from flow_factory.algorithms.base import Algorithm
from flow_factory.algorithms.losses import approx_kl, clip_fractions, clipped_objective, kl_exact, kl_v, kl_x
from flow_factory.config import GRPOConfig, SchedulerConfig
from flow_factory.dynamics import DYNAMICS
from flow_factory.randomness import choose_steps
from flow_factory.types import Metrics, Point, Rollout, Velocity


class GRPO(Algorithm):
    """max(-A r, -A clip(r)) on the epoch's stochastic steps, plus kl_beta times the distance to the reference."""

    Config = GRPOConfig
    config: GRPOConfig

    def __init__(self, config: GRPOConfig, scheduler: SchedulerConfig):
        super().__init__(config, scheduler)
        self.kernel = DYNAMICS[scheduler.dynamics_type]
        self.weights = ("ref",) if config.kl_beta > 0 else ()

    def noisy(self, epoch: int) -> tuple[int, ...]:
        candidates = self.scheduler.stochastic_steps(self.config.num_inference_steps)
        return choose_steps(candidates, self.scheduler.num_sde_steps, self.config.seed, epoch)

    def points(self, rollout: Rollout) -> Iterator[Point]:
        assert rollout.advantage is not None, "points come after the advantages"
        low, high = self.config.adv_clip_range
        advantage = rollout.advantage.clamp(low, high)
        for step in rollout.steps:
            yield Point(step.x.to(step.dtype), step.t, step.s, rollout.cond, advantage, step)

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        step = point.step
        v = velocity(point)
        mean, std = self._transition(point, v)
        logp = self.kernel.log_prob(step.x1.float(), mean, std)
        objective, ratio = clipped_objective(logp, step.logp, point.advantage, self.config.clip_range)
        low, high = clip_fractions(ratio, self.config.clip_range)
        policy = loss = objective.mean()
        metrics = {
            "policy_loss": policy, "ratio": ratio, "ratio_error": (ratio - 1).abs().max(), "clip_frac_low": low, "clip_frac_high": high,
            "clip_frac": low + high, "approx_kl": approx_kl(logp, step.logp),
        }  # fmt: skip
        if self.config.kl_beta > 0:
            kl = self._kl(point, v, mean, std, velocity(point, "ref"))
            loss = policy + self.config.kl_beta * kl
            metrics |= {"kl_div": kl, "kl_loss": self.config.kl_beta * kl}
        return loss, {k: m.detach() for k, m in ({"loss": loss} | metrics).items()}

    def on_policy_error(self, metrics: Metrics) -> tuple[Tensor, float]:
        low, high = self.config.clip_range
        return metrics["ratio_error"], 0.1 * min(-low, high)

    def _transition(self, point: Point, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.kernel.step(point.x.float(), v.float(), point.s, point.step.s1, self.scheduler.noise_level, point.step.ceiling)

    def _kl(self, point: Point, v: Tensor, mean: Tensor, std: Tensor, reference: Tensor) -> Tensor:
        if self.config.kl_type == "v-based":
            return kl_v(v.float(), reference.float()).mean()
        ref_mean, _ = self._transition(point, reference)
        return (kl_x(mean, ref_mean) if self.config.kl_type == "x-based" else kl_exact(mean, ref_mean, std)).mean()
