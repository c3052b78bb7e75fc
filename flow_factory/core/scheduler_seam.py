"""The seam: objects that replace the stock scheduler while a pipeline runs. A `Recorder` in rollouts, a `Probe` in velocity calls."""

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from flow_factory.core.latents import before_packing, filled, joint, part_of, same_memory
from flow_factory.types import Step
from flow_factory.utils.errors import UserError

FORCING = "steps the parts of a sample, such as its frames, by schedulers of their own"
"""What a pipeline of diffusion forcing does."""
Sampled = Callable[[Tensor], Tensor | None]
"""The latents (n, ...) that a pipeline steps -> the drawn dimensions of a sample, as indices into its flat form; None: all of them.

The others belong to a condition. They get no noise, and are not part of states, log-probabilities, errors or distances."""
Draw = Callable[[int, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Step | None]]
"""(index, t, x, v, s, s1, ceiling, drawn) -> the next latents, and the transition if it is kept.

`drawn`: x is what the last call returned. Otherwise it is the initial noise, or the pipeline has changed it, as inpainting does.

For pipelines of two modalities it has two more methods, see `sampling.Sampler`: `fork()`, the draw of the second modality with its own
noise, and `joint(a, b, v)`, both transitions as one."""


class Seam:
    """Replaces the stock scheduler; schedule, shift and config are still the stock scheduler's."""

    OWN: ClassVar[tuple[str, ...]] = ()
    order = 1
    twin: Any = None

    def __init__(self, stock: Any):
        self.stock = stock
        self.upward = bool(stock.config.get("invert_sigmas")) if hasattr(stock, "config") else False
        """Whether its noise levels and times count from noise to data (Mochi), so that its velocities have the other sign."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The stock scheduler's: some pipelines choose by its class what they call."""
        return type(self.__dict__["stock"]) if "stock" in self.__dict__ else type(self)

    def __getattr__(self, name: str) -> Any:
        if name == "stock":  # missing while copy builds the object
            raise AttributeError(name)
        return getattr(self.stock, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Attributes that a pipeline sets on its scheduler (Z-Image: `sigma_min`) go to the stock one."""
        if name not in self.__dict__ and name not in self.OWN and hasattr(self.__dict__.get("stock"), name):
            setattr(self.stock, name, value)
        else:
            super().__setattr__(name, value)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The stock scheduler's; pipelines that know flow matching by the scheduler's exact class ask others for it."""
        stock = getattr(self.stock, "scale_model_input", None)
        return sample if stock is None else stock(sample, timestep)

    def turned(self, t: Tensor) -> Tensor:
        """A time of the stock scheduler as one that falls with the noise, or the reverse; in float64, so that no bit is lost."""
        return self.stock.config.num_train_timesteps - t.double() if self.upward else t

    def __deepcopy__(self, memo: dict) -> "Seam":
        """A pipeline of two modalities (LTX-2) copies its scheduler for the second. Each keeps a tape, and together they are one state.

        Raises:
            UserError: there is a second copy already: the parts of a state have schedules of their own (diffusion forcing).
        """
        if self.twin is not None:
            raise UserError(f"the pipeline {FORCING}: it cannot be trained")
        self.twin = self.fork()
        return self.twin

    def fork(self) -> "Seam":
        raise NotImplementedError


def output(x: Tensor, return_dict: bool) -> SchedulerOutput | tuple[Tensor]:
    """What a scheduler's `step` returns."""
    return SchedulerOutput(prev_sample=x) if return_dict else (x,)


class Recorder(Seam):
    """Draws each next state with `draw`, and keeps the transitions that it returns."""

    def __init__(self, stock: Any, draw: Draw, sampled: Sampled = lambda x: None):
        super().__init__(stock)
        self.draw: Any = draw
        self.sampled = sampled
        self.kept: list[Step] = []
        self.kept_v: list[Tensor] | None = None
        self.index = -1
        self.last: Tensor | None = None
        self.returned: Tensor | None = None
        self.version = 0
        """Of what was returned, which counts writes to it."""
        self.levels: Tensor | None = None

    def fork(self) -> "Recorder":
        twin = Recorder(copy.deepcopy(self.stock), self.draw.fork(), self.sampled)
        self.kept_v, twin.kept_v = [], []  # the log-probability of both as one needs both velocities
        return twin

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = True, **_: Any
    ) -> SchedulerOutput | tuple[Tensor]:
        if self.index < 0:  # image-to-image starts inside the schedule
            begin = self.stock.begin_index
            self.index = place_of(timestep, self.stock.timesteps) if begin is None else begin
            if self.twin is not None:  # its schedule is a copy of this one
                self.twin.index = self.index
        if self.levels is None:
            self.levels = self.schedule[1].to(sample.device, non_blocking=True)
        latents = sample.to(torch.promote_types(sample.dtype, model_output.dtype))
        sigmas, part = self.levels, self.sampled(latents)
        drawn = self.returned is not None and (part is not None or self._is_returned(latents))
        x, v = part_of(latents, part), part_of(-model_output if self.upward else model_output, part)
        if x is sample:  # the pipeline may write over a tensor of its own
            last = self.last if drawn else None
            x = x.clone() if last is None or (last.shape, last.stride()) != (x.shape, x.stride()) else last
        t = self.turned(timestep)
        x1, step = self.draw(self.index, t, x, v, sigmas[self.index], sigmas[self.index + 1], sigmas[1], drawn)
        if step is not None:
            self.kept.append(step)
            if self.kept_v is not None:
                self.kept_v.append(v)
        self.index += 1
        self.returned = filled(x1, latents, part)
        self.last = part_of(self.returned, part)
        if self.last is self.returned:  # Kandinsky 6 and JoyImage put pictures of the row into it before the next call
            self.returned = self.last.clone()
        self.version = self.returned._version
        return output(self.returned, return_dict)

    def _is_returned(self, latents: Tensor) -> bool:
        """Whether latents are what the last step returned, and were not written to since."""
        assert self.returned is not None
        return same_memory(latents, self.returned) and self.returned._version == self.version

    @property
    def schedule(self) -> tuple[Tensor, Tensor]:
        """Times (T,) and noise levels (T + 1,), which fall."""
        sigmas = self.stock.sigmas
        return self.turned(self.stock.timesteps), 1 - sigmas if self.upward else sigmas

    def finish(self) -> None:
        """Joins the two tapes into one."""
        if self.twin is not None and self.kept_v is not None:
            both = zip(self.kept, self.twin.kept, self.kept_v, self.twin.kept_v, strict=True)
            self.kept = [self.draw.joint(a, b, joint(v, w)) for a, b, v, w in both]

    @property
    def final(self) -> Tensor:
        """The last state; for two modalities, both as one."""
        assert self.last is not None  # `step` has been called
        return self.last if self.twin is None else joint(self.last, self.twin.last)


def place_of(t: Tensor, times: Tensor) -> int:
    """The schedule index of a timestep that a pipeline took from it, from its memory address: the host need not wait for the device."""
    if t.untyped_storage().data_ptr() == times.untyped_storage().data_ptr():
        return int(t.storage_offset() - times.storage_offset())
    return int((times.to(t.device) == t).nonzero()[0])


class Probed(Protocol):
    """The interface of a velocity field that a `Probe` uses."""

    pipe: Any
    priming: bool
    """Whether the state of the velocity call has not been passed in yet."""
    sampled: Sampled


class FixedSchedule(Seam):
    """A seam whose times are set when it is made, and whose initial state comes from elsewhere."""

    OWN = ("timesteps", "sigmas")
    field: "Probed"
    x: Tensor
    """The state that the first step() returns."""

    def set_timesteps(
        self, num_inference_steps: Any = None, device: Any = None, sigmas: Any = None, mu: Any = None, timesteps: Any = None
    ) -> None:
        """Does nothing: the schedule is already set. The parameters are spelled out because pipelines inspect them."""

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Does nothing: the stock scheduler must not store where this call began."""

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Image-to-image and video-to-video: the initial state is not used. Inpainting blends the result with the state after a step.

        FLUX's inpainting with control blends before it packs.
        """
        x = before_packing(self.field.pipe, self.x, noise)
        return x.to(noise.dtype) if x.shape == noise.shape else noise

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise


class Probe(FixedSchedule):
    """A schedule with one time, twice: the first step() returns the latents of the velocity call, the second keeps their velocity."""

    def __init__(self, stock: Any, field: "Probed", x: Tensor, t: Tensor, s: Tensor):
        super().__init__(stock)
        self.field, self.x = field, x
        self.v: Tensor | None = None
        self.t, self.s = t, s
        t, s = self.turned(t).float() if self.upward else t, 1 - s if self.upward else s
        self.timesteps, self.sigmas = torch.stack([t, t]), torch.stack([s, s, torch.zeros_like(s)])
        self.begun = False

    def fork(self) -> "Probe":
        return Probe(self.stock, self.field, self.x, self.t, self.s)

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = True, **_: Any
    ) -> SchedulerOutput | tuple[Tensor]:
        part = self.field.sampled(sample)
        if self.begun:
            self.v = part_of(-model_output if self.upward else model_output, part)
            return output(sample, return_dict)
        self.begun, dtype = True, torch.promote_types(sample.dtype, model_output.dtype)
        if self.twin is None:
            self.field.priming = False
            return output(filled(self.x.to(dtype, copy=True), sample, part), return_dict)  # the pipeline may write over it
        mine, self.twin.x = self.x.tensor_split([sample[0].numel()], dim=1)  # the second modality's step comes next
        return output(filled(mine.to(dtype), sample, None), return_dict)

    def answer(self) -> Tensor | None:
        """The velocity; for two modalities, both as one."""
        if self.twin is None or self.v is None or self.twin.v is None:
            return self.v
        return joint(self.v, self.twin.v)
