"""The seam: a stock diffusers pipeline as a sampler and as a velocity field.

Every flow-matching pipeline calls `latents = scheduler.step(v, t, latents)` once per denoising step, after it has done all that
belongs to the model: conditioning, packing, guidance, sign, the choice between two transformers. That call is all we need:

    Field.sample()    runs the pipeline with a Recorder: step() draws the next latents and keeps the transition
    Field.velocity()  runs it with a Probe: step() hands in the latents asked about and keeps the velocity that comes back

Rollout and training run the same code on the same inputs, so their log-probabilities agree to the bit.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from flow_factory.core.condition_memo import ConditionMemo, MemoTable
from flow_factory.core.latents import filled, joint, part_of
from flow_factory.core.readback import reading_back
from flow_factory.core.transformer_proxy import Stop, TransformerProxy
from flow_factory.types import Cond, Step

Sampled = Callable[[Tensor], Tensor | None]
"""The latents (n, ...) that a pipeline steps -> which of a sample's dimensions are drawn, their positions when flat; None: all of them.

The others, a condition's part, are in no state: they get no noise, and are in no log-probability, error or distance."""

Draw = Callable[[int, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Step | None]]
"""(index, t, x, v, s, s1, ceiling) -> the next latents, and the transition where it is to be kept.

For pipelines of two modalities it has two methods more, see `sampling.Sampler`: `fork()`, the second modality's draw with a noise of its
own, and `joint(a, b, v)`, the transitions of both as one."""


class Seam:
    """Takes the stock scheduler's place; schedule, shift and config stay the stock one's."""

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
        """What a pipeline sets on its scheduler (Z-Image: `sigma_min`) is for the stock one."""
        if name not in self.__dict__ and name not in self.OWN and hasattr(self.__dict__.get("stock"), name):
            setattr(self.stock, name, value)
        else:
            super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict) -> "Seam":
        """A pipeline of two modalities (LTX-2) copies its scheduler for the second: both keep a tape, and the two are one state."""
        self.twin = self.fork()
        return self.twin

    def fork(self) -> "Seam":
        raise NotImplementedError


class Recorder(Seam):
    """Draws each next state by `draw`, and keeps the transitions that it returns."""

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
        """Makes one tape of two."""
        if self.twin is not None and self.kept_v is not None:
            both = zip(self.kept, self.twin.kept, self.kept_v, self.twin.kept_v, strict=True)
            self.kept = [self.draw.joint(a, b, joint(v, w)) for a, b, v, w in both]

    @property
    def final(self) -> Tensor:
        """The last state; of two modalities, both as one."""
        assert self.last is not None  # there was a step
        return self.last if self.twin is None else joint(self.last, self.twin.last)


def place_of(t: Tensor, times: Tensor) -> int:
    """Where in a schedule a timestep stands that a pipeline took from it: read off its place in memory, which no device is waited for."""
    if t.untyped_storage().data_ptr() == times.untyped_storage().data_ptr():
        return int(t.storage_offset() - times.storage_offset())
    return int((times.to(t.device) == t).nonzero()[0])


class Probe(Seam):
    """Visits one time twice: the first step() returns the latents asked about, the second keeps their velocity."""

    OWN = ("timesteps", "sigmas")

    def __init__(self, stock: Any, field: "VelocityField", x: Tensor, t: Tensor, s: Tensor):
        super().__init__(stock)
        self.field, self.x = field, x
        self.v: Tensor | None = None
        self.timesteps, self.sigmas = torch.stack([t, t]), torch.stack([s, s, torch.zeros_like(s)])
        self.asked = False

    def fork(self) -> "Probe":
        return Probe(self.stock, self.field, self.x, self.timesteps[0], self.sigmas[0])

    def set_timesteps(
        self, num_inference_steps: Any = None, device: Any = None, sigmas: Any = None, mu: Any = None, timesteps: Any = None
    ) -> None:
        """Set already: the time asked about, twice. The names are spelled out because pipelines look for them."""

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The stock scheduler must not remember where a velocity call began."""

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Image- and video-to-video: the initial state of a velocity call is not looked at."""
        return noise

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise

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
        """The velocity; of two modalities, both as one."""
        if self.twin is None or self.v is None or self.twin.v is None:
            return self.v
        return joint(self.v, self.twin.v)


class VelocityField:
    """A pipeline whose transformers are gated, so that it can be sampled from and asked for a velocity.

    Args:
        components: its transformers.
        memoised: what it computes from the condition alone, see `condition_memo`.
        sampled: which dimensions it draws.

    Attributes:
        compiled: whether its transformers run with gradient in rollouts too, which then are the same function as in training.
        agree: what this process asks for -> what any process does. Where weights or gradients are shared out, all processes must run the
            same transformers, though each is at a noise level of its own, which may be another expert's.
    """

    def __init__(self, pipe: Any, components: Sequence[str], memoised: Sequence[str] = (), sampled: Sampled = lambda x: None):
        self.sampled = sampled
        self.pipe, self.probing, self.priming, self.ends_here = pipe, False, False, False
        self.compiled = self.recording = False
        self.blanks: dict[tuple, Any] = {}
        self.agree: Callable[[list[bool]], list[bool]] | None = None
        self.call = inspect.unwrap(type(pipe).__call__)  # without its @torch.no_grad
        self.bare = {name: getattr(pipe, name) for name in components if isinstance(getattr(pipe, name, None), nn.Module)}
        self.memo_table = MemoTable(pipe, memoised)
        pipe.set_progress_bar_config(disable=True)
        for name, module in self.bare.items():
            setattr(pipe, name, TransformerProxy(self, name, module))

    def called(self, name: str | None) -> list[str]:
        """The transformers that run now: the one asked for, and in a velocity call those that another process asks for."""
        asked = [name == known for known in self.bare]
        if self.probing and self.agree is not None:
            asked = self.agree(asked)
        return [known for known, runs in zip(self.bare, asked, strict=True) if runs]

    @contextmanager
    def scheduler(self, seam: Seam, memo: ConditionMemo | None) -> Iterator[None]:
        stock, self.pipe.scheduler = self.pipe.scheduler, seam
        self.recording = self.compiled
        try:
            with self.memo_table.using(memo):
                yield
        finally:
            self.pipe.scheduler, self.probing, self.priming, self.recording = stock, False, False, False

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """The pipeline runs up to its first transformer call, and no further."""
        self.ends_here = True
        try:
            yield
        except Stop:
            pass
        finally:
            self.ends_here = False

    @torch.no_grad()
    def sample(
        self,
        cond: Cond,
        num_steps: int,
        draw: Draw,
        generators: list[Generator],
        output_type: str = "pil",
        memo: ConditionMemo | None = None,
    ) -> tuple[tuple[Any, ...], Recorder]:
        """Runs the whole pipeline.

        Args:
            cond: call arguments for n samples; `generators` has n entries, one a sample.
            draw: see `Draw`.
            memo: of this micro-batch; filled in where it is empty.

        Returns:
            The pipeline's output tuple, its pictures made when they are looked at; the recorder with kept transitions and last state.
        """
        recorder = Recorder(self.pipe.scheduler, draw, self.sampled)
        with self.scheduler(recorder, memo), reading_back(self.pipe):
            out = self.call(
                self.pipe, **cond, num_inference_steps=num_steps, generator=generators, output_type=output_type, return_dict=False
            )
        recorder.finish()
        return out, recorder

    def velocity(self, x: Tensor, t: Tensor, s: Tensor, cond: Cond, memo: ConditionMemo | None = None) -> Tensor:
        """v(x, t), with gradient where it is enabled.

        Args:
            x: state, as the recorder saw it; one in another dtype is brought to the pipeline's.
            t: 0-dim, the scheduler's timestep; `s`: 0-dim, its noise level. Both (n,) where the pipeline takes a time a sample.
            cond: call arguments for as many samples as x has.
            memo: of this micro-batch; filled in where it is empty.
        """
        probe = Probe(self.pipe.scheduler, self, x, t, s)
        spare = [torch.Generator(x.device).manual_seed(0)] * len(x)  # for the initial noise nobody looks at
        with self.scheduler(probe, memo):
            self.probing = self.priming = True
            self.call(self.pipe, **cond, num_inference_steps=2, generator=spare, output_type="latent", return_dict=False)
        v = probe.answer()
        if v is None:
            raise RuntimeError(f"{type(self.pipe).__name__} did not call scheduler.step twice: it does not pass the seam")
        return v
