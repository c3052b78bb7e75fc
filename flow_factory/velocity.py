"""The seam: a stock diffusers pipeline as a sampler and as a velocity field.

Every flow-matching pipeline calls `latents = scheduler.step(v, t, latents)` once per denoising step, after it has done all that
belongs to the model: conditioning, packing, guidance, sign, the choice between two transformers. That call is all we need:

    Field.sample()    runs the pipeline with a Recorder: step() draws the next latents and keeps the transition
    Field.velocity()  runs it with a Probe: step() hands in the latents asked about and keeps the velocity that comes back

Rollout and training run the same code on the same inputs, so their log-probabilities agree to the bit.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from flow_factory.types import Cond, Step

Draw = Callable[[int, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Step | None]]
"""(index, t, x, v, s, s1, ceiling) -> the next latents, and the transition where it is to be kept."""


class Gate:
    """Stands in the pipeline for a transformer, and answers for it while a velocity call is being primed."""

    def __init__(self, field: "Field", bare: nn.Module):
        self.field, self.bare = field, bare

    def __getattr__(self, name: str) -> Any:
        if name in ("field", "bare"):  # not there yet while copy or pickle builds a twin
            raise AttributeError(name)
        return getattr(self.bare, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        latents = args[0] if args else next(iter(kwargs.values()))
        shapes = tuple(
            x.shape for x in tree_leaves(latents)
        )  # alike on every rank, unlike a prompt's length: a lone forward would hang FSDP
        if self.field.priming and shapes in self.field.blanks:
            return self.field.blanks[shapes]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.field.priming):
            out = self.bare(*args, **kwargs)
        if shapes not in self.field.blanks:
            self.field.blanks[shapes] = tree_map_only(Tensor, lambda x: x.new_zeros(()).expand(x.shape), out)
        return out


class Seam:
    """Takes the stock scheduler's place; schedule, shift and config stay the stock one's."""

    order = 1

    def __init__(self, stock: Any):
        self.stock = stock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stock, name)


class Recorder(Seam):
    """Draws each next state by `draw`, and keeps the transitions that it returns."""

    def __init__(self, stock: Any, draw: Draw):
        super().__init__(stock)
        self.draw = draw
        self.kept: list[Step] = []
        self.index = -1
        self.last: Tensor | None = None

    def step(self, v: Tensor, t: Tensor, x: Tensor, return_dict: bool = True, **_: Any) -> tuple[Tensor]:
        if self.index < 0:  # image-to-image starts inside the schedule
            begin = self.stock.begin_index
            self.index = begin if begin is not None else int((self.stock.timesteps.to(t.device) == t).nonzero()[0])
        sigmas = self.stock.sigmas.to(x.device)
        x1, step = self.draw(self.index, t, x, v, sigmas[self.index], sigmas[self.index + 1], sigmas[1])
        if step is not None:
            self.kept.append(step)
        self.index += 1
        self.last = x1
        return (x1,)


class Probe(Seam):
    """Visits one time twice: the first step() returns the latents asked about, the second keeps their velocity."""

    def __init__(self, stock: Any, field: "Field", x: Tensor, t: Tensor, s: Tensor):
        super().__init__(stock)
        self.field, self.x = field, x
        self.v: Tensor | None = None
        self.timesteps, self.sigmas = torch.stack([t, t]), torch.stack([s, s, torch.zeros_like(s)])
        self.asked = False

    def set_timesteps(
        self, num_inference_steps: Any = None, device: Any = None, sigmas: Any = None, mu: Any = None, timesteps: Any = None
    ) -> None:
        """Set already: the time asked about, twice. The names are spelled out because pipelines look for them."""

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The stock scheduler must not remember where a velocity call began."""

    def step(self, v: Tensor, t: Tensor, x: Tensor, return_dict: bool = True, **_: Any) -> tuple[Tensor]:
        if not self.asked:
            self.asked = True
            self.field.priming = False
            return (self.x,)
        self.v = v
        return (x,)


class Field:
    """A pipeline whose transformers are gated, so that it can be sampled from and asked for a velocity."""

    def __init__(self, pipe: Any, components: Sequence[str]):
        self.pipe, self.priming = pipe, False
        self.blanks: dict[tuple, Any] = {}
        self.call = inspect.unwrap(type(pipe).__call__)  # without its @torch.no_grad
        self.bare = {name: getattr(pipe, name) for name in components if isinstance(getattr(pipe, name, None), nn.Module)}
        pipe.set_progress_bar_config(disable=True)
        for name, module in self.bare.items():
            setattr(pipe, name, Gate(self, module))

    @contextmanager
    def scheduler(self, seam: Seam) -> Iterator[None]:
        stock, self.pipe.scheduler = self.pipe.scheduler, seam
        try:
            yield
        finally:
            self.pipe.scheduler, self.priming = stock, False

    @torch.no_grad()
    def sample(self, cond: Cond, num_steps: int, draw: Draw, generators: list[Generator], output_type: str = "pil") -> tuple[Any, Recorder]:
        """Runs the whole pipeline.

        Args:
            cond: call arguments for n samples; `generators` has n entries, one a sample.
            draw: see `Draw`.

        Returns:
            The first entry of the pipeline's output tuple, and the recorder with the kept transitions and the last state.
        """
        recorder = Recorder(self.pipe.scheduler, draw)
        with self.scheduler(recorder):
            out = self.call(
                self.pipe, **cond, num_inference_steps=num_steps, generator=generators, output_type=output_type, return_dict=False
            )
        return out[0], recorder

    def velocity(self, x: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
        """v(x, t), with gradient where it is enabled.

        Args:
            x: state, as the recorder saw it.
            t: 0-dim, the scheduler's timestep; `s`: 0-dim, its noise level.
            cond: call arguments for as many samples as x has.
        """
        probe = Probe(self.pipe.scheduler, self, x, t, s)
        spare = torch.Generator(x.device).manual_seed(0)  # for the initial noise nobody looks at
        with self.scheduler(probe):
            self.priming = True
            self.call(self.pipe, **cond, num_inference_steps=2, generator=spare, output_type="latent", return_dict=False)
        if probe.v is None:
            raise RuntimeError(f"{type(self.pipe).__name__} did not call scheduler.step twice: it does not pass the seam")
        return probe.v
