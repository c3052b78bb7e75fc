"""Any other flow-matching pipeline of diffusers: no code of its own, found from the checkpoint's model_index.json."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin
from torch import Generator, Tensor, nn

from flow_factory.config.media_arguments import media_arguments
from flow_factory.config.pipelines import pipeline_path
from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.core.decoding import decode
from flow_factory.core.readback import Deferred
from flow_factory.core.scheduler_seam import Draw, Recorder
from flow_factory.models.base import ModelAdapter
from flow_factory.models.blocks import READERS, require_folder
from flow_factory.models.call_forms import CallForm, forms, found
from flow_factory.models.growth import Growth, grown, growth_of
from flow_factory.models.pipeline_facts import CHANCE, PROJECTIONS, TEXTS, complete, factor, lacking, unguided_scale, unlike_flow
from flow_factory.types import Cond, Row
from flow_factory.utils.errors import UserError
from flow_factory.utils.model_index import model_index

OWN = ("encoded", "growth", "form")
"""Entries of a condition that are no call arguments."""
Encoded = dict[str, list[Any]]
"""What the methods for texts returned, by name and call by call."""


class Diffusers(ModelAdapter):
    """What the pipeline's own `encode_prompt` returned stands in for it from then on, so the text encoders can go.

    Evaluation draws row by row: how the embeddings of several rows would be joined is the pipeline's secret.
    """

    pipeline = ""
    """Given by `of`."""
    components = ("transformer", "transformer_2")
    memoised = ("vae.encode", "encode_image", *TEXTS)
    images = (0, 32)
    further_inputs = True
    videos = (0, 8)
    in_velocity: ClassVar[Mapping[str, Any]] = {"strength": 1.0}  # image-to-image leaves out the head of a schedule
    find_unused = True
    encodes_media = "the packing and the normalisation of its latents are unknown"
    pads_prompts = False
    lora_targets: ClassVar[tuple[str, ...]] = PROJECTIONS

    @classmethod
    def of(cls, checkpoint: str, pipeline_class: str | None) -> type[ModelAdapter]:
        if cls.pipeline:  # a family of its own
            return super().of(checkpoint, pipeline_class)
        try:
            index: Mapping[str, Any] = {"_class_name": pipeline_class} if pipeline_class else model_index(checkpoint)
        except OSError as error:
            text = f"there is no readable model_index.json of {checkpoint!r}"
            raise UserError(f"model.pipeline_class: name the pipeline class: {text}") from error
        require_folder(path := pipeline_path(index["_class_name"]), checkpoint)
        parts = {part: entry for part, entry in index.items() if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)}
        encoders = tuple(part for part in parts if part.startswith(READERS))
        return type(index["_class_name"], (cls,), {"pipeline": path, "encoders": encoders})

    @classmethod
    def embedded(cls, shape: Mapping[str, Any], tokens: int) -> int:
        return 0

    @classmethod
    def targets_in(cls, module: nn.Module) -> tuple[str, ...]:
        names = [name for name, m in module.named_modules() if isinstance(m, nn.Linear)]
        found = tuple(t for t in cls.lora_targets if any(n.endswith(f".{t}") for n in names))
        if "to_q" in found:
            return found
        own = {name.rpartition(".")[2] for name in names if "attn" in name or "attention" in name} - {"0"}  # under names of their own
        return (*found, *sorted(own)) or cls.lora_targets[:1]  # the last fits nothing, which is said where it is used

    def __init__(self, pipe: Any):
        if not self.encoders:  # no model_index.json was read
            self.encoders = tuple(k for k, v in pipe.components.items() if k.startswith(READERS) and isinstance(v, nn.Module))
        self.seen: dict[tuple, tuple[CallForm, Growth]] = {}
        complete(pipe)
        super().__init__(pipe)
        if (reason := lacking(pipe, self.field.bare, self.parameters) or unlike_flow(pipe.scheduler)) is not None:
            advice = "; an adapter of your own may train it: guidance/new_model.md"
            raise UserError(f"model_type: diffusers cannot train {type(pipe).__name__}: {reason}{advice}")
        if self.field.bare["transformer"].config.get("guidance_embeds"):  # `guidance_scale` is an input of the model then
            self.cfg = "true_cfg_scale" if "true_cfg_scale" in self.parameters else None
        elif self.cfg == "guidance_scale":
            self.unguided = unguided_scale(pipe, self.unguided)

    def takes(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Noise that the pipeline would add to a condition at each step is off unless it is asked for: a replay cannot draw it again."""
        return {**{name: 0.0 for name in CHANCE if name in self.parameters and name not in call}, **super().takes(call)}

    def encode(self, row: Row, call: Mapping[str, Any]) -> Cond:
        texts = {"prompt": row.prompt} | ({} if row.negative_prompt is None else {"negative_prompt": row.negative_prompt})
        cond = {k: v for k, v in texts.items() if k in self.takes(dict.fromkeys(texts))} | self.conditions(row, call)
        if spare := sorted(set(cond) - set(self.takes(cond))):
            media = ", ".join(media_arguments(self.pipeline or pipeline_path(type(self.pipe).__name__))) or "none"
            advice = f"its arguments for pictures and videos: {media} (data.columns)"
            raise UserError(f"{row.source}: {type(self.pipe).__name__} takes no {' or '.join(spare)}; {advice}")
        kind = tuple((name, type(value), len(value) if isinstance(value, list) else 0) for name, value in cond.items())
        if kind in self.seen:
            form, growth = self.seen[kind]
            encoded, _ = self._encoded(cond, 1, form, call)
        else:  # seen once, known for all rows
            try:
                form, (encoded, growth) = self._called_with(cond, [*(["video"] if row.videos else []), *row.video_inputs], call)
            except ValueError as error:
                raise UserError(f"{row.source}: {type(self.pipe).__name__} cannot encode this row: {error}") from error
            self.seen[kind] = form, growth
        return cond | {"encoded": encoded, "growth": growth, "form": asdict(form)}

    def conditions(self, row: Row, call: Mapping[str, Any]) -> Cond:
        """As for every family; and what the data set has for further arguments, a picture or mask in a list, a video as its frames.

        Raises:
            UserError: a sound, or several videos for one argument.
        """
        from flow_factory.data.inputs import open_inputs

        name = type(self.pipe).__name__
        if row.audio_inputs:
            raise UserError(f"{row.source}: {', '.join(row.audio_inputs)}: model_type: diffusers passes no sound to {name}; remove it")
        if several := [argument for argument, paths in row.video_inputs.items() if len(paths) > 1]:
            raise UserError(f"{row.source}: {several[0]}: {len(row.video_inputs[several[0]])} videos; {name} takes one for each argument")
        opened = open_inputs(row)
        cond = super().conditions(row, call) | {k: list(v[0]) if k in row.video_inputs else v for k, v in opened.items()}
        return {"images" if k == "image" and not self.takes({k: v}) and self.takes({"images": v}) else k: v for k, v in cond.items()}

    def encoded_by(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """All of them: which ones the pipeline hands to its `encode_prompt` is its secret."""
        return {**call, "encoded as": 2}

    def _called_with(self, cond: Cond, videos: Sequence[str], call: Mapping[str, Any]) -> tuple[CallForm, tuple[Encoded, Growth]]:
        """How the pipeline takes several samples of a row like this; its encodings, and how they grow with the number of samples.

        Raises:
            ValueError: in no way that is known.
        """
        pictures = [len(value) for name, value in cond.items() if isinstance(value, list) and name not in videos]
        n = 3 if 2 in pictures else 2  # a pipeline may take a row's pictures for those of as many samples

        def attempt(form: CallForm) -> tuple[Encoded, Growth]:
            one, size = self._encoded(cond, 1, form, call)
            if form.most == 1:
                return one, None
            many, grown_size = self._encoded(cond, n, form, call)
            if grown_size != n * size:
                raise ValueError(f"it does not draw {n} samples when it is asked for {n}")
            return one, growth_of(one, many, n)

        return found(forms(cond, videos, self.parameters), attempt)

    def _encoded(self, cond: Cond, n: int, form: CallForm, call: Mapping[str, Any]) -> tuple[Encoded, int]:
        """What the methods for texts return for n times the row, call by call, and how many values the latents have then.

        The pipeline runs up to its first transformer call.
        """
        memo = ConditionMemo()
        arguments = self._called(cond, n, form, call)
        unused = self.field.unused_generators(n, self.pipe._execution_device)
        with self.field.memo_table.using(memo), torch.no_grad(), self.field.stopping() as shapes, self.guiding(call):
            self.field.call(self.pipe, **arguments, num_inference_steps=2, generator=unused)
        encoded = {name: memo.kept[name] for name in TEXTS if name in memo.kept}
        if not encoded:
            raise ValueError(f"it did not call its encode_prompt for {str(cond.get('prompt'))[:60]!r}")
        return encoded, sum(shape.numel() for shape in shapes)

    def _given(self, cond: Cond, n: int) -> Encoded:
        return cond["encoded"] if n == 1 else grown(cond["encoded"], cond["growth"], n)

    def _arguments(self, cond: Cond, call: Mapping[str, Any], n: int) -> dict[str, Any]:
        """Call arguments of n samples of the row.

        Raises:
            UserError: the pipeline takes fewer in a call.
        """
        form = CallForm(**cond["form"])
        if n > (form.most or n):
            name = type(self.pipe).__name__
            raise UserError(f"{name} cannot draw {n} samples of a row in one call; write train.per_device_batch_size: {form.most}")
        return self._called({name: value for name, value in cond.items() if name not in OWN}, n, form, call)

    def _of_velocity(self, cond: Cond, call: Mapping[str, Any], n: int) -> dict[str, Any]:
        return {**self._arguments(cond, call, n), **{k: v for k, v in self.in_velocity.items() if k in self.parameters}}

    def _called(self, cond: Cond, n: int, form: CallForm, call: Mapping[str, Any]) -> dict[str, Any]:
        """Call arguments in a form, whose kind of generators the field then uses."""
        self.field.one_generator = form.prompts == "alone"
        return {**self.takes(call), **form.arguments(cond, n, self.parameters)}

    def tokens(self, row: Row, call: Mapping[str, Any]) -> tuple[int, int]:
        return 0, call.get("max_sequence_length", self.text_length)  # how it counts is the pipeline's secret

    def size_step(self) -> int:
        """A patch of latents; pipelines that pack latents themselves have told their picture processor."""
        scale = factor(self.pipe, "pixels", 1)
        patch = self.field.bare["transformer"].config.get("patch_size", 1)
        processors = [getattr(self.pipe, kind, None) for kind in ("image_processor", "video_processor")]
        factors = [p.config.get("vae_scale_factor", 1) for p in processors if isinstance(p, ConfigMixin)]
        return math.lcm(scale * (patch if isinstance(patch, int) else patch[-1]), *factors)

    def frame_step(self) -> int:
        return factor(self.pipe, "frames", 0)

    def joinable(self, cond: Cond) -> Any:
        return None

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
        arguments = self._arguments(cond, call, len(generators))
        with self._knowing(memo, cond, len(generators)) as memo, self.guiding(call):
            out, recorder = self.field.sample(arguments, num_steps, draw, generators, "pil" if seen else "latent", memo)
        return Deferred(lambda: self.media(out, call) if seen else ()), recorder

    def velocity(self, x: Tensor, t: Tensor, s: Tensor, cond: Cond, call: Mapping[str, Any], memo: ConditionMemo | None = None) -> Tensor:
        arguments = self._of_velocity(cond, call, len(x))
        with self._knowing(memo, cond, len(x)) as memo, self.guiding(call):
            return self.field.velocity(x, t, s, arguments, memo)

    def decode(self, x0: Tensor, cond: Cond, call: Mapping[str, Any], memo: ConditionMemo | None = None) -> Tensor:
        arguments = self._of_velocity(cond, call, len(x0))
        with self._knowing(memo, cond, len(x0)) as memo:
            return decode(self.field, x0, arguments, memo)

    def _knowing(self, memo: ConditionMemo | None, cond: Cond, n: int) -> AbstractContextManager[ConditionMemo]:
        """The memo of n samples. For a call it knows what `encode_prompt` returns; an epoch of memos keeps no copies of the row's texts."""
        return (memo or ConditionMemo()).knowing(self._given(cond, n))

    def evaluate(self, cond: Cond, call: Mapping[str, Any], num_steps: int, generators: list[Generator]) -> list[Any]:
        if (n := len(generators)) > (cond["form"]["most"] or n):
            return [one for alone in generators for one in self.evaluate(cond, call, num_steps, [alone])]
        arguments = self._arguments(cond, call, n)
        with self.field.memo_table.using(ConditionMemo(self._given(cond, n), only=True)), self.guiding(call):
            return super().evaluate(arguments, call, num_steps, generators)
