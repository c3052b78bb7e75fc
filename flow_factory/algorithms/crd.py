"""Centred reward distillation (arXiv 2603.14128): the policy's implicit reward is fitted to the given one, up to a constant per group."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flow_factory.algorithms.base import Average
from flow_factory.algorithms.forward import ForwardProcess, ends
from flow_factory.algorithms.losses.crd import centres, crd_loss, implicit_reward
from flow_factory.algorithms.losses.nft import optimality
from flow_factory.config import CRDConfig, SchedulerConfig, TrainConfig
from flow_factory.core.ema import ramp
from flow_factory.types import Metrics, Point, Rollout, Velocity

NEUTRAL = 0.5
"""The neutral value of a reward in [0, 1]."""
LEAST = 1e-4
"""The weight of the KL term of a sample with reward 0, if rewards weight it."""


class CRD(ForwardProcess):
    """c / beta (beta Rc - pc)^2 with centres of the full group, plus kl_beta times the distance to the guided reference."""

    Config: ClassVar[type[TrainConfig]] = CRDConfig
    config: CRDConfig
    scope: Literal["group", "times"] | None = "group"
    times_by_group: ClassVar[bool] = True

    def __init__(self, config: CRDConfig, scheduler: SchedulerConfig, per_sample_times: bool = False):
        super().__init__(config, scheduler, per_sample_times)
        self.weights = ("old", *self.weights)
        old = config.old_model_decay if config.use_old_for_loss else "offline"
        self.averages = {"old": Average(ramp(old)), "sampling": Average(ramp(config.sampling_model_decay))}

    def guidance(self, weights: str) -> float | None:
        return self.config.kl_cfg if weights == "ref" else 1.0

    def rolls_out(self, updates: int) -> str:
        return "sampling"

    def advantage(self, rollout: Rollout) -> Tensor:
        """p, the given reward in [0, 1]."""
        return optimality(rollout.advantage, self.config.adv_clip_range[1])

    def precompute(self, points: Sequence[Point], velocity: Velocity) -> Sequence[tuple[Tensor, Tensor]]:
        """The centres of the implicit and the given reward, the same for all micro-batches of a group."""
        rewards = torch.cat([self._implicit(p, velocity) for p in points])
        return [self._centres(rewards, torch.cat([p.advantage for p in points]))] * len(points)

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        config, p, v = self.config, point.advantage, velocity(point)
        reward = self._implicit(point, velocity, v)
        centre = self._centres(reward, p) if point.peers is None else point.peers
        policy = loss = crd_loss(reward, p, centre, config.crd_beta, config.crd_loss_type, config.adv_clip_range[1]).mean()
        metrics = {"policy_loss": policy, "implicit_reward": reward, "given_reward": p}
        if config.kl_beta > 0:
            distance = self.kl(point, v, velocity)
            if config.reward_adaptive_kl:
                least = min(LEAST / config.kl_beta, 1.0)
                distance = (least + p * (1 - least)) * distance
            kl = distance.mean()
            loss = policy + config.kl_beta * kl
            metrics |= {"kl_div": kl, "kl_loss": config.kl_beta * kl}
        return loss, {k: m.detach() for k, m in ({"loss": loss} | metrics).items()}

    def _implicit(self, point: Point, velocity: Velocity, v: Tensor | None = None) -> Tensor:
        v = velocity(point) if v is None else v
        return implicit_reward(v.float(), velocity(point, "old").float(), *ends(point), self.config.adaptive_logp)

    def _centres(self, reward: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return centres(reward, p, self.config.weight_temp, NEUTRAL)
