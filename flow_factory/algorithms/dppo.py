"""Flow-DPPO (arXiv 2606.11025): policy gradient that masks samples by the KL of their transition, not by the ratio."""

from typing import ClassVar

import torch
from torch import Tensor

from flow_factory.algorithms.losses import kl_exact, kl_x
from flow_factory.algorithms.losses.dppo import far_enough, masked_objective
from flow_factory.algorithms.losses.guard import normalised_log_ratio
from flow_factory.algorithms.transitions import OnTransitions
from flow_factory.config import DPPOConfig, TrainConfig
from flow_factory.core.dynamics import slope
from flow_factory.types import Metrics, Point, Step

RATIO_ERROR = 1e-5
"""The error of the ratio that still counts as an exact replay."""


class DPPO(OnTransitions):
    """-A r, or 0 where the KL from the sampling policy is at the threshold and A would increase it; plus kl_beta times the KL to ref."""

    Config: ClassVar[type[TrainConfig]] = DPPOConfig
    config: DPPOConfig
    bound: ClassVar[str] = "kl_mask_threshold"
    with_mean: ClassVar[bool] = True

    def on_policy_error(self, metrics: Metrics) -> tuple[Tensor, float]:
        """The largest KL, or the ratio's error at a scale on which `RATIO_ERROR` is as bad as a tenth of the threshold."""
        most = 0.1 * min(self.config.kl_mask_threshold, 1.0)
        return torch.maximum(metrics["kl_old_max"], metrics["ratio_error"] * (most / RATIO_ERROR)), most

    def _objective(self, point: Point, step: Step, logp: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        with torch.no_grad():
            kl = self._moved(point, step, mean, std)
            towards = logp - step.logp
            if self.config.direction == "normalised":
                assert step.mean is not None  # `with_mean`
                towards = normalised_log_ratio(self.kernel, logp, step.logp, mean, step.mean, std)
            far = far_enough(kl, towards, point.advantage, self.config.kl_mask_threshold)
        objective, ratio = masked_objective(logp, step.logp, point.advantage, far)
        share, good = far.to(ratio.dtype), point.advantage > 0
        metrics = {"kl_old": kl, "kl_old_max": kl.max(), "far_frac": share, "far_frac_high": share * good, "far_frac_low": share * ~good}
        return objective, ratio, metrics

    def _moved(self, point: Point, step: Step, mean: Tensor, std: Tensor) -> Tensor:
        """(n,) distance from the sampling policy: the transition's KL, or the velocity's mean square change (proportional to it)."""
        assert step.mean is not None  # `with_mean`
        if self.config.kl_mask_type == "exact":
            return kl_exact(mean, step.mean, std)
        return kl_x(mean, step.mean) / slope(self.kernel, point.s, step.s1, self.scheduler.noise_level, step.ceiling).flatten() ** 2
