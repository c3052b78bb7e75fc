"""Flow-DPPO (arXiv 2606.11025): a mask by divergence in place of PPO's clip of the ratio."""

from torch import Tensor


def far_enough(kl: Tensor, towards: Tensor, advantage: Tensor, threshold: float) -> Tensor:
    """(B,) bool: the policy has moved by `threshold` or more from what sampled, and the advantage would move it further the same way.

    Args:
        kl: (B,) divergence from the policy that sampled, >= 0.
        towards: (B,) above 0 where the sample has become more probable, e.g. the log-ratio. At 0 nothing is far, nor for advantage 0.
    """
    return (kl >= threshold) & (((advantage > 0) & (towards > 0)) | ((advantage < 0) & (towards < 0)))


def masked_objective(logp_new: Tensor, logp_old: Tensor, advantage: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """-A r, and 0 without gradient where `far`; and the ratio r = exp(logp_new - logp_old); all (B,)."""
    log_ratio = logp_new - logp_old
    kept = log_ratio.where(~far, 0)  # before exp: 0 times the slope of an infinite ratio is no number
    return (-advantage * kept.exp()).where(~far, 0), log_ratio.exp()
