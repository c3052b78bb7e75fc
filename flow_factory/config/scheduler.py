"""`scheduler:` how rollouts draw their next state."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from flow_factory.config.base import Section, Steps


class SchedulerConfig(Section):
    """How rollouts draw their next state. Arguments of the pipeline's own scheduler (shift, flow_shift, ...) may stand here too."""

    rest: ClassVar[str | None] = "overrides"

    dynamics_type: Literal["Flow-SDE", "Dance-SDE", "CPS", "ODE"] = Field("Flow-SDE", description="kernel of the stochastic steps")
    noise_level: float = Field(0.7, ge=0, description="strength of the kernel's noise (eta)")
    sde_steps: Steps = Field(None, description="steps that may be stochastic, from 0; null = all but the last")
    num_sde_steps: int | None = Field(1, ge=1, description="how many of sde_steps are stochastic in an epoch, drawn anew; null = all")
    seed: int | None = Field(None, description="accepted and not used: every draw depends on train.seed")
    overrides: dict[str, Any] = Field(default_factory=dict, description="arguments for the constructor of the pipeline's scheduler")

    def stochastic_steps(self, num_inference_steps: int, first: int = 0) -> tuple[int, ...]:
        """Steps that may be stochastic: `sde_steps`, by default all from the first of the rollout but the last."""
        return tuple(range(first, num_inference_steps - 1)) if self.sde_steps is None else self.sde_steps
