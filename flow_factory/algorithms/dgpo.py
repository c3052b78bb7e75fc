"""DGPO (arXiv 2510.08425): the better part of a group is preferred to its worse part, as one preference of the whole group."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flow_factory.algorithms.base import Average
from flow_factory.algorithms.forward import ForwardProcess, ends
from flow_factory.algorithms.losses import kl_v, matching_error
from flow_factory.algorithms.losses.dgpo import dgpo_loss, group_weight, out_of_range, stopped
from flow_factory.config import DGPOConfig, SchedulerConfig, TrainConfig
from flow_factory.core.ema import dgpo_ema_ref
from flow_factory.core.randomness import normal
from flow_factory.types import Metrics, Point, Rollout, Velocity


class DGPO(ForwardProcess):
    """w A d with the weight w of the whole group, plus kl_beta times the distance to the compared weights."""

    Config: ClassVar[type[TrainConfig]] = DGPOConfig
    config: DGPOConfig
    scope: Literal["group", "times"] | None = "group"
    times_by_group: ClassVar[bool] = True

    def __init__(self, config: DGPOConfig, scheduler: SchedulerConfig, per_sample_times: bool = False):
        super().__init__(config, scheduler, per_sample_times)
        self.compared = "ema_ref" if config.use_ema_ref else "ref"
        clipped = ("ema_ref",) if config.clip_dsm or config.clip_kl else ()
        self.weights = tuple(dict.fromkeys((self.compared, *clipped)))
        decay = dgpo_ema_ref(config.ema_ref_max_decay, config.ema_ref_ramp_rate)
        self.averages = {"ema_ref": Average(decay, "update", config.ema_ref_device)}

    def guidance(self, weights: str) -> float | None:
        return self.config.kl_cfg if weights == "ref" else 1.0

    def rolls_out(self, updates: int) -> str:
        return "ema_ref" if self.config.off_policy or updates >= self.config.switch_ema_ref else "policy"

    def noise(self, rollout: Rollout, index: int) -> Tensor:
        if not self.config.use_shared_noise:
            return super().noise(rollout, index)
        assert rollout.x0 is not None
        shape = rollout.x0.shape
        return normal(shape[1:], torch.float32, "cpu", self.config.seed, "group noise", rollout.epoch, rollout.group, index).expand(shape)

    def precompute(self, points: Sequence[Point], velocity: Velocity) -> Sequence[Tensor]:
        """The group's weight, 0-dim and the same for all its micro-batches."""
        d, d_ref = (torch.cat([self._error(p, velocity, name) for p in points]) for name in ("policy", self.compared))
        return [group_weight(torch.cat([p.advantage for p in points]), d, d_ref, self.config.dpo_beta)] * len(points)

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        config, advantage, v = self.config, point.advantage, velocity(point).float()
        ref = velocity(point, self.compared).float()
        d, d_ref = (matching_error(u, *ends(point)) for u in (v, ref))
        weight = group_weight(advantage, d, d_ref, config.dpo_beta) if point.peers is None else point.peers
        kl, far, metrics = kl_v(v, ref), torch.zeros_like(d, dtype=torch.bool), {}
        if "ema_ref" in self.weights:
            far, ratio = out_of_range(advantage, d, self._error(point, velocity, "ema_ref"), config.clip_range)
            metrics = {"ratio": ratio, "clip_frac": far.float()}
        policy = loss = dgpo_loss(weight, advantage, stopped(d, far) if config.clip_dsm else d).mean()
        if config.kl_beta > 0:
            kl = (stopped(kl, far) if config.clip_kl else kl).mean()
            loss = policy + config.kl_beta * kl
            metrics |= {"kl_div": kl, "kl_loss": config.kl_beta * kl}
        metrics |= {"loss": loss, "policy_loss": policy, "group_weight": weight, "matching_error": d, "matching_error_ref": d_ref}
        return loss, {k: m.detach() for k, m in metrics.items()}

    def _error(self, point: Point, velocity: Velocity, weights: str) -> Tensor:
        return matching_error(velocity(point, weights).float(), *ends(point))
