"""TDM-R1 (arXiv 2603.07700): TDM with any reward. A surrogate network learns the reward from groups, and is differentiable."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flow_factory.algorithms.base import Average, Turn
from flow_factory.algorithms.dmd2 import Draw
from flow_factory.algorithms.losses import kl_v
from flow_factory.algorithms.losses.dgpo import dgpo_loss, group_weight, out_of_range, stopped
from flow_factory.algorithms.losses.dmd import clean, normaliser, path_velocity, renoised, rewarded_loss
from flow_factory.algorithms.tdm import OnPath
from flow_factory.config import SchedulerConfig, TDMR1Config, TrainConfig
from flow_factory.core.ema import Ramp
from flow_factory.core.randomness import generator, normal
from flow_factory.core.timesteps import TIMESTEPS
from flow_factory.types import Metrics, Point, Rollout, Velocity

RAMP = 1e-3
"""The growth of the slow surrogate's decay per update."""


class TDMR1(OnPath):
    """An update trains the fake network, the surrogate by DGPO's loss on states of the path, and the generator by three pulls."""

    Config: ClassVar[type[TrainConfig]] = TDMR1Config
    config: TDMR1Config
    scope: Literal["group", "times"] | None = "group"

    def __init__(self, config: TDMR1Config, scheduler: SchedulerConfig, per_sample_times: bool = False):
        super().__init__(config, scheduler, per_sample_times)
        least, most = config.surrogate_slow_decay_min, config.surrogate_slow_decay_max
        base = (("ref", None), ("ref", 1.0)) if config.base_guided else (("ref", 1.0),)
        self.scores = ("fake", None), *base, ("surrogate", config.surrogate_guidance_scale)
        self.averages = {"slow": Average(Ramp(0, least, RAMP, max(least, most)), "update", of="surrogate")}

    def turns(self, update: int) -> Sequence[Turn]:
        *fakes, policy = super().turns(update)
        points, needs = partial(self.on_path, draw=(update, len(fakes) + 1)), (("ref", 1.0), ("slow", 1.0))
        return [*fakes, Turn("surrogate", points, self.surrogate_loss, self.precompute, needs), policy]

    # -- the surrogate -----------------------------------------------------------------------------------------------------------

    def on_path(self, rollout: Rollout, draw: Draw) -> Iterator[Point]:
        """States x_{i+1} of the path with more noise on them, which a group shares, as it does the noise level."""
        low = -self.config.advantage_clip_range
        for point in self.drawn(rollout, draw):
            step, x1 = point.step, point.step.x1.float() if point.step is not None else point.x
            assert step is not None
            key = self.config.seed, "group levels", *draw, rollout.epoch, rollout.group, step.index
            u = torch.rand((), generator=generator(*key), dtype=torch.float64)
            tau = self.level(u, step.s.cpu().double(), step.s1.cpu().double()).float().to(x1.device)
            noise = normal(x1.shape[1:], torch.float32, "cpu", *key).expand(x1.shape).to(x1.device)
            x, advantage = renoised(x1, noise, step.s1, tau), rollout.advantage.clamp(low, -low)
            yield Point(x, TIMESTEPS * tau, tau, rollout.cond, advantage, step, noise=noise, memo=rollout.memo)

    def precompute(self, points: Sequence[Point], velocity: Velocity) -> Sequence[tuple[Tensor, Tensor, Tensor]]:
        """(the base's velocity, the slow surrogate's error, the group's weight) of each micro-batch."""
        known = [self._compared(p, velocity) for p in points]
        d = torch.cat([self._error(p, velocity(p, "surrogate", 1.0)) for p in points])
        d_ref = torch.cat([self._error(p, base) for p, (base, _) in zip(points, known, strict=True)])
        weight = group_weight(torch.cat([p.advantage for p in points]), d, d_ref, self.config.surrogate_preference_beta)
        return [(*one, weight) for one in known]

    def surrogate_loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        """(i + 1) / K (w A d + beta mean_d (v - v_base)^2), without the terms of samples beyond the clip range or the threshold."""
        config, advantage, step = self.config, point.advantage, point.step
        assert step is not None
        base, d_slow, *weights = self._compared(point, velocity) if point.peers is None else point.peers
        v = velocity(point, "surrogate", 1.0).float()
        d, d_ref, far = self._error(point, v), self._error(point, base), kl_v(v, base)
        weight = weights[0] if weights else group_weight(advantage, d, d_ref, config.surrogate_preference_beta)
        clip = config.surrogate_clip_range
        done, ratio = out_of_range(advantage, d, d_slow, (-clip, clip))
        done |= (far > config.surrogate_reference_threshold) & (advantage * (d_ref - d) > 0)
        share = (step.index + 1) / config.num_inference_steps if config.use_time_weighting else 1.0
        loss = share * (dgpo_loss(weight, advantage, stopped(d, done)) + config.surrogate_reference_beta * far).mean()
        metrics = {"surrogate_loss": loss, "group_weight": weight, "ratio": ratio, "clip_frac": done.float(), "matching_error": d}
        return loss, {k: m.detach() for k, m in metrics.items()}

    def _compared(self, point: Point, velocity: Velocity) -> tuple[Tensor, Tensor]:
        """(the base's velocity, the slow surrogate's error)"""
        return velocity(point, "ref", 1.0).float(), self._error(point, velocity(point, "slow", 1.0))

    def _error(self, point: Point, v: Tensor) -> Tensor:
        step = point.step
        assert step is not None and point.noise is not None
        return kl_v(v.float(), path_velocity(step.x1.float(), point.noise, step.s1, point.s))

    # -- the generator -----------------------------------------------------------------------------------------------------------

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        config = self.config
        x0, at = self.judged(point, velocity)
        fake, *bases, surrogate = (clean(at.x, velocity(at, *query).float(), at.s) for query in self.scores)
        guided, base = bases[0], bases[-1]
        cfg = config.cfg_reward_scale * (guided - base) / ((config.real_guidance_scale or 1.0) - 1) if config.base_guided else guided - base
        sizes = normaliser(x0, guided), normaliser(x0, surrogate)
        loss = rewarded_loss(x0, base - fake, cfg, surrogate - base, sizes, config.tdm_weight).mean()
        metrics = {"loss": loss, "score_distance": (fake - base).abs().mean(), "surrogate_pull": (surrogate - base).abs().mean()}
        return loss, {k: m.detach() for k, m in metrics.items()}
