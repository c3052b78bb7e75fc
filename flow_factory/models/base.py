"""What a model family says about itself: pipeline, LoRA targets, data row -> call arguments. All the rest is the seam's."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, get_type_hints

import torch
from diffusers import DiffusionPipeline
from torch import Generator, Tensor

from flow_factory.errors import UserError
from flow_factory.types import Cond, Row
from flow_factory.velocity import Draw, Field, Recorder


def import_pipeline(path: str) -> type[DiffusionPipeline]:
    """The class behind `module:Class`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class ModelAdapter:
    """One family of pipelines, as a sampler and a velocity field of data rows.

    A family writes `encode`; the rest has defaults that serve most.
    """

    pipeline: ClassVar[str]
    """`module:Class` in diffusers, as text: the config checks call arguments against its signature without importing it."""
    components: ClassVar[tuple[str, ...]] = ("transformer",)
    """Transformers that can be trained, in the pipeline's names; those that a checkpoint lacks are passed over."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Module name endings for `target_modules: default`."""
    encoders: ClassVar[tuple[str, ...]] = ()
    """Parts used by `encode` alone: dropped from memory once every row is encoded."""
    encodes_by: ClassVar[tuple[str, ...]] = ()
    """Call arguments that change what `encode` returns: part of the cache's key."""
    published: ClassVar[Mapping[str, float]] = {}
    """Parameters by part of the family's best-known checkpoint: for memory estimates while it is not on disk."""
    published_config: ClassVar[Mapping[str, Any]] = {}
    """Its transformer's config, where it differs from the class's defaults."""

    @classmethod
    def transformer_class(cls) -> Any:
        """The class of the first component, from the pipeline's own signature."""
        return get_type_hints(import_pipeline(cls.pipeline).__init__)[cls.components[0]]

    @classmethod
    def tokens_of(cls, height: int, width: int, call: Mapping[str, Any]) -> int:
        """Tokens of one sample in the transformer, text included, for estimates."""
        return (height // 16) * (width // 16) + call.get("max_sequence_length", 512)

    def __init__(self, pipe: Any):
        self.pipe = pipe
        self.field = Field(pipe, self.components)

    def encode(self, row: Row, call: Mapping[str, Any]) -> Cond:
        """Call arguments of one row, tensors with a leading dimension of 1; runs the encoders.

        Args:
            call: the section's call arguments (`max_sequence_length`, ...).
        """
        raise NotImplementedError

    def tokens(self, row: Row, call: Mapping[str, Any]) -> tuple[int, int]:
        """(tokens of the row's prompt, tokens that the encoder takes)."""
        raise NotImplementedError

    def check_size(self, height: int, width: int) -> None:
        """Raises:
        UserError: the VAE and the patches cannot make pictures of this size; the message has the nearest one.
        """
        step = self.size_step()
        if height % step or width % step:
            near = [max(step, step * round(n / step)) for n in (height, width)]
            raise UserError(
                f"height {height}, width {width}: {type(self.pipe).__name__} makes multiples of {step} pixels; "
                f"the nearest size is {near[0]} x {near[1]}"
            )

    def size_step(self) -> int:
        """What height and width must be multiples of."""
        return self.pipe.vae_scale_factor * 2

    def takes(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the section's arguments that the pipeline's `__call__` takes."""
        known = inspect.signature(self.field.call).parameters
        return {k: v for k, v in call.items() if k in known}

    def repeat(self, cond: Cond, n: int) -> Cond:
        """The same call for n samples: tensors repeated along dim 0."""
        return {k: v.repeat_interleave(n, 0) if isinstance(v, Tensor) else v for k, v in cond.items()}

    def join(self, conds: Sequence[Cond]) -> Cond:
        """One call for several rows, for evaluation: tensors concatenated along dim 0. They must have equal shapes, see `joinable`."""
        return {k: torch.cat([c[k] for c in conds]) if isinstance(v, Tensor) else v for k, v in conds[0].items()}

    def joinable(self, cond: Cond) -> Any:
        """Rows whose keys are equal may share a batch in evaluation."""
        return tuple((k, tuple(v.shape) if isinstance(v, Tensor) else repr(v)) for k, v in sorted(cond.items()))

    def sample(self, cond: Cond, call: Mapping[str, Any], num_steps: int, draw: Draw, generators: list[Generator]) -> tuple[Any, Recorder]:
        """Samples of one row by the recorder's dynamics: (media, recorder)."""
        return self.field.sample({**self.takes(call), **self.repeat(cond, len(generators))}, num_steps, draw, generators)

    def velocity(self, x: Tensor, t: Tensor, s: Tensor, cond: Cond, call: Mapping[str, Any]) -> Tensor:
        """v(x, t) of the samples x (n, ...) of one row; `t` and `s` 0-dim."""
        return self.field.velocity(x, t, s, {**self.takes(call), **self.repeat(cond, len(x))})

    @torch.no_grad()
    def evaluate(self, cond: Cond, call: Mapping[str, Any], num_steps: int, generators: list[Generator]) -> Any:
        """Media of the stock pipeline with its own scheduler; `cond` holds one entry a generator."""
        arguments = {**self.takes(call), **cond}
        return self.pipe(**arguments, num_inference_steps=num_steps, generator=generators, output_type="pil", return_dict=False)[0]

    def drop_encoders(self) -> None:
        """Frees what only `encode` needs."""
        self.pipe.register_modules(**dict.fromkeys(self.encoders))
