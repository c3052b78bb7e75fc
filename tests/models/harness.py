"""A case made ready as a run does it: loaded, its rows encoded, the encoders gone; and the stock pipeline to compare it with."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit
from PIL import Image
from torch import Tensor, nn

from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.core.dynamics import DYNAMICS
from flow_factory.core.randomness import generator
from flow_factory.core.sampling import Sampler
from flow_factory.core.scheduler_seam import Recorder
from flow_factory.data.media import open_video
from flow_factory.models import MODELS
from flow_factory.models.base import ModelAdapter
from flow_factory.models.loading import DTYPES, load_adapter, load_pipeline
from flow_factory.models.proof import run_adapter
from flow_factory.policy.gradient_checkpointing import Setting
from flow_factory.policy.policy import Policy
from flow_factory.types import Clip, Cond, Step
from tests.conftest import ETA, STEPS, keyed_noise, log_prob_at, policy_over
from tests.models.cases import CASES, REDUCED, Case, call_of, row
from tests.tiny.pipelines import quick, saved


class Tiny:
    """A case behind its adapter; its rows have been encoded and its encoders dropped.

    Args:
        master: the dtype of its transformers, where they are trained in full.
        call: changes of the case's call arguments.
    """

    def __init__(self, name: str, dtype: str = "fp32", master: str | None = None, **call: Any):
        self.case = CASES[name]
        self.adapter = adapter_of(self.case, dtype, master)
        self.call = call_of(self.case) | call
        self.conds = [self.encoded(k) for k in (0, 1)]
        self.adapter.drop_encoders()
        if self.case.slicing:
            self.adapter.pipe.vae.enable_slicing()
        self.ask: Callable[..., Any] = partial(run_adapter, self.adapter)
        """("sample", "velocity" or "evaluate", arguments): of what is trained, as a run asks its policy."""

    @property
    def transformers(self) -> list[nn.Module]:
        return list(self.adapter.field.bare.values())

    @torch.no_grad()
    def encoded(self, k: int = 0) -> Cond:
        with small(self.adapter.pipe):
            return self.adapter.encode(row(self.case, k), self.call)

    @property
    def noisy(self) -> tuple[int, ...]:
        """The first step, one that follows an ODE step where there is room, and one that follows a stochastic step."""
        return (self.case.first, 2, 3)

    def roll(
        self, k: int = 0, dynamics: str = "Flow-SDE", noisy: Collection[int] | None = None, ids: Sequence[int] = (0, 1),
        memo: ConditionMemo | None = None, seen: bool = True,
    ) -> tuple[list[Any], Recorder]:  # fmt: skip
        """Samples of row k whose noise is keyed by their ids."""
        noisy = self.noisy if noisy is None else noisy
        sampler = Sampler(DYNAMICS[dynamics], ETA, noisy, keyed_noise(ids), torch.float32)
        with small(self.adapter.pipe):
            return self.ask("sample", self.conds[k], self.call, STEPS, sampler, [generator(0, "init", i) for i in ids], memo, seen)

    def velocity(self, step: Step, k: int = 0, memo: ConditionMemo | None = None) -> Tensor:
        with small(self.adapter.pipe):
            return self.ask("velocity", step.x.to(step.dtype), step.t, step.s, self.conds[k], self.call, memo)

    def exact(self, step: Step, k: int = 0, dynamics: str = "Flow-SDE", memo: ConditionMemo | None = None) -> bool:
        """Whether a replay has the log-probability of the rollout."""
        logp = log_prob_at(self.velocity(step, k, memo), step, dynamics)
        return torch.equal(logp, step.logp) and bool(logp.isfinite().all())

    def evaluate(self, rows: Sequence[int] = (0,), noises: Sequence[int] | None = None) -> list[Any]:
        """Media of rows, each from a noise of its own."""
        cond = self.adapter.together([self.conds[k] for k in rows])
        with small(self.adapter.pipe):
            return self.ask("evaluate", cond, self.call, STEPS, [generator(0, "eval", k) for k in noises or rows])


MEGAPIXEL = 1024


@contextmanager
def small(pipe: Any, side: int = MEGAPIXEL) -> Iterator[None]:
    """Calls are small, but Qwen-Image-Edit brings its pictures to the area of this side."""
    with quick(pipe), mock.patch.object(edit, "VAE_IMAGE_SIZE", side * side):
        yield


@lru_cache
def tiny(name: str, dtype: str = "fp32") -> Tiny:
    """One for all tests that do not change it."""
    return Tiny(name, dtype)


def adapter_of(case: Case, dtype: str = "fp32", master: str | None = None) -> ModelAdapter:
    folder = str(saved(case.checkpoint))
    transformers = dict.fromkeys(MODELS[case.model_type].of(folder, None).components, master or dtype)
    return load_adapter(folder, case.model_type, dtype, transformers)


# -- the stock pipeline -----------------------------------------------------------------------------------------------------------


def stock_of(name: str, dtype: str = "fp32") -> Any:
    """The pipeline as `from_pretrained` has it."""
    case = CASES[name]
    folder = str(saved(case.checkpoint))
    pipe = load_pipeline(folder, MODELS[case.model_type].of(folder, None), DTYPES[dtype])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@lru_cache
def stock(name: str, dtype: str = "fp32") -> Any:
    """One for all tests that do not change it."""
    return stock_of(name, dtype)


def arguments(case: Case, rows: Sequence[int] = (0,)) -> dict[str, Any]:
    """What a user gives to the stock pipeline for these rows: texts and pictures as they are."""
    asked = [row(case, k) for k in rows]
    texts = {"prompt": [r.prompt for r in asked]}
    if case.negative:
        default = case.stock.get("negative_prompt", "")
        texts["negative_prompt"] = [default if r.negative_prompt is None else r.negative_prompt for r in asked]
    only = {k: v if len(rows) > 1 else v[0] for k, v in texts.items()}
    given = {k: v for k, v in (call_of(case) | case.stock).items() if k not in case.stock or v is not None}
    return given | only | pictures(case, rows[0])


def pictures(case: Case, k: int) -> dict[str, Any]:
    asked = row(case, k)
    side = case.call.get("condition_image_size")
    images = [im.resize(REDUCED.get((side, im.size), im.size), Image.Resampling.LANCZOS) for im in map(Image.open, asked.images)]
    if case.frames:
        return {"video": open_video(asked.videos[0], "").frames}
    if case.model_type == "wan2_i2v":
        return dict(zip(("image", "last_image"), images, strict=False))
    return {"image": images if len(images) > 1 else images[0]} if images else {}


def drawn(pipe: Any, case: Case, rows: Sequence[int] = (0,), noise: tuple[str, int] | None = None, **changes: Any) -> list[Any]:
    """What the stock pipeline draws for these rows, each from its noise in evaluations, or from a certain one."""
    generators = [generator(0, *(noise or ("eval", k))) for k in rows]
    side = changes.pop("condition_image_size", case.call.get("condition_image_size")) or MEGAPIXEL
    given = arguments(case, rows) | changes
    with small(pipe, side):
        out = pipe(**given, num_inference_steps=STEPS, generator=generators, output_type="pil", return_dict=False)
    return [Clip(frames, 1, *sound) if isinstance(frames, list) else frames for frames, *sound in zip(*out, strict=True)]


def same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether pictures or clips are equal to the bit, and not blank."""
    pairs = [pair for x, y in zip(a, b, strict=True) for pair in zip(arrays(x), arrays(y), strict=True)]
    return all(np.array_equal(x, y) and x.std() > 0 for x, y in pairs)


def arrays(media: Any) -> list[np.ndarray]:
    if not isinstance(media, Clip):
        return [np.asarray(media)]
    return [*map(np.asarray, media.frames), *([] if media.audio is None else [torch.as_tensor(media.audio).float().numpy()])]


@contextmanager
def euler(pipe: Any) -> Iterator[None]:
    """The pipeline with a first-order scheduler, which an ODE rollout can be compared with."""
    stock = pipe.scheduler
    pipe.scheduler = stock if isinstance(stock, FlowMatchEulerDiscreteScheduler) else FlowMatchEulerDiscreteScheduler(shift=3.0)
    try:
        yield
    finally:
        pipe.scheduler = stock


# -- what was computed ------------------------------------------------------------------------------------------------------------


@contextmanager
def hooked(models: Iterable[nn.Module], hook: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    """Runs `hook` after every forward of these models; what it returns, if anything, stands for the output."""
    hooks = [model.register_forward_hook(hook) for model in models]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


@contextmanager
def counted(models: Iterable[nn.Module]) -> Iterator[list[int]]:
    """One entry a forward of a transformer: its batch size."""
    forwards: list[int] = []
    with hooked(models, lambda m, args, out: forwards.append(len(out[0]))):
        yield forwards


# -- training ---------------------------------------------------------------------------------------------------------------------

LORA = {"finetune_type": "lora", "target_modules": ("default",), "lora_rank": 4, "lora_alpha": 12}


@lru_cache
def _lora(name: str, dtype: str, checkpointing: bool) -> tuple[Tiny, Policy]:
    return trained(name, dtype, checkpointing, **LORA)


def lora(name: str, dtype: str = "fp32", checkpointing: bool = False) -> tuple[Tiny, Policy]:
    """A case with a LoRA, without gradients; one for all tests that do not change its weights."""
    t, policy = _lora(name, dtype, checkpointing)
    policy.zero_grad(set_to_none=True)
    return t, policy


def trained(
    name: str, dtype: str = "fp32", checkpointing: Setting = False, seed: int = 0, call: Mapping[str, Any] | None = None, **model: Any
) -> tuple[Tiny, Policy]:
    """A case all of whose transformers are trained."""
    t, precision = Tiny(name, dtype, model.get("master_weight_dtype"), **(call or {})), {"fp32": "no", "bf16": "bf16"}[dtype]
    t.ask = policy_over(t.adapter, precision, checkpointing, seed, target_components=tuple(t.adapter.field.bare), **model)
    return t, t.ask
