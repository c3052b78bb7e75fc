"""Pixels of a final state by the pipeline's own code, with gradient: unpacking, the latents' statistics and the VAE are the pipeline's."""

from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.core.latents import filled
from flow_factory.core.scheduler_seam import FixedSchedule, output
from flow_factory.core.velocity import VelocityField
from flow_factory.types import Cond


class Decoder(FixedSchedule):
    """Visits one time: its step() returns the state that is given, which the pipeline then decodes."""

    field: VelocityField

    def __init__(self, stock: Any, field: VelocityField, x: Tensor, t: Tensor, s: Tensor):
        super().__init__(stock)
        self.field, self.x = field, x
        self.timesteps, self.sigmas = t[None], torch.stack([s, torch.zeros_like(s)])

    def fork(self) -> "Decoder":
        return Decoder(self.stock, self.field, self.x, self.timesteps[0], self.sigmas[0])

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = True, **_: Any
    ) -> SchedulerOutput | tuple[Tensor]:
        mine, dtype = self.x, torch.promote_types(sample.dtype, model_output.dtype)
        if self.twin is not None:  # the step of the second modality comes next
            mine, self.twin.x = self.x.tensor_split([sample[0].numel()], dim=1)
        return output(filled(mine.to(dtype), sample, self.field.sampled(sample) if self.twin is None else None), return_dict)


def decode(field: VelocityField, x: Tensor, cond: Cond, memo: ConditionMemo | None = None) -> Tensor:
    """(n, 3, h, w) or (n, frames, 3, h, w) in [0, 1], with gradient in x where that is enabled.

    The transformer answers from what it is known to return the shape of, without a forward.

    Args:
        x: final states, as a rollout has them.
        cond: call arguments for as many samples.
        memo: of this micro-batch.
    """
    t = torch.zeros((), device=x.device)
    seam = Decoder(field.pipe.scheduler, field, x, t, t)
    unused = field.unused_generators(len(x), x.device)
    with field.scheduler(seam, memo):
        field.priming = True
        out = field.call(field.pipe, **cond, num_inference_steps=1, generator=unused, output_type="pt", return_dict=False)
    return out[0]
