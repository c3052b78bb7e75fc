"""Advantage-weighted matching (arXiv 2509.25050): PPO whose log-probability is minus the flow-matching error at a random noise level."""

from typing import Literal

from torch import Tensor

from flow_factory.algorithms.losses import clipped_objective, matching_error

Weighting = Literal["Uniform", "t", "t**2", "huber", "ghuber"]
EPSILON = 1e-10
"""Smooths the root of an error of 0."""


def pseudo_log_prob(v: Tensor, x0: Tensor, noise: Tensor, s: Tensor, weighting: Weighting = "ghuber", power: float = 0.25) -> Tensor:
    """(B,) float64, of l = `matching_error`: -l, -l s, -l s^2, or a root of l that outliers move less, 0 at l = 0.

    "huber" is -(sqrt(l + 1e-10) - 1e-5) s, "ghuber" -((l + 1e-10)^p - 1e-10^p) s / p with p = `power`. New and old log-probability of a
    ratio take the same noise and s.

    Raises:
        ValueError: an unknown weighting.
    """
    l, s = matching_error(v.double(), x0.double(), noise.double()), s.double().flatten()  # noqa: E741 (the paper's letter)
    match weighting:
        case "Uniform":
            return -l
        case "t":
            return -l * s
        case "t**2":
            return -l * s**2
        case "huber":
            return -((l + EPSILON).sqrt() - EPSILON**0.5) * s
        case "ghuber":
            return -((l + EPSILON) ** power - EPSILON**power) * s / power
    raise ValueError(f"no AWM weighting {weighting!r}; known: Uniform, t, t**2, huber, ghuber")


def scaled_advantage(advantage: Tensor, clip: float = 5.0, maximum: float | None = 1.0) -> Tensor:
    """(B,) clip(A, -c, c) / c * maximum; None leaves the clipped advantage as it is, as the public Flow-Factory does."""
    kept = advantage.clamp(-clip, clip)
    return kept if maximum is None else kept / clip * maximum


def surrogate(
    logp: Tensor,
    logp_old: Tensor,
    advantage: Tensor,
    clip_range: tuple[float, float],
    order: Literal["exp_first", "sum_first"] = "exp_first",
) -> tuple[Tensor, Tensor]:
    """The clipped objective and the ratio of T noise levels of each sample.

    Args:
        logp: (T, B) of `pseudo_log_prob`; `logp_old` alike, of the rollout's weights, or `logp.detach()` before the first update.
        advantage: (B,).
        clip_range: (lo, hi) of ratio - 1; (-1, 1) in the authors' configs.
        order: "exp_first" has a ratio of its own for every noise level, (T, B); "sum_first" that of the mean log-probability, (B,).
    """
    if order == "sum_first":
        logp, logp_old = logp.mean(0), logp_old.mean(0)
    return clipped_objective(logp, logp_old, advantage, clip_range)


def elbo_weight(s: Tensor, eta: float = 0.7) -> Tensor:
    """1 / (2 std^2) with std = eta sqrt(s / (1 - min(s, .99))): the "ELBO" weight of a distance between velocities; 1 is "Uniform"."""
    return (1 - s.clamp(max=0.99)) / (2 * eta**2 * s)
