"""Base of the algorithms on the forward process: they noise the final states of ODE rollouts, at noise levels of their own."""

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from flow_factory.algorithms.base import Algorithm, Average
from flow_factory.algorithms.losses import kl_v
from flow_factory.config import ForwardConfig, OldPolicyConfig, SchedulerConfig
from flow_factory.core.dynamics import like
from flow_factory.core.ema import ramp
from flow_factory.core.randomness import normal
from flow_factory.core.timesteps import TimeSampler
from flow_factory.types import Point, Rollout, Velocity


def mixed(x0: Tensor, noise: Tensor, s: Tensor) -> Tensor:
    """(1 - s) x0 + s noise, for s 0-dim or (n,)."""
    return (1 - like(s, x0)) * x0 + like(s, x0) * noise


def ends(point: Point) -> tuple[Tensor, Tensor]:
    """(x0, noise) of a point on the forward process."""
    assert point.x0 is not None and point.noise is not None
    return point.x0, point.noise


class NoisedSamples(Algorithm):
    """Rolls out with the ODE; trains without classifier-free guidance at x = (1 - s) x0 + s noise."""

    def guidance(self, weights: str) -> float | None:
        return 1.0

    def noisy(self, epoch: int, group: int) -> tuple[int, ...]:
        return ()

    def times(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """The model's times and the noise levels of the micro-batch's points, (T,) each, or (T, n) with a time per sample."""
        raise NotImplementedError(f"{type(self).__name__} does not say at which noise levels it trains")

    def drawn(self, rollout: Rollout, draw: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """As `times`: per sample if the model takes them, else per micro-batch.

        Args:
            draw: (group, sample) -> (T,) times and noise levels.
        """
        if not self.per_sample_times:
            return draw(rollout.group, rollout.ids[0])
        t, s = zip(*(draw(rollout.group, i) for i in rollout.ids), strict=True)
        return torch.stack(t, 1), torch.stack(s, 1)

    def noise(self, rollout: Rollout, index: int) -> Tensor:
        """Noise of the point with this index, (n, ...) float32, keyed by sample."""
        assert rollout.x0 is not None  # an ODE rollout has them
        shape, seed = rollout.x0.shape[1:], self.config.seed
        return torch.stack([normal(shape, torch.float32, "cpu", seed, "train noise", rollout.epoch, i, index) for i in rollout.ids])

    def advantage(self, rollout: Rollout) -> Tensor:
        """(n,) advantage as the loss uses it."""
        return rollout.advantage

    def points(self, rollout: Rollout) -> Iterator[Point]:
        assert rollout.x0 is not None
        x0, advantage = rollout.x0.float(), self.advantage(rollout)
        known = {"memo": rollout.memo, "kl_weight": rollout.kl_weight, "unheld": rollout.unheld}
        for index, (t, s) in enumerate(zip(*self.times(rollout), strict=True)):
            t, s, noise = t.to(x0.device), s.to(x0.device), self.noise(rollout, index).to(x0.device)
            yield Point(mixed(x0, noise, s), t, s, rollout.cond, advantage, x0=x0, noise=noise, **known)


class ForwardProcess(NoisedSamples):
    """Base with the noise levels, advantages and KL term of `ForwardConfig`."""

    config: ForwardConfig
    times_by_group: ClassVar[bool] = False
    """Whether all samples of a group share their noise levels, because the loss compares them."""

    def __init__(self, config: ForwardConfig, scheduler: SchedulerConfig, per_sample_times: bool = False):
        super().__init__(config, scheduler, per_sample_times)
        self.weights = ("ref",) if config.kl_beta > 0 else ()
        self.sampler = TimeSampler(
            config.time_sampling_strategy, config.points_per_batch(scheduler), config.timestep_range, config.time_shift
        )

    def times(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        def draw(*key: int) -> tuple[Tensor, Tensor]:
            assert rollout.schedule is not None
            return self.sampler.draw(*rollout.schedule, self.config.seed, rollout.epoch, *key)

        return draw(rollout.group) if self.times_by_group else self.drawn(rollout, draw)

    def advantage(self, rollout: Rollout) -> Tensor:
        return rollout.advantage.clamp(*self.config.adv_clip_range)

    def kl(self, point: Point, v: Tensor, velocity: Velocity, weights: str = "ref") -> Tensor:
        """(n,) squared distance to the velocity under other weights; 0 if no sample has a KL term: then that is not computed."""
        if point.unheld:
            return torch.zeros_like(point.advantage)
        return kl_v(v.float(), velocity(point, weights).float())


class AgainstOldPolicy(ForwardProcess):
    """Base of algorithms that compare with the sampling policy: that of the epoch's start, or with `off_policy` a lagging average."""

    config: OldPolicyConfig

    def __init__(self, config: OldPolicyConfig, scheduler: SchedulerConfig, per_sample_times: bool = False):
        super().__init__(config, scheduler, per_sample_times)
        self.weights = ("old", *self.weights)
        if config.off_policy:
            self.averages = {"old": Average(ramp(config.old_model_decay))}

    def rolls_out(self, updates: int) -> str:
        return "old" if self.config.off_policy else "policy"
