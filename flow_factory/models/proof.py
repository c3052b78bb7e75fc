"""Verifies, at the start, that training computes what sampling computed, for pipelines that the test suite does not cover."""

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from PIL import Image

from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.core.dynamics import DYNAMICS
from flow_factory.core.sampling import Sampler
from flow_factory.models.base import ModelAdapter
from flow_factory.models.failures import FAILURES, reason
from flow_factory.types import Clip, Cond
from flow_factory.utils.errors import UserError

logger = logging.getLogger(__name__)
ETA, STEPS = 0.7, 3
LARGEST = 1e-5
"""A tenth of the usual clip range."""
LITTLE = 0.01
"""Share of a state whose gradient may be 0 by chance."""


Runner = Callable[..., Any]
"""("sample" or "velocity", its arguments) -> what the adapter answers: an engine, where one is around the model."""


@torch.no_grad()
def replay_error(adapter: ModelAdapter, cond: Cond, call: Mapping[str, Any], n: int = 2, run: Runner | None = None) -> float:
    """The largest difference between the log-probability of a transition in a short rollout of n samples and in its replay.

    Args:
        run: None asks the adapter itself.

    Returns:
        0.0 where training sees to the bit what sampling saw; NaN where the model makes no numbers.

    Raises:
        UserError: see `check_size`.
    """
    run, device = run or partial(run_adapter, adapter), adapter.pipe._execution_device
    generators = [torch.Generator(device).manual_seed(k) for k in range(n)]
    normal = partial(torch.randn, generator=torch.Generator(device).manual_seed(n), device=device)
    kernel, memo = DYNAMICS["Flow-SDE"], ConditionMemo()
    draw = Sampler(kernel, ETA, range(STEPS - 1), lambda index, x, purpose: normal(x.shape), torch.float32)
    media, recorder = run("sample", cond, call, STEPS, draw, generators, memo)
    check_size(adapter, media[0], call)
    errors = []
    for s in recorder.kept:
        with torch.enable_grad():  # as training asks: a block that is checkpointed may compute something else (Chroma's do)
            v = run("velocity", s.x.to(s.dtype), s.t, s.s, cond, call, memo).detach()
        logp = kernel.log_prob(s.x1.float(), *kernel.step(s.x.float(), v.float(), s.s, s.s1, ETA, s.ceiling))
        errors.append((logp - s.logp).abs().max())
    if not errors:
        raise RuntimeError(f"{type(adapter.pipe).__name__} did not call scheduler.step at the head of its schedule")
    return torch.stack(errors).max().item()


def run_adapter(adapter: ModelAdapter, what: str, *args: Any) -> Any:
    return getattr(adapter, what)(*args)


def check_size(adapter: ModelAdapter, drawn: Image.Image | Clip, call: Mapping[str, Any]) -> None:
    """Raises:
    UserError: the pipeline draws another size than it is asked for (HiDream always a megapixel, others what their patches make of it), or
        something that no reward takes (LTX-2 HDR: an array of linear light).
    """
    name, picture = type(adapter.pipe).__name__, drawn.frames[0] if isinstance(drawn, Clip) else drawn
    if not isinstance(picture, Image.Image):
        raise UserError(f"{name} draws a {type(picture).__name__}, which is neither a picture nor a video, so no reward can score it")
    width, height = picture.size
    if (height, width) != (call["height"], call["width"]):
        size = f"height {call['height']}, width {call['width']}"
        raise UserError(f"{name} draws height {height}, width {width} when it is asked for {size}; write what it draws")


def prove(adapter: ModelAdapter, cond: Cond, call: Mapping[str, Any], n: int, run: Runner | None = None) -> None:
    """Raises:
    UserError: the pipeline cannot be trained through its scheduler; the message says why.
    """
    name = type(adapter.pipe).__name__
    try:
        error = replay_error(adapter, cond, call, n, run)
    except UserError:
        raise
    except FAILURES as failure:
        several = n > 1 and runs(adapter, cond, call, run)
        how = f" with {n} samples of a row at a time" if several else ""
        advice = "; train.per_device_batch_size: 1, or model.vae_slicing: true, may help" if several else ""
        raise UserError(f"{name} cannot be trained{how}: {reason(failure)}{advice}") from failure
    if math.isnan(error):
        raise UserError(f"{name} cannot be trained: it computes NaN; another mixed_precision may help")
    if error > LARGEST:
        raise UserError(
            f"{name} cannot be trained: a velocity call does not compute what the rollout did (log-probability off by {error:.1e}); "
            "its guidance may depend on the step, or its result on random numbers"
        )
    if not getattr(run, "collective", False) and (share := unseen(adapter, cond, call, run)) > LITTLE:
        logger.warning(
            "%s: %.0f %% of its latents change no velocity: a condition fills them, and log-probabilities and errors count them as drawn; "
            "write an adapter that says so (`sampled` in guidance/new_model.md)",
            name,
            100 * share,
        )


def unseen(adapter: ModelAdapter, cond: Cond, call: Mapping[str, Any], run: Runner | None = None) -> float:
    """The share of a state's dimensions on which its velocity does not depend, in [0, 1]."""
    run, device = run or partial(run_adapter, adapter), adapter.pipe._execution_device
    normal = partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
    draw = Sampler(DYNAMICS["Flow-SDE"], ETA, (1,), lambda index, x, purpose: normal(x.shape), torch.float32)
    with torch.no_grad():
        _, recorder = run("sample", cond, call, STEPS, draw, [torch.Generator(device).manual_seed(0)])
    (step,) = recorder.kept
    x = step.x.to(step.dtype).requires_grad_()
    with torch.enable_grad():
        v = run("velocity", x, step.t, step.s, cond, call).float()
        (gradient,) = torch.autograd.grad((v * normal(v.shape)).sum(), x)
    return float((gradient == 0).float().mean())


def runs(adapter: ModelAdapter, cond: Cond, call: Mapping[str, Any], run: Runner | None) -> bool:
    """Whether one sample at a time goes through."""
    try:
        replay_error(adapter, cond, call, 1, run)
    except FAILURES:
        return False
    return True
