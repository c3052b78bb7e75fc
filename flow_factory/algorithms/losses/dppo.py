"""Flow-DPPO (arXiv 2606.11025): a mask by divergence in place of PPO's clip of the ratio."""

from torch import Tensor


def far_enough(kl: Tensor, towards: Tensor, advantage: Tensor, threshold: float) -> Tensor:
    """(B,) bool: the policy is `threshold` or more away from the sampling policy, and the advantage would move it further away.

    Args:
        kl: (B,) divergence from the policy that sampled, >= 0.
        towards: (B,) above 0 if the sample has become more probable, e.g. the log-ratio. Where it or the advantage is 0, the mask is False.
    """
    return (kl >= threshold) & (((advantage > 0) & (towards > 0)) | ((advantage < 0) & (towards < 0)))


def masked_objective(logp_new: Tensor, logp_old: Tensor, advantage: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """-A r, but 0 without gradient where `far`; and the ratio r = exp(logp_new - logp_old); all (B,)."""
    log_ratio = logp_new - logp_old
    kept = log_ratio.where(~far, 0)  # before exp: 0 times the gradient of an infinite ratio is NaN
    return (-advantage * kept.exp()).where(~far, 0), log_ratio.exp()
