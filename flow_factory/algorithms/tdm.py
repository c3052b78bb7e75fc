"""TDM (arXiv 2503.06674): distribution matching at every step of a few-step student's path, whose own noise the judged pictures keep."""

from typing import ClassVar

import torch
from torch import Tensor

from flow_factory.algorithms.dmd2 import FewSteps, point_at
from flow_factory.algorithms.losses.dmd import clean, renoised, tdm_fake_loss, tdm_loss
from flow_factory.config import PathConfig, TDMConfig, TrainConfig
from flow_factory.core.dynamics import like
from flow_factory.core.timesteps import between
from flow_factory.types import Metrics, Point, Velocity

MARGIN = 0.02
"""The distance above a step's end at which samples are judged, before the shift. At the end itself they have no fresh noise (the
authors' value)."""


class OnPath(FewSteps):
    """What TDM and TDM-R1 share: noise levels above each step's end, the noised state, and the fake network's loss."""

    config: PathConfig

    def level(self, u: Tensor, s: Tensor, s1: Tensor) -> Tensor:
        config = self.config
        top = s if config.tdm_query_interval == "trajectory" else torch.full_like(s, config.tdm_query_max_sigma).maximum(s)
        shape = config.tdm_query_logit_mean, config.tdm_query_logit_std
        return between(u, s1, top, config.tdm_query_distribution, config.time_shift, *shape, margin=MARGIN)

    def fake_loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        x0, at = self.judged(point, velocity)
        assert point.noise is not None
        v, config = velocity(at, "fake").float(), self.config
        loss = tdm_fake_loss(v, at.x, x0, point.noise, at.s, config.tdm_snr_gamma, config.tdm_importance_clip).mean()
        return loss, {"fake_loss": loss.detach()}

    def judged(self, point: Point, velocity: Velocity) -> tuple[Tensor, Point]:
        """(the policy's sample from the state, differentiable if the policy is trained; the next state of its path with fresh noise)."""
        step = point.step
        assert step is not None and point.noise is not None and point.tau is not None
        x, v = point.x.float(), velocity(point).float()
        x1 = x + like(step.s1 - step.s, x) * v.detach()
        return clean(x, v, point.s), point_at(point, renoised(x1, point.noise, step.s1, point.tau))


class TDM(OnPath):
    """The student's x0 is pulled towards x0 + (x0_real - x0_fake), at each step of the path."""

    Config: ClassVar[type[TrainConfig]] = TDMConfig
    config: TDMConfig

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        x0, at = self.judged(point, velocity)
        fake, real = (clean(at.x, velocity(at, *query).float(), at.s) for query in self.scores)
        loss = tdm_loss(x0, real, fake, self.config.huber_c if self.config.use_huber else None).mean()
        metrics = {"loss": loss, "score_distance": (fake - real).abs().mean()}
        return loss, {k: m.detach() for k, m in metrics.items()}
