"""Any other flow-matching pipeline of diffusers: no code of its own, found from the checkpoint's model_index.json."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, DiffusionPipeline
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from flow_factory.config.pipelines import pipeline_path
from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.core.decoding import decode
from flow_factory.core.readback import Deferred
from flow_factory.core.scheduler_seam import Draw, Recorder
from flow_factory.models.base import ModelAdapter
from flow_factory.models.guiders import GUIDER, guiding
from flow_factory.types import Cond, Row
from flow_factory.utils.errors import UserError

PROJECTIONS = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_q_t", "to_k_t", "to_v_t", "to_out_t",
)  # fmt: skip
"""The attention projections, as diffusers names them."""


class Diffusers(ModelAdapter):
    """What the pipeline's own `encode_prompt` returned stands in for it from then on, so the text encoders can go.

    Evaluation draws row by row: how the embeddings of several rows would be joined is the pipeline's secret.
    """

    pipeline = ""
    """Given by `of`."""
    memoised = ("vae.encode", "encode_image", "encode_prompt")
    images = (0, 32)
    find_unused = True
    encodes_media = "the packing and the normalisation of its latents are unknown"
    pads_prompts = False
    lora_targets: ClassVar[tuple[str, ...]] = PROJECTIONS

    @classmethod
    def of(cls, checkpoint: str, pipeline_class: str | None) -> type[ModelAdapter]:
        try:
            index: Mapping[str, Any] = {"_class_name": pipeline_class} if pipeline_class else DiffusionPipeline.load_config(checkpoint)
        except OSError as error:
            raise UserError(
                f"model.pipeline_class: name the pipeline class: there is no readable model_index.json of {checkpoint!r} can be read here"
            ) from error
        encoders = tuple(part for part, entry in index.items() if part.startswith("text_encoder") and entry[0])
        return type(index["_class_name"], (cls,), {"pipeline": pipeline_path(index["_class_name"]), "encoders": encoders})

    @classmethod
    def embedded(cls, shape: Mapping[str, Any], tokens: int) -> int:
        return 0

    @classmethod
    def targets_in(cls, module: nn.Module) -> tuple[str, ...]:
        names = [name for name, m in module.named_modules() if isinstance(m, nn.Linear)]
        found = tuple(t for t in cls.lora_targets if any(n.endswith(f".{t}") for n in names))
        return found or cls.lora_targets[:1]  # it fits nothing, which is said where it is used

    def __init__(self, pipe: Any):
        if not self.encoders:  # no model_index.json was read
            self.encoders = tuple(k for k, v in pipe.components.items() if k.startswith("text_encoder") and isinstance(v, nn.Module))
        self.dims: dict[tuple, list[int | None]] = {}
        super().__init__(pipe)
        config = pipe.scheduler.config
        flow = "FlowMatch" in type(pipe.scheduler).__name__ or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow"
        missing = [k for k in self.components if k not in self.field.bare] + [k for k in ("encode_prompt", "vae") if not hasattr(pipe, k)]
        if missing or not flow:
            lacks = f"it has no {', '.join(missing)}" if missing else f"{type(pipe.scheduler).__name__} is no flow-matching scheduler"
            raise UserError(f"model_type: diffusers cannot train {type(pipe).__name__}: {lacks}")
        if self.field.bare["transformer"].config.get("guidance_embeds"):  # `guidance_scale` is an input of the model then
            self.cfg = "true_cfg_scale" if "true_cfg_scale" in self.parameters else None

    def encode(self, row: Row, call: Mapping[str, Any]) -> Cond:
        texts = {"prompt": row.prompt} | ({} if row.negative_prompt is None else {"negative_prompt": row.negative_prompt})
        cond = {k: v for k, v in texts.items() if k in self.takes(dict.fromkeys(texts))} | self.conditions(row, call)
        if spare := sorted(set(cond) - set(self.takes(cond))):
            raise UserError(f"{row.source}: {type(self.pipe).__name__} takes no {' or '.join(spare)}")
        encoded = self._encoded(cond, 1, call)
        leaves, structure = tree_flatten(encoded)
        shape = (str(structure), tuple(x.ndim if isinstance(x, Tensor) else -1 for x in leaves))
        if shape not in self.dims:  # seen once, known for all rows
            self.dims[shape] = self._batch_dims(leaves, structure, self._encoded(cond, 2, call))
        return cond | {"encoded": encoded, "batch_dims": self.dims[shape]}

    def encoded_by(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """All of them: which ones the pipeline hands to its `encode_prompt` is its secret."""
        return dict(call)

    def _batch_dims(self, one: list[Any], structure: Any, twice: list[Any]) -> list[int | None]:
        """Along which dimension each output of `encode_prompt` grows with the number of prompts."""
        two, other = tree_flatten(twice)
        dims = [_batch_dim(a, b) for a, b in zip(one, two, strict=False)]
        if structure != other or "?" in dims:
            raise UserError(f"{type(self.pipe).__name__}.encode_prompt does not return tensors with one entry per prompt")
        return dims  # type: ignore[return-value]

    def _encoded(self, cond: Cond, n: int, call: Mapping[str, Any]) -> list[Any]:
        """What `encode_prompt` returns for n times the row, call by call: the pipeline runs up to its first transformer call."""
        memo = ConditionMemo()
        generators = [torch.Generator(self.pipe._execution_device).manual_seed(0)] * n
        with self.field.memo_table.using(memo), torch.no_grad(), self.field.stopping(), guiding(self.pipe, call.get(GUIDER)):
            self.field.call(self.pipe, **self.takes(call), **_prompts(cond, n), num_inference_steps=2, generator=generators)
        if "encode_prompt" not in memo.kept:
            raise UserError(f"{type(self.pipe).__name__} did not call its encode_prompt for {str(cond.get('prompt'))[:60]!r}")
        return memo.kept["encode_prompt"]

    def _given(self, cond: Cond, n: int) -> dict[str, list[Any]]:
        leaves, structure = tree_flatten(cond["encoded"])
        many = [x if d is None else x.repeat_interleave(n, d) for x, d in zip(leaves, cond["batch_dims"], strict=True)]
        return {"encode_prompt": tree_unflatten(many, structure)}

    def tokens(self, row: Row, call: Mapping[str, Any]) -> tuple[int, int]:
        return 0, call.get("max_sequence_length", self.text_length)  # how it counts is the pipeline's secret

    def size_step(self) -> int:
        """A patch of latents; pipelines that pack latents themselves have told their picture processor."""
        names = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio")
        scale = next(int(getattr(self.pipe, n)) for n in names if hasattr(self.pipe, n))
        patch = self.field.bare["transformer"].config.get("patch_size", 1)
        processors = [getattr(self.pipe, kind, None) for kind in ("image_processor", "video_processor")]
        told = [p.config.get("vae_scale_factor", 1) for p in processors if isinstance(p, ConfigMixin)]
        return math.lcm(scale * (patch if isinstance(patch, int) else patch[-1]), *told)

    def frame_step(self) -> int:
        names = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
        return next((int(getattr(self.pipe, n)) for n in names if hasattr(self.pipe, n)), 0)

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
        n, memo = len(generators), memo or ConditionMemo()
        memo.given = self._given(cond, n)
        arguments = {**self.takes(call), **_prompts(cond, n)}
        out, recorder = self.field.sample(arguments, num_steps, draw, generators, "pil" if seen else "latent", memo)
        return Deferred(lambda: self.media(out, call) if seen else ()), recorder

    def velocity(self, x: Tensor, t: Tensor, s: Tensor, cond: Cond, call: Mapping[str, Any], memo: ConditionMemo | None = None) -> Tensor:
        with guiding(self.pipe, call.get(GUIDER)):
            return self.field.velocity(x, t, s, {**self.takes(call), **_prompts(cond, len(x))}, self._knowing(memo, cond, len(x)))

    def decode(self, x0: Tensor, cond: Cond, call: Mapping[str, Any], memo: ConditionMemo | None = None) -> Tensor:
        return decode(self.field, x0, {**self.takes(call), **_prompts(cond, len(x0))}, self._knowing(memo, cond, len(x0)))

    def _knowing(self, memo: ConditionMemo | None, cond: Cond, n: int) -> ConditionMemo:
        """The memo of n samples, which knows what `encode_prompt` returns."""
        memo = memo or ConditionMemo()
        if memo.known("encode_prompt") is None:
            memo.given |= self._given(cond, n)
        return memo

    def evaluate(self, cond: Cond, call: Mapping[str, Any], num_steps: int, generators: list[Generator]) -> list[Any]:
        with self.field.memo_table.using(ConditionMemo(self._given(cond, 1))):
            return super().evaluate(_prompts(cond, 1), call, num_steps, generators)


def _prompts(cond: Cond, n: int) -> Cond:
    """Call arguments of n times the row."""
    return {k: [v] * n if isinstance(v, str) else v for k, v in cond.items() if k not in ("encoded", "batch_dims")}


def _batch_dim(one: Any, two: Any) -> int | str | None:
    """Along which dimension an output of one prompt grows with a second one; None: it does not; "?": in no way that can be followed."""
    if not isinstance(one, Tensor):
        return None
    if not isinstance(two, Tensor) or one.ndim != two.ndim:
        return "?"
    grown = [d for d, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b]
    return None if not grown else grown[0] if len(grown) == 1 and two.shape[grown[0]] == 2 * one.shape[grown[0]] else "?"
