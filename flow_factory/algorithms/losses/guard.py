"""GRPO-Guard (arXiv 2510.22319): a policy ratio whose mean and scale do not depend on the step, and steps of equal weight.

For x1 = mean_old + std e and dmu = mean - mean_old the plain log-ratio is mean_d (e dmu) / std - mean_d dmu^2 / (2 std^2): on average
below 0, with more spread at less noise, so that a clip range acts at some steps and never at others.
"""

from typing import Literal

import torch
from torch import Tensor

from flow_factory.algorithms.losses import clipped_objective
from flow_factory.core.dynamics import Kernel, gaussian_precision, per_sample


def normalised_log_ratio(
    kernel: Kernel,
    logp: Tensor,
    logp_old: Tensor,
    mean: Tensor,
    mean_old: Tensor,
    std: Tensor,
    bias: Literal["sample", "batch"] = "sample",
) -> Tensor:
    """(B,) mean_d (e dmu) = (logp - logp_old + k mean_d dmu^2) / (2 k std), k the precision in the kernel's log-probability.

    For the SDE kernels, k = 1 / (2 std^2), this is the paper's std (logp - logp_old + b) with b = mean_d dmu^2 / (2 std^2); for CPS, k = 1,
    it is (logp - logp_old + mean_d dmu^2) / (2 std). The gradient flows through b too.

    Args:
        logp: (B,) of the stored next state under the policy; `logp_old` at the rollout.
        mean: (B, ...) of the transition under the policy; `mean_old` at the rollout, in float32.
        std: the transition's standard deviation, g sqrt|dt| for an SDE kernel; 0-dim or (B, 1, ..., 1).
        bias: "batch" averages b over the micro-batch as well, as flow_grpo's script does by accident: the ratio of a sample then depends
            on its neighbours.

    Raises:
        ValueError: the transition is deterministic.
    """
    if not kernel.stochastic or bool((std <= 0).any()):
        raise ValueError(
            "GRPO-Guard's ratio divides by the transition's noise and a step here has none: take a stochastic dynamics (Flow-SDE, "
            "Dance-SDE, CPS), a noise_level above 0, and for CPS no step that ends at noise level 0"
        )
    k, std = kernel.precision(std).flatten(), std.flatten()
    square = per_sample((mean - mean_old) ** 2)
    return (logp - logp_old + k * (square.mean() if bias == "batch" else square)) / (2 * k * std)


def step_weight(kernel: Kernel, s: Tensor, s1: Tensor) -> Tensor:
    """1 / |dt| = 1 / (s - s1), the shape of `s`: gives every step the same share of the gradient.

    Raises:
        ValueError: CPS, whose mean does not move in proportion to |dt|.
    """
    if kernel.precision is not gaussian_precision:
        raise ValueError("1 / |dt| is the weight of a kernel with std = g sqrt|dt|: take Flow-SDE or Dance-SDE, or switch the weight off")
    return 1 / (s - s1)


def guard_objective(log_ratio: Tensor, advantage: Tensor, clip_range: tuple[float, float], weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The clipped objective of `normalised_log_ratio` times `step_weight` (None: unweighted, as the public Flow-Factory), and the ratio.

    All (B,), `weight` 0-dim or (B,). The ratio's own scale is |dmu|, so `clip_range` is far below GRPO's: 2e-6 in the authors' configs.
    """
    objective, ratio = clipped_objective(log_ratio, torch.zeros_like(log_ratio), advantage, clip_range)
    return objective if weight is None else objective * weight.flatten(), ratio
