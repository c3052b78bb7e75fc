"""Flow-GRPO: a clipped policy gradient on the Gaussian transitions of an SDE sampler (arXiv 2505.05470)."""

from typing import ClassVar

from torch import Tensor

from flow_factory.algorithms.losses import clip_fractions, clipped_objective
from flow_factory.algorithms.transitions import OnTransitions
from flow_factory.config import GRPOConfig, TrainConfig
from flow_factory.types import Metrics, Point, Step


class GRPO(OnTransitions):
    """max(-A r, -A clip(r)) on the stochastic steps, plus kl_beta times the distance to the reference."""

    Config: ClassVar[type[TrainConfig]] = GRPOConfig
    config: GRPOConfig
    bound: ClassVar[str] = "clip_range"

    def on_policy_error(self, metrics: Metrics) -> tuple[Tensor, float]:
        low, high = self.config.clip_range
        return metrics["ratio_error"], 0.1 * min(-low, high)

    def _objective(self, point: Point, step: Step, logp: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        return self._clipped(*clipped_objective(logp, step.logp, point.advantage, self.config.clip_range))

    def _clipped(self, objective: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        low, high = clip_fractions(ratio, self.config.clip_range)
        return objective, ratio, {"clip_frac_low": low, "clip_frac_high": high, "clip_frac": low + high}
