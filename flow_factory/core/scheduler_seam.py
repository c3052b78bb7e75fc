"""The seam: objects that replace the stock scheduler while a pipeline runs. A `Recorder` in rollouts, a `Probe` in velocity calls."""

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from flow_factory.core.latents import filled, joint, part_of
from flow_factory.types import Step

Sampled = Callable[[Tensor], Tensor | None]
"""The latents (n, ...) that a pipeline steps -> the drawn dimensions of a sample, as indices into its flat form; None: all of them.

The others belong to a condition. They get no noise, and are not part of states, log-probabilities, errors or distances."""
Draw = Callable[[int, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Step | None]]
"""(index, t, x, v, s, s1, ceiling) -> the next latents, and the transition if it is kept.

For pipelines of two modalities it has two more methods, see `sampling.Sampler`: `fork()`, the draw of the second modality with its own
noise, and `joint(a, b, v)`, both transitions as one."""


class Seam:
    """Replaces the stock scheduler; schedule, shift and config are still the stock scheduler's."""

    OWN: ClassVar[tuple[str, ...]] = ()
    order = 1
    twin: Any = None

    def __init__(self, stock: Any):
        self.stock = stock

    def __getattr__(self, name: str) -> Any:
        if name == "stock":  # not there yet while copy builds a twin
            raise AttributeError(name)
        return getattr(self.stock, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Attributes that a pipeline sets on its scheduler (Z-Image: `sigma_min`) go to the stock one."""
        if name not in self.__dict__ and name not in self.OWN and hasattr(self.__dict__.get("stock"), name):
            setattr(self.stock, name, value)
        else:
            super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict) -> "Seam":
        """A pipeline of two modalities (LTX-2) copies its scheduler for the second. Each keeps a tape, and together they are one state."""
        self.twin = self.fork()
        return self.twin

    def fork(self) -> "Seam":
        raise NotImplementedError


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
        self.levels: Tensor | None = None

    def fork(self) -> "Recorder":
        twin = Recorder(copy.deepcopy(self.stock), self.draw.fork(), self.sampled)
        self.kept_v, twin.kept_v = [], []  # the log-probability of both as one needs both velocities
        return twin

    def step(self, v: Tensor, t: Tensor, x: Tensor, return_dict: bool = True, **_: Any) -> tuple[Tensor]:
        if self.index < 0:  # image-to-image starts inside the schedule
            begin = self.stock.begin_index
            self.index = place_of(t, self.stock.timesteps) if begin is None else begin
            if self.twin is not None:  # whose schedule is a copy
                self.twin.index = self.index
        if self.levels is None:
            self.levels = self.stock.sigmas.to(x.device, non_blocking=True)
        sigmas, drawn = self.levels, self.sampled(x)
        v = part_of(v, drawn)
        x1, step = self.draw(self.index, t, part_of(x, drawn), v, sigmas[self.index], sigmas[self.index + 1], sigmas[1])
        if step is not None:
            self.kept.append(step)
            if self.kept_v is not None:
                self.kept_v.append(v)
        self.index += 1
        whole = filled(x1, x, drawn)
        self.last = part_of(whole, drawn)
        return (whole,)

    def finish(self) -> None:
        """Joins the two tapes into one."""
        if self.twin is not None and self.kept_v is not None:
            both = zip(self.kept, self.twin.kept, self.kept_v, self.twin.kept_v, strict=True)
            self.kept = [self.draw.joint(a, b, joint(v, w)) for a, b, v, w in both]

    @property
    def final(self) -> Tensor:
        """The last state; for two modalities, both as one."""
        assert self.last is not None  # there was a step
        return self.last if self.twin is None else joint(self.last, self.twin.last)


def place_of(t: Tensor, times: Tensor) -> int:
    """The schedule index of a timestep that a pipeline took from it, from its memory address: the host need not wait for the device."""
    if t.untyped_storage().data_ptr() == times.untyped_storage().data_ptr():
        return int(t.storage_offset() - times.storage_offset())
    return int((times.to(t.device) == t).nonzero()[0])


class Probed(Protocol):
    """The interface of a velocity field that a `Probe` uses."""

    priming: bool
    """Whether the state of the velocity call has not been passed in yet."""
    sampled: Sampled


class FixedSchedule(Seam):
    """A seam whose times are set when it is made, and whose initial state comes from elsewhere."""

    OWN = ("timesteps", "sigmas")

    def set_timesteps(
        self, num_inference_steps: Any = None, device: Any = None, sigmas: Any = None, mu: Any = None, timesteps: Any = None
    ) -> None:
        """Does nothing: the schedule is already set. The parameters are spelled out because pipelines inspect them."""

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Does nothing: the stock scheduler must not store where this call began."""

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Image-to-image and video-to-video: the initial state is not used."""
        return noise

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise


class Probe(FixedSchedule):
    """A schedule with one time, twice: the first step() returns the latents of the velocity call, the second keeps their velocity."""

    def __init__(self, stock: Any, field: "Probed", x: Tensor, t: Tensor, s: Tensor):
        super().__init__(stock)
        self.field, self.x = field, x
        self.v: Tensor | None = None
        self.timesteps, self.sigmas = torch.stack([t, t]), torch.stack([s, s, torch.zeros_like(s)])
        self.asked = False

    def fork(self) -> "Probe":
        return Probe(self.stock, self.field, self.x, self.timesteps[0], self.sigmas[0])

    def step(self, v: Tensor, t: Tensor, x: Tensor, return_dict: bool = True, **_: Any) -> tuple[Tensor]:
        if self.asked:
            self.v = part_of(v, self.field.sampled(x))
            return (x,)
        self.asked = True
        if self.twin is None:
            self.field.priming = False
            return (filled(self.x.to(x.dtype), x, self.field.sampled(x)),)
        mine, self.twin.x = self.x.tensor_split([x[0].numel()], dim=1)  # the second modality's step comes next
        return (filled(mine.to(x.dtype), x, None),)

    def answer(self) -> Tensor | None:
        """The velocity; for two modalities, both as one."""
        if self.twin is None or self.v is None or self.twin.v is None:
            return self.v
        return joint(self.v, self.twin.v)
