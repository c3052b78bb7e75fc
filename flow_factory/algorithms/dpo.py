"""Diffusion-DPO (arXiv 2311.12908): prefer the best sample of a group to its worst, or the chosen one of a given pair to the rejected."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flow_factory.algorithms.forward import NoisedSamples, ends
from flow_factory.algorithms.losses import matching_error
from flow_factory.algorithms.losses.dpo import dpo_loss
from flow_factory.config import DPOConfig, SchedulerConfig, TrainConfig
from flow_factory.core.groups import best_and_worst, pick
from flow_factory.core.randomness import normal
from flow_factory.core.timesteps import PairTimeSampler
from flow_factory.types import Metrics, Point, Rollout, Velocity


class DPO(NoisedSamples):
    """-log sigmoid(-beta / 2 [(d_w - d_w_ref) - (d_l - d_l_ref)]), one forward for the pair. A group with equal scores teaches nothing."""

    Config: ClassVar[type[TrainConfig]] = DPOConfig
    config: DPOConfig
    weights = ("ref",)

    def __init__(self, config: DPOConfig, scheduler: SchedulerConfig, per_sample_times: bool = False):
        super().__init__(config, scheduler, per_sample_times)
        self.sampler = PairTimeSampler(
            config.weighting_scheme, config.timestep_range, config.time_shift, config.logit_mean, config.logit_std
        )

    def select(self, group: Sequence[Rollout]) -> list[Rollout]:
        """One micro-batch: (chosen, rejected)."""
        pair = best_and_worst(torch.cat([r.advantage for r in group]).cpu())
        return [pick(group, pair or (0, 1))]

    def times(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        return self.sampler.draw(self.config.num_train_timesteps, self.config.seed, rollout.epoch, rollout.group)

    def noise(self, rollout: Rollout, index: int) -> Tensor:
        """The same noise for both samples."""
        assert rollout.x0 is not None
        shape = rollout.x0.shape
        return normal(shape[1:], torch.float32, "cpu", self.config.seed, "pair noise", rollout.epoch, rollout.group, index).expand(shape)

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        d = matching_error(velocity(point).float(), *ends(point))
        with torch.no_grad():
            ref = matching_error(velocity(point, "ref").float(), *ends(point))
        loss, margin = dpo_loss(d[:1], d[1:], ref[:1], ref[1:], self.config.beta)
        differ = (point.advantage[:1] != point.advantage[1:]).to(loss.dtype)
        loss = (loss * differ).mean()
        metrics = {"loss": loss, "policy_loss": loss, "margin": margin, "pair_accuracy": (margin > 0).float(), "ties": 1 - differ,
                   "error_chosen": d[:1], "error_rejected": d[1:]}  # fmt: skip
        return loss, {k: m.detach() for k, m in metrics.items()}
