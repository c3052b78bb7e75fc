"""`train:` of the algorithms that learn from the log-probabilities of stochastic transitions."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from flow_factory.config.algorithm_fields import ADVANTAGE_CLIP
from flow_factory.config.base import Interval, Name, Shown, show
from flow_factory.config.scheduler import SchedulerConfig
from flow_factory.config.train import TrainConfig


def _bounds(value: Any) -> tuple[float, float]:
    numbers = isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, int | float) for v in value)
    if not numbers or not 0 < value[0] <= value[1] <= 1:
        raise ValueError(f"wants [low, high] with 0 < low <= high <= 1, got {show(value)}; e.g. [0.02, 0.2]")
    return float(value[0]), float(value[1])


Bounds = Annotated[tuple[float, float], BeforeValidator(_bounds), Shown("[low, high]")]


class TransitionConfig(TrainConfig):
    """What algorithms share that learn from the stochastic steps of a rollout."""

    stochastic: ClassVar[bool] = True
    smallest_group: ClassVar[int] = 2

    adv_clip_range: Interval = ADVANTAGE_CLIP
    kl_type: Literal["x-based", "v-based", "exact"] = Field(
        "x-based", description="distance to the reference: x-based = of the means, v-based = of the velocities, exact = Gaussian KL"
    )
    kl_beta: float = Field(0.0, ge=0, le=1e6, description="weight of the KL term to the reference; 0 = no reference")
    step_weight: Literal["none", "noise", "rectified"] = Field(
        "none",
        description="weight of a trained step, 1 on average: none = equal; noise = by its noise (TempFlow-GRPO); rectified = equal "
        "gradient size at every step (Flash-GRPO)",
    )
    kl_guidance_scale: float | None = Field(
        None, ge=1, le=1000, description="classifier-free guidance of the reference; 1 = none, null = that of the rollout"
    )

    kl_gate_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="GARDO: the KL term counts for this share of the samples that the trained rewards rank above the watched ones "
        "(weight: 0), those that they overrate most; it adapts over the epochs; null = all samples",
    )
    kl_gate_bounds: Bounds = Field((0.02, 0.2), description="kl_gate_share: the share stays in this range as it adapts")
    kl_reset_threshold: float | None = Field(
        None,
        gt=0,
        description="GARDO: an epoch with a micro-batch whose KL is above this makes the policy the new reference; null = none does",
    )
    kl_reset_epochs: int | None = Field(None, ge=1, description="so many epochs after the last time the policy becomes the reference again")
    diversity_reward: Name | None = Field(
        None,
        description="advantage_aggregation: gardo: the watched reward that scales the advantages of good samples, such as diversity",
    )

    @property
    def moves_reference(self) -> bool:
        return self.kl_beta > 0 and (self.kl_reset_threshold, self.kl_reset_epochs) != (None, None)

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
