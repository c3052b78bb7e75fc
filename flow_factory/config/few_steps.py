"""`train:` of algorithms that make a student of few steps, with networks beside it that are trained on its pictures."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from flow_factory.config.base import Batch, Betas, Denoising, Shown, show
from flow_factory.config.scheduler import SchedulerConfig
from flow_factory.config.train import TrainConfig


def _levels(value: Any) -> tuple[float, float]:
    numbers = isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, int | float) for v in value)
    if not numbers or not 0 < value[0] < value[1] < 1:
        raise ValueError(f"wants [low, high] with 0 < low < high < 1, got {show(value)}; e.g. [0.02, 0.98]")
    return float(value[0]), float(value[1])


Density = Literal["source_uniform", "actual_uniform", "conditional_logit_normal"]
NoiseLevels = Annotated[tuple[float, float], BeforeValidator(_levels), Shown("[low, high]")]


class FewStepConfig(TrainConfig):
    """What they share: the policy is the generator, a few Euler steps without classifier-free guidance; `fake` learns what it draws."""

    networks: ClassVar[tuple[str, ...]] = ("fake",)
    judged: ClassVar[bool] = False
    lora_rate: ClassVar[float] = 7.5e-5

    num_inference_steps: Denoising = Field(4, description="steps of the student, in rollouts and in evaluation")
    gradient_step_per_epoch: Batch = Field(1, description="updates of an epoch, each with its steps of all networks")
    adam_betas: Betas = Field((0.0, 0.999), description="decays of the first and second moment")
    ttur_fake_updates: int = Field(5, ge=1, le=1000, description="optimiser steps of the fake network in an update, before the generator's")
    real_guidance_scale: float | None = Field(
        None, ge=1, le=1000, description="classifier-free guidance of the base that the student is pulled to; null = none"
    )
    time_shift: float = Field(1.0, gt=0, description="of the noise levels that networks are asked at: above 1 is noisier")

    @property
    def base_guided(self) -> bool:
        """Whether the base is asked with classifier-free guidance."""
        return (self.real_guidance_scale or 1.0) > 1


class DMD2Config(FewStepConfig):
    """DMD2: the student's pictures get the distribution of the guided base's, by the difference of two scores; no data, no rewards."""

    trainer_type: str = Field("dmd2", description="algorithm")
    perturbation_timestep_range: NoiseLevels = Field(
        (0.02, 0.98), description="noise levels at which its pictures are judged, before time_shift"
    )

    def points_per_batch(self, scheduler: SchedulerConfig) -> int:
        return 1


class PathConfig(FewStepConfig):
    """What TDM and TDM-R1 share: every step of the path is trained, its picture noised with the path's own noise."""

    ttur_fake_updates: int = Field(1, ge=1, le=1000, description="optimiser steps of the fake network in an update, before the generator's")
    time_shift: float = Field(3.0, gt=0, description="of source_uniform: the schedule's own shift; above 1 is noisier")
    steps_per_update: int | None = Field(None, ge=1, description="steps of the path trained in an update, drawn anew each time; null = all")
    tdm_snr_gamma: float = Field(5.0, gt=0, description="largest weight ((1 - s) / s)^2 of the fake network's error at noise level s")
    tdm_importance_clip: float = Field(20.0, ge=1, description="largest weight for how probable the path's noise is")
    tdm_query_interval: Literal["reverse", "trajectory"] = Field(
        "reverse", description="noise levels at which a step's picture is judged: from the step's end to 1, or to its begin"
    )
    tdm_query_distribution: Density = Field("source_uniform", description="their density: even before the shift, even, or SD3's")
    tdm_query_max_sigma: float = Field(1.0, gt=0, le=1, description="reverse: the largest of them")
    tdm_query_logit_mean: float = Field(0.0, description="conditional_logit_normal: above 0 is noisier")
    tdm_query_logit_std: float = Field(1.0, gt=0, description="conditional_logit_normal: spread")

    def points_per_batch(self, scheduler: SchedulerConfig) -> int:
        steps = self.num_inference_steps - self.first_step
        return min(self.steps_per_update or steps, steps)


class TDMConfig(PathConfig):
    """TDM: DMD2 at every step of the student's path."""

    trainer_type: str = Field("tdm", description="algorithm")
    use_huber: bool = Field(True, description="distance that grows like the error, not like its square")
    huber_c: float = Field(1e-3, gt=0, description="use_huber: error below which it is a square")


class TDMR1Config(PathConfig):
    """TDM-R1: TDM with rewards, which a third network, the surrogate, learns from groups as DGPO does."""

    networks: ClassVar[tuple[str, ...]] = ("fake", "surrogate")
    judged: ClassVar[bool] = True
    smallest_group: ClassVar[int] = 2

    trainer_type: str = Field("tdm-r1", description="algorithm")
    use_huber: Literal[False] = Field(False, description="always squares here")
    real_guidance_scale: float | None = Field(
        4.5, ge=1, le=1000, description="classifier-free guidance of the base in the generator's normaliser; null = none"
    )
    tdm_weight: float = Field(0.3, ge=0, le=1, description="share of guidance in the generator's pull; the rest is the learned reward's")
    cfg_reward_scale: float = Field(3.5, ge=0, description="how far guidance pulls: times what the prompt changes")
    surrogate_guidance_scale: float = Field(4.5, ge=1, le=1000, description="classifier-free guidance of the surrogate that pulls")
    surrogate_preference_beta: float = Field(1.0, gt=0, description="strength of the preference in a group; 10 for text in pictures")
    advantage_clip_range: float = Field(5.0, gt=0, description="largest advantage, in either direction")
    surrogate_reference_beta: float = Field(0.001, ge=0, description="weight of the surrogate's distance to the base")
    surrogate_reference_threshold: float = Field(0.05, gt=0, description="distance from which a sample that is in order pulls no further")
    surrogate_clip_range: float = Field(1e-3, gt=0, description="clip of exp(slow error - error) - 1")
    surrogate_slow_decay_min: float = Field(0.001, ge=0, lt=1, description="decay of the slow surrogate at the first update")
    surrogate_slow_decay_max: float = Field(0.3, ge=0, lt=1, description="and at most; it grows by 0.001 an update")
    use_time_weighting: bool = Field(True, description="later steps of the path weigh more in the surrogate's loss")
