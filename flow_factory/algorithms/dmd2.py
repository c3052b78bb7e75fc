"""DMD2 (arXiv 2405.14867) without data and without a GAN critic: a few-step student learns the distribution of the guided base."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from flow_factory.algorithms.base import Algorithm, Turn
from flow_factory.algorithms.forward import mixed
from flow_factory.algorithms.losses import matching_error
from flow_factory.algorithms.losses.dmd import clean, dmd_loss
from flow_factory.config import DMD2Config, FewStepConfig, TrainConfig
from flow_factory.core.randomness import generator, normal
from flow_factory.core.timesteps import TIMESTEPS, shifted
from flow_factory.types import Metrics, Point, Rollout, Step, Velocity

Draw = tuple[int, int]
"""(update, number of the turn in it): with the sample, the key of a turn's random draws."""


class FewSteps(Algorithm):
    """Rolls out with a few Euler steps and stores their states. An update trains the fake network for some steps, then the generator."""

    Config: ClassVar[type[TrainConfig]]
    config: FewStepConfig
    weights = ("ref",)
    scores: tuple[tuple[str, float | None], ...] = (("fake", None), ("ref", None))
    """The velocities that the generator's loss needs, see `Turn.needs`."""
    precomputes_velocities: ClassVar[bool] = False
    reads_final = False

    def guidance(self, weights: str) -> float | None:
        return self.config.real_guidance_scale if weights == "ref" else None

    def noisy(self, epoch: int, group: int) -> tuple[int, ...]:
        return ()

    def kept(self, epoch: int, group: int) -> tuple[int, ...]:
        return tuple(range(self.config.first_step, self.config.num_inference_steps))

    def turns(self, update: int) -> Sequence[Turn]:
        many = self.config.ttur_fake_updates
        fakes = [Turn("fake", partial(self.drawn, draw=(update, k)), self.fake_loss, needs=(("policy", None),)) for k in range(many)]
        return [*fakes, Turn("policy", partial(self.drawn, draw=(update, many)), self.loss, needs=self.scores)]

    def drawn(self, rollout: Rollout, draw: Draw) -> Iterator[Point]:
        """Points on the path, each with fresh noise and the noise level at which the policy's sample is judged."""
        choice = generator(self.config.seed, "steps", *draw, rollout.group, rollout.ids[0])
        chosen = torch.randperm(len(rollout.steps), generator=choice)[: self.size(rollout)].sort().values
        for step in (rollout.steps[k] for k in chosen.tolist()):
            tau, noise = self.levels(rollout, step, draw), self.noise(rollout, step, draw)
            yield Point(step.x, step.t, step.s, rollout.cond, rollout.advantage, step, noise=noise, tau=tau, memo=rollout.memo)

    def noise(self, rollout: Rollout, step: Step, draw: Draw) -> Tensor:
        """(n, ...) float32, keyed by sample."""
        shape, seed = step.x.shape[1:], self.config.seed
        drawn = [normal(shape, torch.float32, "cpu", seed, "score noise", *draw, rollout.epoch, i, step.index) for i in rollout.ids]
        return torch.stack(drawn).to(step.x.device)

    def levels(self, rollout: Rollout, step: Step, draw: Draw) -> Tensor:
        """Noise levels: (n,) if the model takes a time per sample and no network is guided (guidance doubles the samples); else 0-dim."""
        each = self.per_sample_times and not self.config.base_guided
        ids = rollout.ids if each else rollout.ids[:1]
        draws = [generator(self.config.seed, "score levels", *draw, rollout.epoch, i, step.index) for i in ids]
        u = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in draws])
        tau = self.level(u if each else u[0], step.s.cpu().double(), step.s1.cpu().double())
        return tau.float().to(step.x.device)

    def level(self, u: Tensor, s: Tensor, s1: Tensor) -> Tensor:
        """Noise levels from uniforms u, for a step from noise level s to s1."""
        raise NotImplementedError(f"{type(self).__name__} does not say at which noise levels pictures are judged")

    def fake_loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        """The loss of the fake network, at a point to which the policy's sample was noised."""
        raise NotImplementedError(f"{type(self).__name__} has no loss of its fake network")


def point_at(point: Point, x: Tensor) -> Point:
    """The point with another state, at the noise level at which samples are judged."""
    assert point.tau is not None
    return replace(point, x=x, t=TIMESTEPS * point.tau, s=point.tau, frozen={})


class DMD2(FewSteps):
    """(x0 - sg(x0 - (x0_fake - x0_real) / N))^2 / 2 on one step of the path, drawn anew at each optimiser step."""

    Config: ClassVar[type[TrainConfig]] = DMD2Config
    config: DMD2Config

    def level(self, u: Tensor, s: Tensor, s1: Tensor) -> Tensor:
        low, high = self.config.perturbation_timestep_range
        return shifted(low + u * (high - low), self.config.time_shift)

    def fake_loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        x0, at = self._judged(point, velocity)
        assert point.noise is not None
        loss = matching_error(velocity(at, "fake").float(), x0, point.noise).mean()
        return loss, {"fake_loss": loss.detach()}

    def loss(self, point: Point, velocity: Velocity) -> tuple[Tensor, Metrics]:
        x0, at = self._judged(point, velocity)
        fake, real = (clean(at.x, velocity(at, *query).float(), at.s) for query in self.scores)
        loss = dmd_loss(x0, real, fake).mean()
        metrics = {"loss": loss, "score_distance": (fake - real).abs().mean()}
        return loss, {k: m.detach() for k, m in metrics.items()}

    def _judged(self, point: Point, velocity: Velocity) -> tuple[Tensor, Point]:
        """(the policy's sample from the state, the point to which it was noised)."""
        assert point.noise is not None and point.tau is not None
        x0 = clean(point.x.float(), velocity(point).float(), point.s)
        return x0, point_at(point, mixed(x0.detach(), point.noise, point.tau))
