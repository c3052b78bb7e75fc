"""Verification of attention's outputs and gradients at the start, on this machine and with this run's shapes.

A kernel may fail only at some sizes, masks and strides. So the model's own blocks run forward and backward on the inputs of the run's
first condition, with the kernel and with the attention formula.
"""

import hashlib
import inspect
import json
import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from flow_factory.config import RunConfig, pipeline_kwargs
from flow_factory.core.dynamics import DYNAMICS
from flow_factory.core.sampling import Sampler
from flow_factory.data.ledger import Ledger
from flow_factory.distributed.barriers import wait_for_everyone
from flow_factory.distributed.collectives import max_over_ranks
from flow_factory.distributed.engines import Engine
from flow_factory.models.loading import DTYPES
from flow_factory.policy.attention import first_line, using_backend, working_backends
from flow_factory.policy.attention_reference import formula
from flow_factory.types import Cond
from flow_factory.utils.errors import UserError

FORMAT = 1
"""The version of the proof. It must be raised when the proof changes."""
TIMES = 4
"""The largest error of a kernel, in units of the error of the formula with rounded factors."""
LEAST = {torch.bfloat16: 2**-7, torch.float16: 2**-9, torch.float32: 1e-4}
"""The error that is always allowed, by dtype. In float32 the formula's error does not contain the rounding of a kernel's own sums."""

Values = dict[str, Tensor]
Problem = tuple[str, str]
"""(class of a block, description of the error)."""


def prove_attention(config: RunConfig, engine: Engine, cond: Cond) -> None:
    """Verifies attention on a GPU, or if a backend is named. A proof is recorded in `data.cache_dir` and not repeated.

    It is skipped with DeepSpeed ZeRO-3 and `model.context_parallel`, where blocks cannot run alone.

    Args:
        cond: the run's first condition, on the device.

    Raises:
        UserError: the backend is wrong here; the message describes the error and lists the right backends.
    """
    accelerator, name = engine.accelerator, config.model.attn_backend
    alone = config.model.context_parallel == 1 and not (engine.settings.kind == "zero" and engine.settings.stage == 3)
    if not alone or (accelerator.device.type == "cpu" and name is None):
        return
    ledger, key = Ledger(Path(config.data.cache_dir) / "attention.jsonl", FORMAT), key_of(config, engine, cond)
    wait_for_everyone("waiting for the verification of attention")
    if not max_over_ranks(accelerator, key not in ledger.known):
        return
    with engine.accumulating(last=False):
        refuse_wrong(engine, name, partial(draw, config, engine, cond), DTYPES[config.mixed_precision])
    if accelerator.is_main_process:
        ledger.new[key] = ()
        ledger.save()


def key_of(config: RunConfig, engine: Engine, cond: Cond) -> str:
    """Everything that a kernel's result may depend on: machine, versions, model and shapes."""
    device, driver = engine.accelerator.device, Path("/proc/driver/nvidia/version")
    cuda = [torch.version.cuda, torch.backends.cudnn.version(), driver.read_text() if driver.is_file() else None]
    card = [torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)] if device.type == "cuda" else platform.machine()
    shapes = tree_map(lambda x: [list(x.shape), list(x.stride()), str(x.dtype)] if isinstance(x, Tensor) else repr(x)[:80], dict(cond))
    model, train = config.model, config.train
    models = {k: dict(m.config) for k, m in engine.policy.adapter.field.bare.items()}
    run = [train.per_device_batch_size, train.height, train.width, train.guidance_scale, train.call, config.mixed_precision]
    kind = [model.attn_backend, model.finetune_type, model.quantization, model.layerwise_casting, engine.name, train.num_inference_steps]
    facts = [torch.__version__, diffusers.__version__, cuda, card, shapes, models, run, kind]
    return hashlib.sha256(json.dumps(facts, default=repr, sort_keys=True).encode()).hexdigest()


@torch.no_grad()
def draw(config: RunConfig, engine: Engine, cond: Cond) -> None:
    """Samples a micro-batch with as few steps as call every transformer."""

    device, n, steps = cond_device(cond), config.train.per_device_batch_size, 1
    while int(steps * config.train.call.get("strength", 1.0)) < 1:
        steps += 1
    sampler = Sampler(DYNAMICS["ODE"], 0.0, (), lambda index, x, purpose: torch.zeros_like(x), torch.float32)
    engine("sample", cond, pipeline_kwargs(config.train), steps, sampler, [torch.Generator(device).manual_seed(k) for k in range(n)])


def cond_device(cond: Cond) -> torch.device:
    return next((x.device for x in tree_leaves(dict(cond)) if isinstance(x, Tensor)), torch.device("cpu"))


def refuse_wrong(engine: Engine, name: str | None, run: Callable[[], None], dtype: torch.dtype) -> None:
    """Raises:
    UserError: a block's attention is wrong with this backend.
    """
    policy, device = engine.policy, engine.accelerator.device
    problems = problems_of(policy, [name], run)[name]
    if not problems:
        return
    block, text = problems[0]
    tried = [b for b in working_backends(device, dtype) if b != name]
    right = [b for b, found in problems_of(policy, tried, run).items() if not found]
    shown = name or "null (torch's own choice)"
    raise UserError(f"model.attn_backend: {shown} is wrong on this machine: in {block}, {text}. Correct here: {', '.join(right) or 'none'}")


def problems_of(policy: Any, backends: list[Any], run: Callable[[], None]) -> dict[Any, list[Problem]]:
    """The errors of each backend in the blocks that a forward of the run calls, one of each kind.

    Args:
        backends: None stands for the present one.
    """
    found: dict[Any, list[Problem]] = {name: [] for name in backends}
    seen: set[Any] = set()

    def look(block: nn.Module, args: Any, kwargs: Any) -> None:
        kind = type(block), tuple(name for name, _ in block.named_parameters())
        if kind in seen:
            return
        seen.add(kind)
        with torch.enable_grad(), mock.patch.dict(block._forward_pre_hooks, clear=True):
            for name, text in compare(block, args, kwargs, backends):
                found[name].append((type(block).__name__, text))

    hooks = [block.register_forward_pre_hook(look, with_kwargs=True) for block in blocks_of(policy)]
    try:
        with torch.compiler.set_stance("force_eager"):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def blocks_of(policy: Any) -> list[nn.Module]:
    """The repeated blocks of all transformers, or a transformer itself if it names none."""
    found: list[nn.Module] = []
    for module in policy.adapter.field.bare.values():
        kinds = {name for kind in ("_no_split_modules", "_repeated_blocks") for name in getattr(module, kind, None) or ()}
        found += [m for m in module.modules() if type(m).__name__ in kinds] or [module]
    return found


def compare(block: nn.Module, args: Any, kwargs: Any, backends: list[Any]) -> Iterator[tuple[Any, str]]:
    """(backend, its error) for each wrong backend."""
    evaluate = partial(values, block, args, kwargs)
    with by_formula(block, rounds=False):
        exact = evaluate()
    if not all(x.isfinite().all() for x in exact.values()):
        return  # its outputs are not finite with any attention
    with by_formula(block, rounds=True):
        allowed = distances(evaluate(), exact)
    for name in backends:
        try:
            with nullcontext() if name is None else using_backend(block, name):
                found = evaluate()
            text = verdict(found, exact, allowed)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            text = f"it ends with: {first_line(error)}"
        if text is not None:
            yield name, text


@contextmanager
def by_formula(block: nn.Module, rounds: bool) -> Iterator[None]:
    """Attention by `attention_reference` inside this context, also in processors that have no choice of backend."""
    with using_backend(block, "native"), mock.patch("torch.nn.functional.scaled_dot_product_attention", partial(formula, rounds=rounds)):
        yield


def values(block: nn.Module, args: Any, kwargs: Any) -> Values:
    """The outputs of a block, and the gradients of a random sum of them: in its inputs, its trained weights and attention's layers."""
    args, kwargs, leaves = with_gradient(block, args, kwargs)
    with layer_outputs(block) as (answers, inside):
        answer = block.forward(*args, **kwargs)
    outputs = {f"output {k}": x for k, x in enumerate(tree_leaves(answer)) if isinstance(x, Tensor) and x.is_floating_point()}
    grown = {name: x for name, x in outputs.items() if x.requires_grad}
    if len(grown) < len(outputs):
        raise RuntimeError("its output has no gradient")
    trained = {name: p for name, p in block.named_parameters() if p.requires_grad}
    wanted = {name: x for name, x in (leaves | trained | inside).items() if x.requires_grad}
    numbers = torch.Generator(next(iter(grown.values())).device).manual_seed(0)
    seeds = [torch.randn(x.shape, generator=numbers, device=x.device, dtype=x.dtype) for x in grown.values()]
    gradients = torch.autograd.grad([*grown.values()], [*wanted.values()], seeds, allow_unused=True)
    slopes = {f"the gradient of {name}": g for name, g in zip(wanted, gradients, strict=True) if g is not None}
    return {name: x.detach() for name, x in (outputs | answers).items()} | slopes


def with_gradient(block: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any, Values]:
    """The inputs of a block, and those with a gradient in training: the first and others of its kind, but no mask and no rotation."""
    names = [*inspect.signature(type(block).forward).parameters][1:]
    given = dict(zip(names, args, strict=False)) | kwargs
    chosen = {k: x for k, x in given.items() if (k == names[0] or "hidden_states" in k) and isinstance(x, Tensor)}
    leaves = {k: x.detach().requires_grad_() for k, x in chosen.items() if x.is_floating_point()}
    first = [leaves.get(name, x) for name, x in zip(names, args, strict=False)]
    return (*first, *args[len(first) :]), kwargs | {k: x for k, x in leaves.items() if k in kwargs}, leaves


@contextmanager
def layer_outputs(block: nn.Module) -> Iterator[tuple[Values, Values]]:
    """The outputs of the block's attention, and of the layers inside it, whose gradients come through attention only."""
    answers, found = Values(), Values()

    def keep(into: Values, name: str, module: nn.Module, args: Any, out: Any) -> None:
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.is_floating_point() and x.requires_grad:
                into[name if name not in into else f"{name} ({len(into)})"] = x

    inside = [(n, m) for n, m in block.named_modules() if hasattr(m, "processor")]
    hooks = [m.register_forward_hook(partial(keep, answers, f"output of {n}")) for n, m in inside]
    layers = {f"{n}.{k}": layer for n, m in inside for k, layer in m.named_modules() if k and not [*layer.children()]}
    hooks += [layer.register_forward_hook(partial(keep, found, f"{name}'s output")) for name, layer in layers.items()]
    try:
        yield answers, found
    finally:
        for hook in hooks:
            hook.remove()


def distances(found: Values, exact: Values) -> dict[str, float]:
    """Relative errors by name; inf if a value is missing, NaN if it is not finite."""
    off = {}
    for name, x in exact.items():
        norm = torch.linalg.vector_norm(x, dtype=torch.float64).item()
        if name not in found:
            off[name] = torch.inf if norm else 0.0
        elif not found[name].isfinite().all():
            off[name] = torch.nan
        else:
            gap = torch.linalg.vector_norm(found[name].double() - x.double()).item()
            off[name] = gap / norm if norm else 0.0
    return off


def verdict(found: Values, exact: Values, allowed: dict[str, float]) -> str | None:
    """The largest error above the allowed one, outputs before gradients, as text; None if there is none."""
    least, off = max(LEAST.get(x.dtype, 0.0) for x in exact.values()), distances(found, exact)
    broken = next((name for name, gap in off.items() if not math.isfinite(gap)), None)
    if broken is not None:
        return f"{broken} is {'missing' if off[broken] == math.inf else 'NaN or inf'}"
    most = {name: max(TIMES * allowed[name], least) for name in off}
    wrong = [name for name in off if off[name] > most[name]]
    if not wrong:
        return None
    name = max(wrong, key=lambda name: (name.startswith("output"), off[name] / most[name]))
    return f"{name} is off by {100 * off[name]:.2g} %, where rounding explains {100 * most[name]:.2g} %"
