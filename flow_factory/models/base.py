"""A model family at work: a data row becomes call arguments, and the pipeline a sampler and a velocity field. The rest is the seam's."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor, nn

from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.core.decoding import decode
from flow_factory.core.latents import part_of
from flow_factory.core.readback import Deferred
from flow_factory.core.scheduler_seam import Draw, Recorder
from flow_factory.core.velocity import VelocityField
from flow_factory.models.call_checks import check_arguments
from flow_factory.models.guiders import guiding
from flow_factory.models.parts import chain, check_sizes, check_words, times
from flow_factory.models.row_encoding import RowEncoding
from flow_factory.models.states import check_media, latents, pixels
from flow_factory.types import Clip, Cond
from flow_factory.utils.errors import UserError


class ModelAdapter(RowEncoding):
    """One family of pipelines, as a sampler and a velocity field of data rows.

    A family writes `embed`; the rest has defaults that serve most.
    """

    @classmethod
    def of(cls, checkpoint: str, pipeline_class: str | None) -> type["ModelAdapter"]:
        """The family that serves a checkpoint; only `diffusers` looks at it."""
        if pipeline_class is not None:
            raise UserError(
                f"model.pipeline_class: {pipeline_class!r} is for model_type: diffusers only; {cls.__name__} has its own pipeline"
            )
        return cls

    def __init__(self, pipe: Any):
        check_words(self, pipe)
        self.pipe = pipe
        self.field = VelocityField(pipe, self.components, self.memoised, self.sampled)
        self.negatives = None
        self.parameters = inspect.signature(self.field.call).parameters  # once: every velocity call asks for them
        length = self.parameters.get("max_sequence_length")
        if length is not None and isinstance(length.default, int):
            self.text_length = length.default  # another one would draw other pictures than the stock pipeline

    # -- sizes -----------------------------------------------------------------------------------------------------------------

    def check_call(self, call: Mapping[str, Any]) -> None:
        """Raises:
        UserError: the VAE and the patches cannot make pictures of this size, and the message has the nearest one; or the pipeline
            refuses another argument.
        """
        check_sizes(type(self.pipe).__name__, call, self.size_step(), self.frame_step())
        check_arguments(self.pipe, call)

    def size_step(self) -> int:
        """What height and width must be multiples of."""
        return self.pipe.vae_scale_factor * 2

    def frame_step(self) -> int:
        """What the number of frames, less 1, must be a multiple of; 0 for images."""
        return 0

    def frames(self, call: Mapping[str, Any]) -> int:
        """How many frames a video has that this call draws."""
        return call.get("num_frames") or self.parameters["num_frames"].default

    # -- calls -----------------------------------------------------------------------------------------------------------------

    def guiding(self, call: Mapping[str, Any]) -> AbstractContextManager[None]:
        """The pipeline's guider as the call asks for it, where it has one."""
        return guiding(self.pipe, self.guider_scale(call))

    def used_condition(self, cond: Cond, call: Mapping[str, Any]) -> Cond:
        """The condition without the negative prompt, where this call has no use for it."""
        return cond if self.guided(call) else {k: v for k, v in cond.items() if not k.startswith("negative_")}

    def shaping(self, cond: Cond) -> Cond:
        """What of a condition decides the shapes of the transformer's inputs, see `compilation.signature`."""
        return cond

    def repeat(self, cond: Cond, n: int) -> Cond:
        """The same call for n samples: tensors repeated along dim 0, lists of tensors n times."""
        return {k: times(v, n) for k, v in cond.items()}

    def join(self, conds: Sequence[Cond]) -> Cond:
        """One call for several rows, for evaluation: tensors concatenated along dim 0, lists one after the other; see `joinable`."""
        return {k: chain([c[k] for c in conds]) for k in conds[0]}

    def together(self, conds: Sequence[Cond]) -> Cond:
        """One call for the samples of an evaluation's batch: of rows that are `joinable`, or several of one row, as a rollout has them."""
        several = len(conds) > 1 and all(cond is conds[0] for cond in conds)
        return self.repeat(conds[0], len(conds)) if several else self.join(conds)

    def joinable(self, cond: Cond) -> Any:
        """Rows whose keys are equal may share a batch in evaluation; None: this row is drawn alone.

        A text that is handed to the call as it is, is one for all of a batch.
        """
        if any(isinstance(leaf, Image.Image) for v in cond.values() for leaf in (v if isinstance(v, list) else [v])):
            return None
        return tuple(
            (k, tuple(v.shape) if isinstance(v, Tensor) else v if isinstance(v, str) else type(v).__name__) for k, v in sorted(cond.items())
        )

    def sample(
        self,
        cond: Cond,
        call: Mapping[str, Any],
        num_steps: int,
        draw: Draw,
        generators: list[Generator],
        memo: ConditionMemo | None = None,
        seen: bool = True,
    ) -> tuple[Sequence[Any], Recorder]:
        """Samples of one row by the recorder's dynamics: (media, which are made when they are looked at, recorder).

        Args:
            seen: whether anybody looks at the media; else nothing is decoded, and there are none.
        """
        arguments = {**self.takes(call), **self.repeat(self.used_condition(cond, call), len(generators))}
        out, recorder = self.field.sample(arguments, num_steps, draw, generators, "pil" if seen else "latent", memo)
        return Deferred(lambda: self.media(out, call) if seen else ()), recorder

    def velocity(self, x: Tensor, t: Tensor, s: Tensor, cond: Cond, call: Mapping[str, Any], memo: ConditionMemo | None = None) -> Tensor:
        """v(x, t) of the samples x (n, ...) of one row; `t` and `s` 0-dim."""
        arguments = {**self.takes(call), **self.repeat(self.used_condition(cond, call), len(x)), **self.in_velocity}
        with self.guiding(call):
            return self.field.velocity(x, t, s, arguments, memo)

    def decode(self, x0: Tensor, cond: Cond, call: Mapping[str, Any], memo: ConditionMemo | None = None) -> Tensor:
        """Pixels of final states (n, ...) of one row, with gradient: see `decoding.decode`."""
        arguments = {**self.takes(call), **self.repeat(self.used_condition(cond, call), len(x0)), **self.in_velocity}
        return decode(self.field, x0, arguments, memo)

    @torch.no_grad()
    def evaluate(self, cond: Cond, call: Mapping[str, Any], num_steps: int, generators: list[Generator]) -> list[Any]:
        """Media of the stock pipeline with its own scheduler; `cond` holds one entry a generator."""
        arguments = {**self.takes(call), **cond}
        taken = self.field.call_generators(generators)
        out = self.pipe(**arguments, num_inference_steps=num_steps, generator=taken, output_type="pil", return_dict=False)
        return self.media(out, call)

    @torch.no_grad()
    def to_state(self, media: Sequence[Any], call: Mapping[str, Any], generator: Generator | None = None) -> Tensor:
        """The state x0 of given media: what the sampler's last step would have to return for the pipeline to decode to them.

        Args:
            media: a PIL image or a `Clip` a sample, of the size that `call` names.
            generator: of a draw from the VAE's distribution; None takes its mode.

        Returns:
            (n, ...) float32 in the layout of the recorder's states; the same for the same media, whatever they are encoded with.

        Raises:
            UserError: see `encodes_media`; a sample of another size, number of frames or kind than what is drawn.
        """
        if self.encodes_media is not None:
            raise UserError(f"{type(self.pipe).__name__}: media cannot be encoded: {self.encodes_media}")
        self.check_call(call)
        frames = self.frames(call) if self.frame_step() else None
        check_media(media, call["height"], call["width"], frames)
        x = torch.cat([self.state_of(pixels(self.pipe, one), generator) for one in media])
        return part_of(x, self.sampled(x))

    def sampled(self, x: Tensor) -> Tensor | None:
        """Which dimensions of one sample's latents, of all that the pipeline steps, it draws: positions in x[0].flatten(); None: all.

        A picture that is held in the latents while the rest is drawn is no part of the state.
        """
        return None

    def state_of(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """The state of pixels x, (1, 3, h, w) or (1, 3, frames, h, w), for `to_state`."""
        return latents(self.pipe.vae, x, generator)

    def media(self, out: tuple[Any, ...], call: Mapping[str, Any]) -> list[Any]:
        """One picture or clip a sample, of what the pipeline returned."""
        return [Clip(list(one), call.get("frame_rate") or self.fps) if isinstance(one, list) else one for one in out[0]]

    def place(self, device: torch.device) -> None:
        """Moves all parts but the transformers to where rows are encoded: pipelines look at any of them for their device.

        A part that waits in main memory (`offload.waiting`) comes when it is called.
        """
        self.negatives = None
        for part in self.pipe.components.values():
            if isinstance(part, nn.Module) and not hasattr(part, "_hf_hook"):
                part.to(device).eval().requires_grad_(False)

    def out_of_reach(self, trained: Sequence[str], num_steps: int) -> dict[int, str]:
        """Steps of a schedule that no trained component draws, and which component draws them.

        Wan2.2 A14B and its kin: `transformer` draws the noisy end of the schedule, down to `boundary_ratio`, and `transformer_2` the rest.
        """
        boundary = getattr(self.pipe.config, "boundary_ratio", None)
        if boundary is None:
            return {}
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(num_steps)
        border = boundary * scheduler.config.num_train_timesteps
        drawn = {k: "transformer" if t >= border else "transformer_2" for k, t in enumerate(scheduler.timesteps.tolist())}
        return {k: name for k, name in drawn.items() if name not in trained}

    def drop_encoders(self) -> None:
        """Frees what only `encode` needs."""
        self.negatives = None
        self.pipe.register_modules(**dict.fromkeys(self.encoders))
