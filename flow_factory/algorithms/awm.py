"""Advantage-weighted matching (arXiv 2509.25050): PPO whose log-probability is minus the flow-matching error."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flow_factory.algorithms.forward import AgainstOldPolicy, ends
from flow_factory.algorithms.losses import clip_fractions, clipped_objective
from flow_factory.algorithms.losses.awm import elbo_weight, pseudo_log_prob, scaled_advantage
from flow_factory.config import AWMConfig, SchedulerConfig, TrainConfig
from flow_factory.types import Metrics, Point, Rollout, Velocity


class AWM(AgainstOldPolicy):
    """max(-A r, -A clip(r)), plus the distances to the reference and to the averaged weights.

    Before the first update of an epoch the ratio is 1 by construction: the old log-probability costs a forward only after it.
    """

    Config: ClassVar[type[TrainConfig]] = AWMConfig
    config: AWMConfig

    def __init__(self, config: AWMConfig, scheduler: SchedulerConfig, per_sample_times: bool = False):
        super().__init__(config, scheduler, per_sample_times)
        self.weights += ("ema",) if config.ema_kl_beta > 0 else ()
        if config.ratio_order == "sum_first":
            self.scope = "times"

    def advantage(self, rollout: Rollout) -> Tensor:
        return scaled_advantage(rollout.advantage, self.config.adv_clip_range[1], self.config.advantage_max)

    def precompute(self, points: Sequence[Point], velocity: Velocity) -> Sequence[Tensor]:
        """Log-ratio of the mean log-probability over the noise levels, (n,) and the same for all of them."""
        gaps = [self._log_prob(p, velocity(p)) - self._log_prob(p, velocity(p, "old")) for p in points]
        return [torch.stack(gaps).mean(0)] * len(points)

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        config, v = self.config, velocity(point)
        logp, old = self._log_prob(point, v), self._log_prob(point, velocity(point, "old"))
        gap = logp.detach() - old if point.peers is None else point.peers
        log_ratio = gap + (logp - logp.detach())  # of a mean over noise levels, each level's point carries its own gradient
        objective, ratio = clipped_objective(log_ratio, torch.zeros_like(log_ratio), point.advantage, config.clip_range)
        low, high = clip_fractions(ratio, config.clip_range)
        policy = loss = objective.mean()
        metrics = {
            "policy_loss": policy, "ratio": ratio, "clip_frac_low": low, "clip_frac_high": high, "clip_frac": low + high,
            "matching_log_prob": logp,
        }  # fmt: skip
        weight = elbo_weight(point.s) if config.kl_weight == "ELBO" else 1.0
        for name, weights, beta in (("kl", "ref", config.kl_beta), ("ema_kl", "ema", config.ema_kl_beta)):
            if beta > 0:
                kl = (weight * self.kl(point, v, velocity, weights)).mean()
                loss = loss + beta * kl
                metrics |= {f"{name}_div": kl, f"{name}_loss": beta * kl}
        return loss, {k: m.detach() for k, m in ({"loss": loss} | metrics).items()}

    def _log_prob(self, point: Point, v: Tensor) -> Tensor:
        return pseudo_log_prob(v, *ends(point), point.s, self.config.awm_weighting, self.config.ghuber_power)
