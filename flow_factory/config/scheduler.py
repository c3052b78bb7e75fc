"""`scheduler:` how rollouts draw their next state."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from flow_factory.config.base import Section, Steps


class SchedulerConfig(Section):
    """How rollouts draw their next state. The section also takes arguments of the pipeline's scheduler (shift, flow_shift, ...)."""

    rest: ClassVar[str | None] = "overrides"

    dynamics_type: Literal["Flow-SDE", "Dance-SDE", "Flash-SDE", "CPS", "ODE"] = Field(
        "Flow-SDE", description="transition kernel of the stochastic steps"
    )
    noise_level: float = Field(0.7, ge=0, le=10, description="noise strength of the kernel (eta)")
    sde_steps: Steps = Field(None, description="steps that may be stochastic, counted from 0; null = all except the last")
    num_sde_steps: int | None = Field(1, ge=1, description="number of stochastic steps per rollout, chosen from sde_steps; null = all")
    step_selection: Literal["random", "window", "stratified", "branch", "sliding", "fraction"] = Field(
        "random",
        description="random: new steps in each epoch; window: consecutive steps, drawn per group (Flow-GRPO-Fast); stratified: "
        "each step equally often over the groups of an epoch (Flash-GRPO); branch: as stratified with one step, at which samples of the "
        "same initial noise part (TempFlow-GRPO); sliding: a window that moves over the "
        "epochs (MixGRPO); fraction: all steps are stochastic, and each group trains on sde_fraction of them "
        "(DanceGRPO)",
    )
    branches_per_seed: int | None = Field(
        None, ge=1, description="branch: samples of a group that share their initial noise; null = all samples of the group"
    )
    sde_fraction: float = Field(0.6, gt=0, le=1, description="fraction: share of sde_steps that a group trains on")
    window_schedule: Literal["progressive", "decay", "exp_decay", "random"] = Field(
        "progressive",
        description="sliding: progressive = equal time at each place; decay, exp_decay = ever shorter (linearly, exponentially); "
        "random = any place in each epoch",
    )
    window_epochs: int = Field(25, ge=1, description="sliding: epochs at each place")
    window_stride: int = Field(1, ge=1, description="sliding: steps from one place to the next")
    window_roll_back: bool = Field(True, description="sliding: return to the first place after the last")
    window_shrink: bool = Field(False, description="sliding: let the window run past the end of the schedule, where it shrinks to one step")
    seed: int | None = Field(None, description="accepted but unused: every draw depends on train.seed")
    overrides: dict[str, Any] = Field(default_factory=dict, description="arguments for the constructor of the pipeline's scheduler")

    def stochastic_steps(self, num_inference_steps: int, first: int = 0) -> tuple[int, ...]:
        """Steps that may be stochastic: `sde_steps`, by default all from the first of the rollout but the last."""
        return tuple(range(first, num_inference_steps - 1)) if self.sde_steps is None else self.sde_steps

    def branches(self, group_size: int) -> int:
        """How many samples of a group in a row start from the same noise."""
        return (self.branches_per_seed or group_size) if self.step_selection == "branch" else 1

    def trained_steps(self, num_inference_steps: int, first: int = 0) -> int:
        """How many stochastic steps of a sample are trained on (the most, where a window shrinks)."""
        count = len(self.stochastic_steps(num_inference_steps, first))
        if self.step_selection == "fraction":
            return int(self.sde_fraction * count + 1e-9)
        return count if self.num_sde_steps is None else min(self.num_sde_steps, count)
