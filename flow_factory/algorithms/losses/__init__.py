"""Loss terms per sample (B,); the caller weights and averages them. This file has those that several algorithms share.

x0 is the clean latent, noise is standard normal, x_s = (1 - s) x0 + s noise is the point, and v = noise - x0 the true velocity
there. mean_d is the mean over the latent's D dimensions. Velocities and latents are (B, ...); s is 0-dim, (B,) or (B, 1, ..., 1).
"""

import torch
from torch import Tensor

from flow_factory.core.dynamics import per_sample


def clipped_objective(logp_new: Tensor, logp_old: Tensor, advantage: Tensor, clip_range: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic loss max(-A r, -A clip(r, 1 + lo, 1 + hi)) and the ratio r = exp(logp_new - logp_old), all (B,).

    `clip_range` is (lo, hi) with lo <= 0 <= hi, in units of the mean log-probability per dimension, so about 1e-4. The gradient is -A r
    inside the range, and outside of it where the advantage moves the ratio back; else it is 0.
    """
    low, high = clip_range
    ratio = (logp_new - logp_old).exp()
    return (-advantage * ratio).maximum(-advantage * ratio.clamp(1 + low, 1 + high)), ratio


def clip_fractions(ratio: Tensor, clip_range: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Shares of samples below 1 + lo and above 1 + hi, both 0-dim."""
    low, high = clip_range
    return (ratio < 1 + low).to(ratio.dtype).mean(), (ratio > 1 + high).to(ratio.dtype).mean()


def approx_kl(logp_new: Tensor, logp_old: Tensor) -> Tensor:
    """(logp_new - logp_old)^2 / 2 per dimension of the log-probability: how far the policy has moved since the rollout."""
    return 0.5 * (logp_new - logp_old) ** 2


def kl_exact(mean: Tensor, mean_ref: Tensor, std: Tensor) -> Tensor:
    """KL(policy || reference) of one transition, per dimension: mean_d (mean - mean_ref)^2 / (2 std^2) (Flow-GRPO, arXiv 2505.05470)."""
    return per_sample((mean - mean_ref) ** 2 / (2 * std**2))


def kl_x(mean: Tensor, mean_ref: Tensor) -> Tensor:
    """`x-based`: mean_d (mean - mean_ref)^2, which is 2 std^2 times `kl_exact`; each needs its own beta."""
    return per_sample((mean - mean_ref) ** 2)


def kl_v(v: Tensor, v_ref: Tensor) -> Tensor:
    """`v-based`: mean_d (v - v_ref)^2. For the SDE kernels `kl_exact` is |dt| / 2 (g (1 - s) / (2 s) + 1 / g)^2 times this."""
    return per_sample((v - v_ref) ** 2)


def matching_error(v: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """Flow-matching error mean_d (v - (noise - x0))^2: small if x0 is probable under the policy."""
    return kl_v(v, noise - x0)


def self_normalised_square(error: Tensor) -> Tensor:
    """(B,) float64: mean_d error^2 / max(mean_d |error|, 1e-5), the divisor without gradient.

    The gradient has the same size for large and for small errors (DiffusionNFT's adaptive weight, arXiv 2509.16117).
    """
    error = error.double()
    with torch.no_grad():
        weight = per_sample(error.abs()).clamp(min=1e-5)
    return per_sample(error**2) / weight
