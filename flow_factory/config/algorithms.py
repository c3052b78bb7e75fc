"""`train:` of each algorithm, by `train.trainer_type`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from flow_factory.config.base import DERIVED, Device, Interval, Shown, derived, show
from flow_factory.config.scheduler import SchedulerConfig
from flow_factory.config.train import TrainConfig
from flow_factory.core.step_range import index_window


def _range(value: Any) -> Any:
    """A lone share f stands for (0, f)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = (0.0, value)
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"wants a share f for (0, f), or [low, high], got {show(value)}; e.g. 0.9")
    return tuple(map(float, value))


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if not 0 <= low < high <= 1:
        raise ValueError(f"wants 0 <= low < high <= 1, got {show(value)}; e.g. 0.9 or [0.0, 0.9]")
    return value


def _ramp(value: str | int) -> str:
    from flow_factory.core.ema import ramp  # light: no torch in it

    ramp(value)
    return str(value)


TimeRange = Annotated[tuple[float, float], BeforeValidator(_range), AfterValidator(_ordered), Shown("float or [low, high]")]
Decay = Annotated[str | int, AfterValidator(_ramp), Shown("preset or start_step-start-slope-cap")]
TimeStrategy = Literal["discrete", "discrete_with_init", "discrete_wo_init", "uniform", "logit_normal"]
Levels = Annotated[int, BeforeValidator(lambda value: 0 if value is None else value)]
ADVANTAGE_CLIP = Field((-5.0, 5.0), description="clip of the advantage")


class TransitionConfig(TrainConfig):
    """What algorithms share that learn from the stochastic steps of a rollout."""

    stochastic: ClassVar[bool] = True
    smallest_group: ClassVar[int] = 2

    adv_clip_range: Interval = ADVANTAGE_CLIP
    kl_type: Literal["x-based", "v-based", "exact"] = Field(
        "x-based", description="distance to the reference: of means, of velocities, Gaussian KL"
    )
    kl_beta: float = Field(0.0, ge=0, le=1e6, description="weight of the KL term; 0 keeps no reference weights")
    step_weight: Literal["none", "noise", "rectified"] = Field(
        "none",
        description="weight of a trained step, 1 on average: alike; by its noise (TempFlow-GRPO); so that every step's gradient is of one "
        "size (Flash-GRPO)",
    )
    kl_guidance_scale: float | None = Field(
        None, ge=1, le=1000, description="classifier-free guidance of the reference; 1 = none, null = the rollout's"
    )

    def points_per_batch(self, scheduler: SchedulerConfig) -> int:
        return scheduler.trained_steps(self.num_inference_steps, self.first_step)


class GRPOConfig(TransitionConfig):
    """Flow-GRPO: clipped policy gradient on the stochastic steps of a rollout."""

    trainer_type: str = Field("grpo", description="algorithm")
    clip_range: Interval = Field(
        (-1e-4, 1e-4), description="clip of ratio - 1; log-probabilities are means over the latent, so it is small"
    )


class GRPOGuardConfig(GRPOConfig):
    """GRPO-Guard: GRPO whose ratio has the same mean and scale at every step."""

    trainer_type: str = Field("grpo-guard", description="algorithm")
    clip_range: Interval = Field((-2e-6, 2e-6), description="clip of the normalised ratio - 1, whose scale is far below GRPO's")
    reweight: bool = Field(True, description="divide by |dt|, so that steps weigh the same (the paper); false: as the public Flow-Factory")


class DPPOConfig(TransitionConfig):
    """Flow-DPPO: policy gradient that leaves out samples whose transition has moved far enough, by its KL."""

    refused: ClassVar[Mapping[str, str]] = {
        "clip_range": "dppo does not clip the ratio: it masks by divergence; write kl_mask_threshold, e.g. 1.0e-6, or trainer_type: grpo"
    }

    trainer_type: str = Field("dppo", description="algorithm")
    kl_mask_type: Literal["exact", "v-based", "x-based"] = Field(
        "exact", description="how far the policy has moved from what sampled: Gaussian KL, or of velocities; x-based is read as exact"
    )
    kl_mask_threshold: float = Field(
        1e-6, ge=0, le=1e6, description="at this distance a sample is left out that its advantage would move further"
    )
    direction: Literal["ratio", "normalised"] = Field(
        "ratio", description="which way a sample has moved: by its likelihood, or by the mean's move along the noise, which has no bias"
    )


class ForwardConfig(TrainConfig):
    """What algorithms share that learn on the forward process: from the final latents alone, at noise levels of their own choice."""

    smallest_group: ClassVar[int] = 2

    adv_clip_range: Interval = ADVANTAGE_CLIP
    kl_type: Literal["v-based"] = Field("v-based", description="distance to the reference: of velocities")
    kl_beta: float = Field(0.0, ge=0, le=1e6, description="weight of the KL term; 0 keeps no reference weights")
    num_train_timesteps: Levels = Field(
        0, ge=0, le=1000, description="noise levels a sample is trained at; 0 = as many as the schedule has in timestep_range"
    )
    time_sampling_strategy: TimeStrategy = Field(
        "discrete", description="noise levels: of the sampling schedule (always, or never, its first), or of a density"
    )
    time_shift: float = Field(3.0, gt=0, description="uniform, logit_normal: above 1 is noisier")
    timestep_range: TimeRange = Field((0.0, 0.9), description="part of the way from noise (0) to data (1) that is trained on")

    def points_per_batch(self, scheduler: SchedulerConfig) -> int:
        first, last = self.index_window
        return self.num_train_timesteps or last - first

    @property
    def index_window(self) -> tuple[int, int]:
        """The schedule's steps [first, last) in the range."""
        return index_window(self.num_inference_steps, self.timestep_range)


class OldPolicyConfig(ForwardConfig):
    """For algorithms that compare with the policy that rolled out."""

    off_policy: bool = Field(False, description="roll out with an old policy that lags behind by old_model_decay")
    old_model_decay: Decay = Field("slow", description="off_policy: share of the old policy kept after an epoch, by optimiser step")


class NFTConfig(OldPolicyConfig):
    """DiffusionNFT: towards good samples and away from bad ones, on the forward process."""

    trainer_type: str = Field("nft", description="algorithm")
    nft_beta: float = Field(1.0, gt=0, description="how far the implicit policies lie from the old one; smaller is stronger guidance")
    adv_mode: Literal["all", "positive_only", "negative_only", "one_only", "binary"] = Field(
        "all", description="which part of the advantage counts"
    )
    nft_saturation: Annotated[
        float,
        Field(gt=0, le=100),
        derived(lambda above: above.get("adv_clip_range", (-5.0, 5.0))[1]),
        Shown(default="from adv_clip_range"),
    ] = Field(DERIVED, description="advantage at which a sample counts as surely good; smaller is more contrast between samples")


class AWMConfig(OldPolicyConfig):
    """AWM: PPO on the flow-matching error."""

    trainer_type: str = Field("awm", description="algorithm")
    clip_range: Interval = Field((-1.0, 1.0), description="clip of ratio - 1")
    awm_weighting: Literal["Uniform", "t", "t**2", "huber", "ghuber"] = Field(
        "ghuber", description="how the flow-matching error becomes a log-probability"
    )
    ghuber_power: float = Field(0.25, gt=0, le=1, description="ghuber: power of the error")
    ratio_order: Literal["exp_first", "sum_first"] = Field(
        "exp_first", description="a ratio a noise level, or one of the mean log-probability (costs a forward more after the first update)"
    )
    advantage_max: float | None = Field(
        1.0, gt=0, description="largest advantage after clipping; null: as the public Flow-Factory, unscaled"
    )
    ema_kl_beta: float = Field(0.0, ge=0, le=1e6, description="weight of the distance to the averaged weights (ema_decay)")
    kl_weight: Literal["Uniform", "ELBO"] = Field("Uniform", description="weight of the KL terms over noise levels")


class DPOConfig(TrainConfig):
    """Diffusion-DPO: the best of a group is preferred to its worst, relative to the untrained model; or given pairs."""

    smallest_group: ClassVar[int] = 2

    trainer_type: str = Field("dpo", description="algorithm")
    beta: float = Field(2000.0, gt=0, description="strength of the preference (the paper's times its number of steps)")
    offline: bool = Field(False, description="learn from the pairs of the data set (columns chosen, rejected) instead of from rollouts")
    num_train_timesteps: Annotated[int, BeforeValidator(lambda value: 1 if value is None else value)] = Field(
        1, ge=1, le=1000, description="noise levels a pair is trained at"
    )
    weighting_scheme: Literal["logit_normal", "uniform"] = Field("logit_normal", description="density of the noise levels")
    logit_mean: float = Field(0.0, description="logit_normal: above 0 is cleaner")
    logit_std: float = Field(1.0, gt=0, description="logit_normal: spread")
    time_shift: float = Field(1.0, gt=0, description="above 1 is noisier")
    timestep_range: TimeRange = Field((0.0, 0.99), description="part of the way from noise (0) to data (1) that is trained on")

    @property
    def trained_batches_per_group(self) -> int:
        return 1

    def points_per_batch(self, scheduler: SchedulerConfig) -> int:
        return self.num_train_timesteps


class DGPOConfig(ForwardConfig):
    """DGPO: a group's better part is preferred to its worse part."""

    trainer_type: str = Field("dgpo", description="algorithm")
    clip_range: Interval = Field((-1e-4, 1e-4), description="clip of exp(old error - error) - 1")
    dpo_beta: float = Field(100.0, gt=0, description="strength of the preference")
    use_shared_noise: bool = Field(True, description="the samples of a group take the same noise, new at every noise level")
    clip_dsm: bool = Field(True, description="no gradient from a sample that has gone far enough")
    clip_kl: bool = Field(False, description="nor from its KL term")
    use_ema_ref: bool = Field(False, description="compare with the averaged policy instead of the untrained model")
    ema_ref_max_decay: float = Field(0.3, ge=0, lt=1, description="decay of the averaged policy, after every optimiser step")
    ema_ref_ramp_rate: float = Field(1e-3, gt=0, description="growth of that decay in an optimiser step")
    ema_ref_device: Device = Field("auto", description="where the averaged policy is kept; auto = with the weights")
    switch_ema_ref: int = Field(200, ge=0, description="optimiser steps after which the averaged policy rolls out")
    off_policy: bool = Field(False, description="it rolls out from the start")
    kl_cfg: float = Field(1.0, ge=1, le=1000, description="guidance of the untrained model that is compared with; 1 = none")
    timestep_range: TimeRange = Field((0.0, 0.6), description="part of the way from noise (0) to data (1) that is trained on")


class CRDConfig(ForwardConfig):
    """Centred reward distillation: the policy's implicit reward is fitted to the given one."""

    trainer_type: str = Field("crd", description="algorithm")
    crd_beta: float = Field(1.0, gt=0, description="scale of the implicit reward")
    crd_loss_type: Literal["mse", "bce"] = Field("mse", description="squares or cross entropy")
    use_old_for_loss: bool = Field(True, description="implicit reward relative to an old policy; false: to the weights at the start")
    adaptive_logp: bool = Field(True, description="normalise each sample's error by its own size")
    weight_temp: float = Field(-1.0, description="weights of the centre: below 0 uniform, 0 the good and the bad apart, above 0 softmax")
    old_model_decay: Decay = Field("0-0.25-0.005-0.999", description="share of the old policy kept after an epoch, by optimiser step")
    sampling_model_decay: Decay = Field("75-0.0-0.0075-0.999", description="the same of the policy that rolls out")
    kl_beta: float = Field(0.1, ge=0, description="weight of the KL term; 0 keeps no reference weights")
    kl_cfg: float = Field(4.5, ge=1, le=1000, description="guidance of the reference; 1 = none")
    reward_adaptive_kl: bool = Field(True, description="the KL term weighs a sample by its reward")


TRAIN_CONFIGS: dict[str, type[TrainConfig]] = {
    "grpo": GRPOConfig,
    "grpo-guard": GRPOGuardConfig,
    "dppo": DPPOConfig,
    "nft": NFTConfig,
    "awm": AWMConfig,
    "dpo": DPOConfig,
    "dgpo": DGPOConfig,
    "crd": CRDConfig,
}
"""`train.trainer_type` -> its schema."""
