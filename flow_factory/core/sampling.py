"""How a rollout draws its next state: the kernel at the stochastic steps, the ODE at all others."""

import math
from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import Tensor

from flow_factory.core.dynamics import DYNAMICS, Kernel, sample
from flow_factory.core.latents import joint
from flow_factory.types import Step

Noise = Callable[[int, Tensor, str], Tensor]
"""(step index, a state x, purpose) -> standard normal noise of x's shape, float32; different purposes give different noise."""


class Sampler:
    """The `Draw` of one micro-batch.

    Args:
        kernel: dynamics of the stochastic steps.
        eta: their noise level.
        noisy: indices of the stochastic steps.
        noise: keyed noise, see `randomness`.
        purpose: passed to `noise`.
        storage: dtype in which float32 states are stored: they are rounded to it before the log-probability is computed and before
            the model sees them, because the replay uses the rounded states. States that the pipeline keeps in 16 bits are not
            rounded.
        kept: indices of the steps to store; None: all stochastic ones. Transitions of ODE steps have the states as the model
            saw them, and no log-probability (NaN).
        with_mean: also store the transitions' means.
    """

    def __init__(
        self, kernel: Kernel, eta: float, noisy: Collection[int], noise: Noise, storage: torch.dtype, purpose: str = "sde",
        kept: Collection[int] | None = None, with_mean: bool = False,
    ):  # fmt: skip
        self.kernel, self.eta, self.noisy, self.noise = kernel, eta, frozenset(noisy), noise
        self.storage, self.purpose = storage, purpose
        self.kept, self.with_mean = self.noisy if kept is None else frozenset(kept), with_mean

    def fork(self) -> "Sampler":
        """The draw of the second modality, with its own noise."""
        return Sampler(self.kernel, self.eta, self.noisy, self.noise, self.storage, f"{self.purpose} 2", self.kept, self.with_mean)

    def joint(self, a: Step, b: Step, v: Tensor) -> Step:
        """The transitions of two modalities as one, its log-probability the mean over the dimensions of both."""
        with torch.autocast(v.device.type, enabled=False):  # autocast cannot concatenate float16 on a CPU
            x, x1 = joint(a.x, b.x), joint(a.x1, b.x1)
        if a.index not in self.noisy:
            return replace(a, x=x, x1=x1)
        mean, std = self.kernel.step(x.float(), v.float(), a.s, a.s1, self.eta, a.ceiling)
        logp = self.kernel.log_prob(x1.float(), mean, std)
        return replace(a, x=x, x1=x1, logp=logp, mean=mean if self.with_mean else None)

    def __call__(
        self, index: int, t: Tensor, x: Tensor, v: Tensor, s: Tensor, s1: Tensor, ceiling: Tensor, drawn: bool = True
    ) -> tuple[Tensor, Step | None]:
        stored = self.storage if x.dtype == torch.float32 else x.dtype
        if index not in self.noisy:
            x1, _ = DYNAMICS["ODE"].step(x.float(), v.float(), s, s1, 0.0, ceiling)
            x1 = (x1.to(stored) if index + 1 in self.noisy else x1).to(x.dtype)
            if index not in self.kept:
                return x1, None
            return x1, Step(index, t, s, s1, ceiling, x, x1, x1.new_full((len(x1),), math.nan, dtype=torch.float32), x.dtype)
        noise = self.noise(index, x, self.purpose)
        seen = x.to(stored) if drawn else x  # a state that was not drawn here was not rounded
        x1, logp, mean = sample(self.kernel, x.float(), v.float(), s, s1, self.eta, ceiling, noise, stored)
        step = Step(index, t, s, s1, ceiling, seen, x1, logp, x.dtype, mean if self.with_mean else None)
        return x1.to(x.dtype), step if index in self.kept else None
