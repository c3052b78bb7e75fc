"""The seam: a stock diffusers pipeline as a sampler and as a velocity field.

Every flow-matching pipeline calls `latents = scheduler.step(v, t, latents)` once per denoising step, after it has done all that
belongs to the model: conditioning, packing, guidance, sign, the choice between two transformers. That call is enough:

    VelocityField.sample()    runs the pipeline with a Recorder: step() draws the next latents and stores the transition
    VelocityField.velocity()  runs it with a Probe: step() passes in the given latents and stores the velocity of the next call

Rollout and training run the same code on the same inputs, so their log-probabilities agree to the bit.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from flow_factory.core.condition_memo import ConditionMemo, MemoTable
from flow_factory.core.readback import reading_back
from flow_factory.core.scheduler_seam import Draw, Probe, Recorder, Sampled, Seam
from flow_factory.core.transformer_proxy import Stop, TransformerProxy
from flow_factory.types import Cond


class VelocityField:
    """A pipeline with proxies for its transformers, which can sample and compute velocities.

    Args:
        components: its transformers.
        memoised: methods whose results depend only on the condition, see `condition_memo`.
        sampled: the dimensions that it draws.

    Attributes:
        compiled: whether the transformers run with gradient in rollouts too, so that the compiled function is that of training.
        one_generator: whether the pipeline takes a generator, not a list, and so draws one sample a call.
        agree: the transformers that this process needs -> those that any process needs. With sharded weights or gradients
            all processes must run the same transformers, although their noise levels may belong to different experts.
    """

    def __init__(self, pipe: Any, components: Sequence[str], memoised: Sequence[str] = (), sampled: Sampled = lambda x: None):
        self.sampled = sampled
        self.pipe, self.probing, self.priming, self.ends_here = pipe, False, False, False
        self.compiled = self.recording = self.one_generator = False
        self.blanks: dict[tuple, Any] = {}
        self.agree: Callable[[list[bool]], list[bool]] | None = None
        self.call = inspect.unwrap(type(pipe).__call__)  # without its @torch.no_grad
        self.bare = {name: getattr(pipe, name) for name in components if isinstance(getattr(pipe, name, None), nn.Module)}
        self.memo_table = MemoTable(pipe, memoised)
        pipe.set_progress_bar_config(disable=True)
        for name, module in self.bare.items():
            setattr(pipe, name, TransformerProxy(self, name, module))

    def called(self, name: str | None) -> list[str]:
        """The transformers that run now: the needed one, and in a velocity call also those that other processes need."""
        needed = [name == known for known in self.bare]
        if self.probing and self.agree is not None:
            needed = self.agree(needed)
        return [known for known, runs in zip(self.bare, needed, strict=True) if runs]

    def call_generators(self, generators: list[Generator]) -> Generator | list[Generator]:
        """The generators, one a sample, as the pipeline takes them."""
        return generators[0] if self.one_generator else generators

    def unused_generators(self, n: int, device: torch.device) -> Generator | list[Generator]:
        """Generators for n samples whose initial noise is not used."""
        return self.call_generators([torch.Generator(device).manual_seed(0)] * n)

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
    def stopping(self) -> Iterator[list[torch.Size]]:
        """Runs the pipeline up to its first transformer call, of whose latents the list then has the shapes."""
        self.ends_here, shapes = True, list[torch.Size]()
        try:
            yield shapes
        except Stop as stop:
            shapes.extend(stop.shapes)
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
            memo: memo of this micro-batch; filled if it is empty.

        Returns:
            The pipeline's output tuple, whose images are made when first read; the recorder with stored transitions and last state.
        """
        recorder = Recorder(self.pipe.scheduler, draw, self.sampled)
        with self.scheduler(recorder, memo), reading_back(self.pipe):
            taken = self.call_generators(generators)
            out = self.call(self.pipe, **cond, num_inference_steps=num_steps, generator=taken, output_type=output_type, return_dict=False)
        recorder.finish()
        return out, recorder

    def velocity(self, x: Tensor, t: Tensor, s: Tensor, cond: Cond, memo: ConditionMemo | None = None) -> Tensor:
        """v(x, t), with gradient where it is enabled.

        Args:
            x: state, as the recorder saw it; it is cast to the pipeline's dtype.
            t: 0-dim, the scheduler's timestep; `s`: 0-dim, its noise level. Both (n,) if the pipeline takes a time per sample.
            cond: call arguments for the samples of x.
            memo: memo of this micro-batch; filled if it is empty.
        """
        probe = Probe(self.pipe.scheduler, self, x, t, s)
        unused = self.unused_generators(len(x), x.device)
        with self.scheduler(probe, memo):
            self.probing = self.priming = True
            self.call(self.pipe, **cond, num_inference_steps=2, generator=unused, output_type="latent", return_dict=False)
        v = probe.answer()
        if v is None:
            raise RuntimeError(f"{type(self.pipe).__name__} did not call scheduler.step twice: it does not use the given scheduler")
        return v
