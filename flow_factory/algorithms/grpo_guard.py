"""GRPO-Guard (arXiv 2510.22319): GRPO with a ratio of equal spread at every step, so that the clip acts at all of them."""

from typing import ClassVar

from torch import Tensor

from flow_factory.algorithms.grpo import GRPO
from flow_factory.algorithms.losses.guard import guard_objective, normalised_log_ratio, step_weight
from flow_factory.config import GRPOGuardConfig, TrainConfig
from flow_factory.types import Metrics, Point, Step


class GRPOGuard(GRPO):
    """GRPO with the ratio exp(mean_d e (mean - mean_old)), and each step's loss divided by |dt|."""

    Config: ClassVar[type[TrainConfig]] = GRPOGuardConfig
    config: GRPOGuardConfig
    with_mean: ClassVar[bool] = True

    def on_policy_error(self, metrics: Metrics) -> tuple[Tensor, float]:
        error, most = super().on_policy_error(metrics)
        return error, max(most, 1e-6)  # its clip range is near float32's own resolution of a ratio near 1

    def _objective(self, point: Point, step: Step, logp: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        assert step.mean is not None  # `with_mean`
        log_ratio = normalised_log_ratio(self.kernel, logp, step.logp, mean, step.mean, std)
        weight = step_weight(self.kernel, step.s, step.s1) if self.config.reweight else None
        return self._clipped(*guard_objective(log_ratio, point.advantage, self.config.clip_range, weight))
