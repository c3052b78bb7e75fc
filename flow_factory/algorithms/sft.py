"""Supervised fine-tuning: flow matching (arXiv 2210.02747) on the data set's own pictures and videos."""

from typing import ClassVar

from torch import Tensor

from flow_factory.algorithms.forward import NoisedSamples, ends
from flow_factory.algorithms.losses import matching_error
from flow_factory.config import SchedulerConfig, SFTConfig, TrainConfig
from flow_factory.core.timesteps import TimeSampler
from flow_factory.types import Metrics, Point, Rollout, Velocity


class SFT(NoisedSamples):
    """mean_d (v - (noise - x0))^2, all noise levels alike."""

    Config: ClassVar[type[TrainConfig]] = SFTConfig
    config: SFTConfig

    def __init__(self, config: SFTConfig, scheduler: SchedulerConfig, per_sample_times: bool = False):
        super().__init__(config, scheduler, per_sample_times)
        self.sampler = TimeSampler(
            config.weighting_scheme, config.num_train_timesteps, config.timestep_range, config.time_shift,
            -config.logit_mean, config.logit_std,  # whose mean above 0 is noisier
        )  # fmt: skip

    def times(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        config = self.config
        return self.drawn(rollout, lambda *key: self.sampler.levels(config.num_train_timesteps, config.seed, rollout.epoch, *key))

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        error = matching_error(velocity(point).float(), *ends(point))
        loss = error.mean()
        return loss, {"loss": loss.detach(), "policy_loss": loss.detach(), "matching_error": error.detach()}
