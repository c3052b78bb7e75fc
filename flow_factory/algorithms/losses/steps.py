"""Weights of the schedule's steps in the loss, so that a step's gradient does not depend on its amount of noise.

At the old policy a transition's d log p / d v is 2 k cv std e / D, with k the precision in its log-probability, cv = d mean / d v and e the
noise that was drawn; for the SDE kernels, k = 1 / (2 std^2), that is cv e / (std D): steps with little noise have large gradients.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from flow_factory.core.dynamics import Kernel

StepWeight = Literal["noise", "rectified"]


def step_weights(kernel: Kernel, kind: StepWeight, sigmas: Tensor, steps: Sequence[int], eta: float) -> Tensor:
    """(len(steps),) float64 weights of steps of a schedule, 1 on average over them.

    "noise", TempFlow-GRPO (arXiv 2508.04324): std, the public 2.25 std over 2.25 times its mean. "rectified", Flash-GRPO
    (arXiv 2605.15980): 1 / (2 k std |cv|), for the SDE kernels std / |cv|, with which every step's gradient in v is -e / D.

    Args:
        sigmas: (n + 1,) noise levels of the rollout's schedule.
        steps: indices of the candidates.
        eta: noise level of the kernel.
    """
    at = torch.as_tensor(steps, device=sigmas.device)
    s, s1, ceiling = (a.double() for a in (sigmas[at], sigmas[at + 1], sigmas[1]))
    cv, std = kernel.step(torch.zeros_like(s), torch.ones_like(s), s, s1, eta, ceiling)
    weight = std if kind == "noise" else 1 / (2 * kernel.precision(std) * std * cv.abs())
    return weight / weight.mean()
