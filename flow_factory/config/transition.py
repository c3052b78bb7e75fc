"""`train:` of the algorithms that learn from the log-probabilities of stochastic transitions."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from flow_factory.config.algorithm_fields import ADVANTAGE_CLIP
from flow_factory.config.base import Interval
from flow_factory.config.gate import GateConfig
from flow_factory.config.scheduler import SchedulerConfig


class TransitionConfig(GateConfig):
    """What algorithms share that learn from the stochastic steps of a rollout."""

    stochastic: ClassVar[bool] = True
    smallest_group: ClassVar[int] = 2

    adv_clip_range: Interval = ADVANTAGE_CLIP
    kl_type: Literal["x-based", "v-based", "exact"] = Field(
        "x-based", description="distance to the reference: x-based = of the means, v-based = of the velocities, exact = Gaussian KL"
    )
    step_weight: Literal["none", "noise", "rectified"] = Field(
        "none",
        description="weight of a trained step, 1 on average: none = equal; noise = by its noise (TempFlow-GRPO); rectified = equal "
        "gradient size at every step (Flash-GRPO)",
    )
    kl_guidance_scale: float | None = Field(
        None, ge=1, le=1000, description="classifier-free guidance of the reference; 1 = none, null = that of the rollout"
    )

    def points_per_batch(self, scheduler: SchedulerConfig) -> int:
        return scheduler.trained_steps(self.num_inference_steps, self.first_step)


class GRPOConfig(TransitionConfig):
    """Flow-GRPO: clipped policy gradient on the stochastic steps of a rollout."""

    trainer_type: str = Field("grpo", description="algorithm")
    clip_range: Interval = Field(
        (-1e-4, 1e-4), description="clip of ratio - 1; it is small because log-probabilities are means over the latent"
    )


class GRPOGuardConfig(GRPOConfig):
    """GRPO-Guard: GRPO whose ratio has the same mean and scale at every step."""

    trainer_type: str = Field("grpo-guard", description="algorithm")
    clip_range: Interval = Field((-2e-6, 2e-6), description="clip of the normalised ratio - 1, which is far smaller than GRPO's")
    reweight: bool = Field(
        True, description="divide by |dt|, so that all steps have equal weight (the paper); false = as the public Flow-Factory"
    )


class DPPOConfig(TransitionConfig):
    """Flow-DPPO: policy gradient that leaves out samples whose transition has moved far enough, by its KL."""

    refused: ClassVar[Mapping[str, str]] = {
        "clip_range": "dppo does not clip the ratio: it masks by divergence; write kl_mask_threshold, e.g. 1.0e-6, or trainer_type: grpo"
    }

    trainer_type: str = Field("dppo", description="algorithm")
    kl_mask_type: Literal["exact", "v-based", "x-based"] = Field(
        "exact", description="distance from the policy that sampled: exact = Gaussian KL, v-based = of the velocities; x-based means exact"
    )
    kl_mask_threshold: float = Field(
        1e-6, ge=0, le=1e6, description="a sample at this distance is masked if its advantage would move it further away"
    )
    direction: Literal["ratio", "normalised"] = Field(
        "ratio",
        description="how the direction of a sample's move is measured: ratio = by its likelihood; normalised = by the mean's move "
        "along the noise, which has no bias",
    )
