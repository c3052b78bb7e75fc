"""`train:` one schema an algorithm, on top of what all of them share."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from flow_factory.config.base import DERIVED, Device, Dtype, Height, Interval, Pair, Section, Shown, Size, Width, show


def _accumulation(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"wants auto or a whole number of micro-batches from 1, got {show(value)}")


Accumulation = Annotated[int | Literal["auto"], BeforeValidator(_accumulation), Shown("int or auto")]
StorageDtype = Annotated[Dtype, BeforeValidator(lambda value: "fp32" if value is None else value)]


class TrainConfig(Section):
    """What all algorithms share. Arguments of the pipeline's `__call__` (max_sequence_length, num_frames, ...) may stand here too."""

    rest: ClassVar[str | None] = "call"
    stochastic: ClassVar[bool] = False
    """Whether the algorithm learns from the log-probabilities of stochastic steps."""
    smallest_group: ClassVar[int] = 1

    trainer_type: str = Field("grpo", description="algorithm")
    max_epochs: int | None = Field(None, ge=1, description="epochs of the run; null = until stopped")
    seed: int = Field(42, ge=0, description="every random draw of the run depends on it")

    resolution: Size = Field((512, 512), description="pixels of what is rolled out")
    height: Height = Field(DERIVED, description="pixels, instead of resolution's")
    width: Width = Field(DERIVED, description="pixels, instead of resolution's")
    num_inference_steps: int = Field(10, ge=1, description="denoising steps of a rollout")
    guidance_scale: float = Field(3.5, ge=0, description="the pipeline's own guidance: embedded for FLUX, classifier-free for others")

    per_device_batch_size: int = Field(1, ge=1, description="samples of one row in a micro-batch")
    group_size: int = Field(1, ge=1, description="samples of a row in an epoch; a multiple of per_device_batch_size")
    init_same_noise: bool = Field(False, description="a group starts from one noise: its samples then differ by the stochastic steps alone")
    unique_sample_num_per_epoch: int = Field(8, ge=1, description="rows of an epoch, over all processes; a multiple of num_processes")
    gradient_step_per_epoch: int = Field(2, ge=1, description="optimiser steps of an epoch; only the first sees unchanged weights")
    gradient_accumulation_steps: Accumulation = Field(
        "auto", description="micro-batches of an optimiser step; auto = by gradient_step_per_epoch"
    )
    num_inner_epochs: int = Field(1, ge=1, description="passes over the rollouts of an epoch")

    optimizer: Literal["adamw", "adamw8bit"] = Field("adamw", description="adamw8bit keeps its state in 8 bits (needs bitsandbytes)")
    learning_rate: float = Field(1e-5, gt=0, description="step size of the optimiser")
    adam_weight_decay: float = Field(1e-4, ge=0, description="decoupled weight decay")
    adam_betas: Pair = Field((0.9, 0.999), description="decays of the first and second moment")
    adam_epsilon: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate after the warm-up; linear, cosine end at 0"
    )
    lr_warmup_steps: int = Field(0, ge=0, description="optimiser steps of linear warm-up")
    lr_total_steps: int | None = Field(None, ge=1, description="optimiser step at which linear, cosine end; null = the last of max_epochs")

    global_std: bool = Field(True, description="divide advantages by the standard deviation of all groups instead of each group's own")
    advantage_aggregation: Literal["gdpo", "sum"] = Field(
        "gdpo", description="normalise each reward, then add (gdpo), or add, then normalise"
    )

    enable_gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")
    offload_samples_to_cpu: bool = Field(False, description="keep rollouts in main memory until they are trained on")
    latent_storage_dtype: StorageDtype = Field(
        "fp16", description="dtype of kept latents; log-probabilities are of the rounded ones; null = fp32"
    )

    ref_param_device: Device = Field("auto", description="where reference weights of a full fine-tuning are kept; auto = with the weights")
    ema_decay: float = Field(0.995, ge=0, lt=1, description="decay of the averaged weights; 0 keeps none")
    ema_update_interval: int = Field(10, ge=1, description="epochs between two updates of the average")
    ema_device: Device = Field("auto", description="where the average is kept; auto = with the weights")
    ema_decay_schedule: Literal["constant", "power", "linear", "piecewise_linear", "cosine", "warmup_cosine"] = Field(
        "power", description="how the decay grows to ema_decay over epochs"
    )
    initial_decay: float = Field(0.0, ge=0, lt=1, description="linear, cosine, warmup_cosine: decay of the first epoch")
    warmup_steps: int = Field(10, ge=0, description="power, linear, warmup_cosine: epochs of the decay's warm-up")
    total_steps: int | None = Field(None, ge=1, description="cosine, warmup_cosine: epoch at which ema_decay is reached; null = max_epochs")
    flat_steps: int = Field(0, ge=0, description="piecewise_linear: epochs at decay 0")
    ramp_rate: float = Field(0.001, gt=0, description="piecewise_linear: growth of the decay in an epoch")

    call: dict[str, Any] = Field(default_factory=dict, description="arguments for the pipeline's __call__")

    @property
    def first_step(self) -> int:
        """Where a rollout begins: video-to-video leaves out the head of the schedule, as diffusers counts it."""
        steps = self.num_inference_steps
        return steps - min(int(steps * self.call.get("strength", 1.0)), steps)


class GRPOConfig(TrainConfig):
    """Flow-GRPO: clipped policy gradient on the stochastic steps of a rollout."""

    stochastic: ClassVar[bool] = True
    smallest_group: ClassVar[int] = 2

    trainer_type: Literal["grpo"] = Field("grpo", description="algorithm")
    clip_range: Interval = Field(
        (-1e-4, 1e-4), description="clip of ratio - 1; log-probabilities are means over the latent, so it is small"
    )
    adv_clip_range: Interval = Field((-5.0, 5.0), description="clip of the advantage")
    kl_type: Literal["x-based", "v-based", "exact"] = Field(
        "x-based", description="distance to the reference: of means, of velocities, Gaussian KL"
    )
    kl_beta: float = Field(0.0, ge=0, description="weight of the KL term; 0 keeps no reference weights")


TRAIN_CONFIGS: dict[str, type[TrainConfig]] = {"grpo": GRPOConfig}
"""`train.trainer_type` -> its schema."""
