"""`train:` of each algorithm, by `train.trainer_type`."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from flow_factory.config.algorithm_fields import ADVANTAGE_CLIP, Decay, Levels, TimeRange, TimeStrategy
from flow_factory.config.base import DERIVED, Batch, Device, Interval, Shown, derived
from flow_factory.config.data import PAIR, TARGET
from flow_factory.config.distillation import OPDConfig
from flow_factory.config.few_steps import DMD2Config, TDMConfig, TDMR1Config
from flow_factory.config.gate import GateConfig
from flow_factory.config.scheduler import SchedulerConfig
from flow_factory.config.train import Accumulation, TrainConfig
from flow_factory.config.transition import DPPOConfig, GRPOConfig, GRPOGuardConfig
from flow_factory.core.step_range import index_window


class ForwardConfig(TrainConfig):
    """What algorithms share that learn on the forward process: from the final latents alone, at noise levels of their own choice."""

    smallest_group: ClassVar[int] = 2

    adv_clip_range: Interval = ADVANTAGE_CLIP
    kl_type: Literal["v-based"] = Field("v-based", description="distance to the reference: of the velocities")
    kl_beta: float = Field(0.0, ge=0, le=1e6, description="weight of the KL term to the reference; 0 = no reference")
    num_train_timesteps: Levels = Field(
        0, ge=0, le=1000, description="noise levels per sample; 0 = as many as the sampling schedule has in timestep_range"
    )
    time_sampling_strategy: TimeStrategy = Field(
        "discrete",
        description="noise levels: discrete = steps of the sampling schedule (with_init always, wo_init never the first); uniform, "
        "logit_normal = a density",
    )
    time_shift: float = Field(3.0, gt=0, description="uniform, logit_normal: above 1 gives noisier levels")
    timestep_range: TimeRange = Field((0.0, 0.9), description="trained part of the path from noise (0) to data (1)")

    def points_per_batch(self, scheduler: SchedulerConfig) -> int:
        first, last = self.index_window
        return self.num_train_timesteps or last - first

    @property
    def index_window(self) -> tuple[int, int]:
        """The schedule's steps [first, last) in the range."""
        return index_window(self.num_inference_steps, self.timestep_range)


class OldPolicyConfig(ForwardConfig):
    """For algorithms that compare with the policy that rolled out."""

    off_policy: bool = Field(False, description="roll out with an old policy that follows the trained one with old_model_decay")
    old_model_decay: Decay = Field(
        "slow", description="off_policy: share of the old policy that is kept after an epoch, as a function of optimiser steps"
    )


class NFTConfig(GateConfig, OldPolicyConfig):
    """DiffusionNFT: towards good samples and away from bad ones, on the forward process."""

    trainer_type: str = Field("nft", description="algorithm")
    nft_beta: float = Field(1.0, gt=0, description="distance of the implicit policies from the old one; smaller values guide more strongly")
    adv_mode: Literal["all", "positive_only", "negative_only", "one_only", "binary"] = Field(
        "all", description="which part of the advantage is used"
    )
    nft_saturation: Annotated[
        float,
        Field(gt=0, le=100),
        derived(lambda above: above.get("adv_clip_range", (-5.0, 5.0))[1]),
        Shown(default="from adv_clip_range"),
    ] = Field(
        DERIVED, description="advantage at which a sample counts as certainly good; smaller values give more contrast between samples"
    )


class AWMConfig(OldPolicyConfig):
    """AWM: PPO on the flow-matching error."""

    trainer_type: str = Field("awm", description="algorithm")
    clip_range: Interval = Field((-1.0, 1.0), description="clip of ratio - 1")
    awm_weighting: Literal["Uniform", "t", "t**2", "huber", "ghuber"] = Field(
        "ghuber", description="how the flow-matching error becomes a log-probability"
    )
    ghuber_power: float = Field(0.25, gt=0, le=1, description="ghuber: power of the error")
    ratio_order: Literal["exp_first", "sum_first"] = Field(
        "exp_first",
        description="exp_first = one ratio per noise level; sum_first = one ratio of the mean log-probability (one more forward "
        "after the first update)",
    )
    advantage_max: float | None = Field(
        1.0, gt=0, description="advantages are rescaled to at most this after clipping; null = unscaled, as the public Flow-Factory"
    )
    ema_kl_beta: float = Field(0.0, ge=0, le=1e6, description="weight of the distance to the averaged weights (ema_decay)")
    kl_weight: Literal["Uniform", "ELBO"] = Field("Uniform", description="weights of the KL terms over the noise levels")


class NoisedConfig(TrainConfig):
    """Learns from noised samples at noise levels of a density of its own (SD3, arXiv 2403.03206)."""

    num_train_timesteps: Annotated[int, BeforeValidator(lambda value: 1 if value is None else value)] = Field(
        1, ge=1, le=1000, description="noise levels per pair, or per target"
    )
    weighting_scheme: Literal["logit_normal", "uniform"] = Field("logit_normal", description="density of the noise levels")
    logit_mean: float = Field(0.0, description="logit_normal: above 0 gives cleaner levels")
    logit_std: float = Field(1.0, gt=0, description="logit_normal: standard deviation")
    time_shift: float = Field(1.0, gt=0, description="above 1 gives noisier levels")
    timestep_range: TimeRange = Field((0.0, 0.99), description="trained part of the path from noise (0) to data (1)")

    def points_per_batch(self, scheduler: SchedulerConfig) -> int:
        return self.num_train_timesteps


class DPOConfig(NoisedConfig):
    """Diffusion-DPO: the best of a group is preferred to its worst, relative to the untrained model; or given pairs."""

    smallest_group: ClassVar[int] = 2

    trainer_type: str = Field("dpo", description="algorithm")
    beta: float = Field(2000.0, gt=0, description="strength of the preference (the paper's beta times its number of steps)")
    offline: bool = Field(False, description="learn from the data set's pairs (columns chosen, rejected) instead of from rollouts")

    @property
    def given(self) -> tuple[str, ...]:
        return PAIR if self.offline else ()

    @property
    def trained_batches_per_group(self) -> int:
        return 1


class SFTConfig(NoisedConfig):
    """Supervised fine-tuning: flow matching on the data set's own pictures or videos (column target)."""

    judged: ClassVar[bool] = False

    trainer_type: str = Field("sft", description="algorithm")
    unique_sample_num_per_epoch: int = Field(
        0, ge=0, le=65536, description="rows of an epoch, over all processes; 0 = a pass over all that there are"
    )
    gradient_accumulation_steps: Accumulation = Field(
        1, description="micro-batches of an optimiser step on each process; auto = by gradient_step_per_epoch"
    )
    sample_targets: bool = Field(
        True,
        description="draw a target's latents from the VAE's distribution; false: its mode, if the model was pre-trained on modes",
    )

    @property
    def given(self) -> tuple[str, ...]:
        return TARGET


class DGPOConfig(ForwardConfig):
    """DGPO: a group's better part is preferred to its worse part."""

    trainer_type: str = Field("dgpo", description="algorithm")
    clip_range: Interval = Field((-1e-4, 1e-4), description="clip of exp(old error - error) - 1")
    dpo_beta: float = Field(100.0, gt=0, description="strength of the preference")
    use_shared_noise: bool = Field(True, description="all samples of a group share their noise, which is new at every noise level")
    clip_dsm: bool = Field(True, description="no gradient for a sample beyond clip_range on the side that its advantage asks for")
    clip_kl: bool = Field(False, description="also mask the KL term of such a sample")
    use_ema_ref: bool = Field(False, description="compare with the averaged policy instead of the reference")
    ema_ref_max_decay: float = Field(0.3, ge=0, lt=1, description="decay of the averaged policy, applied after every optimiser step")
    ema_ref_ramp_rate: float = Field(1e-3, gt=0, description="growth of that decay per optimiser step")
    ema_ref_device: Device = Field("auto", description="device of the averaged policy; auto = that of the trained weights")
    switch_ema_ref: int = Field(200, ge=0, description="optimiser steps after which the averaged policy rolls out")
    off_policy: bool = Field(False, description="true = the averaged policy rolls out from the start")
    kl_cfg: float = Field(1.0, ge=1, le=1000, description="classifier-free guidance of the reference; 1 = none")
    timestep_range: TimeRange = Field((0.0, 0.6), description="trained part of the path from noise (0) to data (1)")


class CRDConfig(ForwardConfig):
    """Centred reward distillation: the policy's implicit reward is fitted to the given one."""

    trainer_type: str = Field("crd", description="algorithm")
    crd_beta: float = Field(1.0, gt=0, description="scale of the implicit reward")
    crd_loss_type: Literal["mse", "bce"] = Field("mse", description="mse = squared error, bce = cross entropy")
    use_old_for_loss: bool = Field(
        True, description="implicit reward relative to an old policy; false = relative to the weights at the start"
    )
    adaptive_logp: bool = Field(True, description="normalise each sample's error by its own size")
    weight_temp: float = Field(
        -1.0,
        description="weights of the group's centre: below 0 = uniform; 0 = good and bad samples apart; above 0 = softmax at this "
        "temperature",
    )
    old_model_decay: Decay = Field(
        "0-0.25-0.005-0.999", description="share of the old policy that is kept after an epoch, as a function of optimiser steps"
    )
    sampling_model_decay: Decay = Field("75-0.0-0.0075-0.999", description="the same for the policy that rolls out")
    kl_beta: float = Field(0.1, ge=0, description="weight of the KL term to the reference; 0 = no reference")
    kl_cfg: float = Field(4.5, ge=1, le=1000, description="classifier-free guidance of the reference; 1 = none")
    reward_adaptive_kl: bool = Field(True, description="weight the KL term of a sample by its reward")


class DRaFTConfig(TrainConfig):
    """ReFL and DRaFT-K: the gradient of differentiable rewards goes through the last steps of the sampler."""

    trainer_type: str = Field("draft", description="algorithm")
    draft_steps: Annotated[int, BeforeValidator(lambda value: 0 if value is None else value)] = Field(
        1, ge=0, le=1000, description="last steps of a rollout that are trained on, a forward and backward each; 0 = all"
    )
    stop_gradient: bool = Field(
        False, description="no gradient from a step to those before it: its state is taken for given; the same with one step"
    )
    kl_beta: float = Field(0.0, ge=0, le=1e6, description="weight of the KL term; 0 keeps no reference weights")
    gradient_step_per_epoch: Batch = Field(
        1, description="optimiser steps of an epoch; 1, because the gradient needs pictures of the current weights"
    )

    def points_per_batch(self, scheduler: SchedulerConfig) -> int:
        return len(self.last_steps)

    @property
    def last_steps(self) -> range:
        """Steps that are trained on."""
        last = self.num_inference_steps
        return range(max(self.first_step, last - (self.draft_steps or last)), last)


TRAIN_CONFIGS: dict[str, type[TrainConfig]] = {
    "grpo": GRPOConfig,
    "grpo-guard": GRPOGuardConfig,
    "dppo": DPPOConfig,
    "nft": NFTConfig,
    "awm": AWMConfig,
    "dpo": DPOConfig,
    "sft": SFTConfig,
    "dgpo": DGPOConfig,
    "crd": CRDConfig,
    "draft": DRaFTConfig,
    "diffusion-opd": OPDConfig,
    "dmd2": DMD2Config,
    "tdm": TDMConfig,
    "tdm-r1": TDMR1Config,
}
"""`train.trainer_type` -> its schema."""
