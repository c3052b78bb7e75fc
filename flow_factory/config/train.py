"""`train:` the keys that all algorithms share; `algorithms.py` has the keys that each one adds."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from flow_factory.config.base import (
    DERIVED,
    Batch,
    Beta,
    Betas,
    Denoising,
    Device,
    Dtype,
    Height,
    Section,
    Seed,
    Shown,
    Size,
    Width,
    derived,
    show,
)  # fmt: skip
from flow_factory.config.recompute import Recompute
from flow_factory.config.scheduler import SchedulerConfig
from flow_factory.config.signature import require_function
from flow_factory.core.combinations import COMBINATIONS


def _aggregation(name: str) -> str:
    require_function(COMBINATIONS.path(name))
    return COMBINATIONS.canonical(name)


def _accumulation(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"wants auto or a whole number of micro-batches from 1, got {show(value)}")


def _rollout(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10**6):
        return value
    raise ValueError(f"wants auto or a whole number of samples from 1, got {show(value)}")


Accumulation = Annotated[int | Literal["auto"], BeforeValidator(_accumulation), Shown("int or auto")]
RolloutBatch = Annotated[int | Literal["auto"], BeforeValidator(_rollout), Shown("int or auto")]
StorageDtype = Annotated[Dtype, BeforeValidator(lambda value: "fp32" if value is None else value)]


LORA_RATE, FULL_RATE = 3e-4, 1e-5
"""Learning rates where none is given."""

EPSILON = {"adamw": 1e-15, "adamw8bit": 1e-8, "muon": 1e-15}
"""By optimiser. Of a mean log-probability gradients are 1e-9 to 1e-6 a weight. In 8 bits small second moments are 0: a larger one bounds
the steps of those."""


GARDO = dict.fromkeys(
    ("kl_gate_share", "kl_gate_bounds", "kl_reset_threshold", "kl_reset_epochs", "diversity_reward"),
    "is of GARDO's gate, moving reference or diversity, which grpo, grpo-guard, dppo and nft have; write one of them as trainer_type, "
    "or leave the key out",
)
"""What is said of keys that would change nothing."""


def _warmup(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or (isinstance(value, float) and not 0 < value < 1):
        raise ValueError(f"wants a whole number of optimiser steps from 0, or a share of the run between 0 and 1, got {show(value)}")
    return value


Warmup = Annotated[int | float, BeforeValidator(_warmup), Shown("int or share")]


class TrainConfig(Section):
    """What all algorithms share. The section also takes arguments of the pipeline's `__call__` (max_sequence_length, num_frames, ...)."""

    rest: ClassVar[str | None] = "call"
    stochastic: ClassVar[bool] = False
    """Whether the algorithm learns from the log-probabilities of stochastic steps."""
    by_dynamics: ClassVar[bool] = False
    """Whether rollouts are what `scheduler.dynamics_type` says, the ODE included and by default; else that is the algorithm's."""
    smallest_group: ClassVar[int] = 1
    refused: ClassVar[Mapping[str, str]] = GARDO
    networks: ClassVar[tuple[str, ...]] = ()
    """Networks that are trained beside the policy."""
    judged: ClassVar[bool] = True
    """Whether rollouts are given rewards."""
    lora_rate: ClassVar[float] = LORA_RATE
    """Learning rate of a LoRA where none is given."""

    trainer_type: str = Field("grpo", description="algorithm")
    max_epochs: int | None = Field(None, ge=1, description="number of epochs; null = until stopped")
    seed: Seed = Field(42, description="seed of every random draw of the run")

    resolution: Size = Field((512, 512), description="size of the rollout's images in pixels")
    height: Height = Field(DERIVED, description="pixels; replaces the height of resolution")
    width: Width = Field(DERIVED, description="pixels; replaces the width of resolution")
    num_inference_steps: Denoising = Field(10, description="denoising steps of a rollout")
    guidance_scale: float = Field(
        3.5, ge=0, le=1000, description="the pipeline's guidance scale: embedded for FLUX, classifier-free for other models"
    )

    per_device_batch_size: Batch = Field(1, description="samples in a micro-batch, all from one row")
    group_size: Batch = Field(1, description="samples per row and epoch; a multiple of per_device_batch_size")
    rollout_batch_size: RolloutBatch | None = Field(
        None,
        description="samples of one row that a rollout draws in one call; more use a GPU better but may change bits; auto = the "
        "most that change no bit; null = per_device_batch_size",
    )
    init_same_noise: bool = Field(
        False, description="all samples of a group start from the same noise and differ only by the stochastic steps"
    )
    best_of_n: int | None = Field(
        None, ge=2, description="train on this many samples of a group: half the best, half the worst; null = all (DanceGRPO)"
    )
    drop_zero_variance: bool = Field(False, description="skip micro-batches whose advantages are all 0; the policy gradient stays the same")
    unique_sample_num_per_epoch: Batch = Field(8, description="rows per epoch, over all processes; best a multiple of num_processes")
    gradient_step_per_epoch: Batch = Field(2, description="optimiser steps per epoch; only the first is on-policy")
    gradient_accumulation_steps: Accumulation = Field(
        "auto", description="micro-batches per optimiser step; auto = derived from gradient_step_per_epoch"
    )
    num_inner_epochs: int = Field(1, ge=1, description="passes over the rollouts of an epoch")

    optimizer: Literal["adamw", "adamw8bit", "muon"] = Field(
        "adamw",
        description="adamw8bit keeps its state in 8 bits (needs bitsandbytes); muon uses torch.optim.Muon for matrices and AdamW "
        "for the rest",
    )
    learning_rate: Annotated[float, Shown(default="3e-4 for lora, 1e-5 for full")] = Field(
        FULL_RATE, gt=0, description="step size of the optimiser"
    )
    adam_weight_decay: float = Field(1e-4, ge=0, description="decoupled weight decay")
    adam_betas: Betas = Field((0.9, 0.999), description="decay rates of the first and the second moment")
    adam_epsilon: Annotated[
        float,
        Field(gt=0),
        derived(lambda above: EPSILON[above.get("optimizer", "adamw")]),
        Shown(default="1e-15, for adamw8bit 1e-8"),
    ] = Field(DERIVED, description="added to the root of the second moment; a value above train/grad_rms shortens the steps")
    muon_momentum: Beta = Field(0.95, description="Muon's momentum")
    muon_nesterov: bool = Field(True, description="use Nesterov momentum in Muon")
    muon_ns_steps: int = Field(5, ge=1, le=99, description="Newton-Schulz iterations that orthogonalise Muon's update")
    muon_adjust_lr_fn: Literal["match_rms_adamw", "original"] = Field(
        "match_rms_adamw",
        description="how Muon scales its rate with a matrix's shape: match_rms_adamw takes AdamW's learning_rate, original is "
        "Keller Jordan's",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate after the warm-up; linear and cosine end at 0"
    )
    lr_warmup_steps: Warmup = Field(
        0, description="optimiser steps of linear warm-up, or a share of the run; with n steps the first has 1/n of the rate"
    )
    lr_total_steps: int | None = Field(
        None, ge=1, description="optimiser step at which linear and cosine reach 0; null = the last step of max_epochs"
    )

    global_std: bool = Field(True, description="divide advantages by the standard deviation over all groups instead of each group's own")
    advantage_aggregation: Annotated[str, AfterValidator(_aggregation), Shown("gdpo | sum | dotted path")] = Field(
        "gdpo", description="gdpo = normalise each reward, then add; sum = add, then normalise; or package.module.function of your own"
    )

    reward_optimization_overlap: bool = Field(
        False, description="train on groups that have their scores while async_reward asks for those of later ones; the same result"
    )

    enable_gradient_checkpointing: Recompute = Field(
        False,
        description="blocks whose activations are recomputed in the backward pass (less memory, more time): all, none, a share, "
        "every n-th, or listed ones; auto = as few as fit",
    )
    offload_samples_to_cpu: bool = Field(False, description="keep rollouts and their conditions in main memory until training uses them")
    latent_storage_dtype: StorageDtype = Field(
        "fp16", description="dtype of stored latents; log-probabilities use the rounded values; null = fp32"
    )

    reference: Literal["base", "start"] = Field(
        "base",
        description="reference model of the losses: base = the checkpoint's weights, start = the weights that the run starts from "
        "(model.resume_path)",
    )
    ref_param_device: Device = Field("auto", description="device of a copy of the reference weights; auto = that of the trained weights")
    ema_decay: float = Field(
        0.995,
        ge=0,
        lt=1,
        description="the share of itself that the moving average (EMA) keeps at an update; evaluations and checkpoints have the average, "
        "rollouts the trained weights; 0 = no average: the trained weights are evaluated and saved",
    )
    ema_update_interval: int = Field(10, ge=1, description="epochs between two updates of the average")
    ema_device: Device = Field("auto", description="device of the average; auto = that of the trained weights")
    ema_decay_schedule: Literal["constant", "power", "linear", "piecewise_linear", "cosine", "warmup_cosine"] = Field(
        "power",
        description="how the decay grows to ema_decay over the epochs; "
        "power: min(ema_decay, (1 + k) / (warmup_steps + k)) after epoch k + 1",
    )
    initial_decay: float = Field(0.0, ge=0, lt=1, description="linear, cosine, warmup_cosine: decay in the first epoch")
    warmup_steps: int = Field(10, ge=0, description="power, linear, warmup_cosine: warm-up of the decay, in epochs")
    total_steps: int | None = Field(
        None, ge=1, description="cosine, warmup_cosine: epoch at which the decay reaches ema_decay; null = max_epochs"
    )
    flat_steps: int = Field(0, ge=0, description="piecewise_linear: epochs with decay 0")
    ramp_rate: float = Field(0.001, gt=0, description="piecewise_linear: growth of the decay per epoch")

    call: dict[str, Any] = Field(default_factory=dict, description="arguments for the pipeline's __call__")

    def draws_noise(self, scheduler: SchedulerConfig) -> bool:
        """Whether rollouts have stochastic steps."""
        return self.stochastic or (self.by_dynamics and scheduler.dynamics_type != "ODE")

    @property
    def moves_reference(self) -> bool:
        """Whether the policy becomes the reference of the losses from time to time."""
        return False

    @property
    def given(self) -> tuple[str, ...]:
        """The data set's columns with the media that are learnt from, instead of rollouts and rewards."""
        return ()

    @property
    def trained_batches_per_group(self) -> int:
        """Micro-batches that a group is trained in."""
        return (self.best_of_n or self.group_size) // self.per_device_batch_size

    def points_per_batch(self, scheduler: SchedulerConfig) -> int:
        """Training points of a micro-batch, a forward and backward each."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many points a micro-batch has")

    @property
    def first_step(self) -> int:
        """Where a rollout begins: video-to-video leaves out the head of the schedule, as diffusers counts it."""
        steps = self.num_inference_steps
        return steps - min(int(steps * self.call.get("strength", 1.0)), steps)
