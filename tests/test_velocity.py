"""The seam on a tiny FLUX.1 of stock classes: training sees to the bit what sampling saw, and the stock pipeline is none the wiser."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from flow_factory.dynamics import DYNAMICS
from flow_factory.models.base import ModelAdapter
from flow_factory.randomness import generator, normal
from flow_factory.sampling import Sampler
from flow_factory.types import Cond, Step
from flow_factory.velocity import Field, Recorder
from tests.conftest import CALL, condition, flux, policy_over, state, velocity_at
from tests.tiny.flux import flux_pipeline

ETA, STEPS = 0.7, 5
NOISY = (0, 2, 3)
"""The first step, one that follows an ODE step, and one that follows a stochastic step."""
CFG = {"true_cfg_scale": 4.0}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SDES = ["Flow-SDE", "Dance-SDE", "CPS"]


def rolled(
    adapter: ModelAdapter, cond: Cond, dynamics: str = "Flow-SDE", storage: torch.dtype = torch.float32, ids: Sequence[int] = (0, 1), **call: Any
) -> list[Step]:
    """The kept transitions of a rollout whose noise is keyed by sample id."""

    def noise(index: int, x: Tensor) -> Tensor:
        return torch.stack([normal(x.shape[1:], torch.float32, "cpu", 0, "sde", i, index) for i in ids])

    sampler = Sampler(DYNAMICS[dynamics], ETA, NOISY, noise, storage)
    _, recorder = adapter.sample(cond, CALL | call, STEPS, sampler, [generator(0, "init", i) for i in ids])
    assert [step.index for step in recorder.kept] == list(NOISY)
    return recorder.kept


def replayed(adapter: ModelAdapter, step: Step, cond: Cond, dynamics: str = "Flow-SDE", **call: Any) -> Tensor:
    kernel = DYNAMICS[dynamics]
    v = adapter.velocity(step.x.to(step.dtype), step.t, step.s, cond, CALL | call)
    return kernel.log_prob(step.x1.float(), *kernel.step(step.x.float(), v.float(), step.s, step.s1, ETA, step.ceiling))


def exact(adapter: ModelAdapter, steps: Sequence[Step], cond: Cond, dynamics: str = "Flow-SDE", **call: Any) -> bool:
    return all(torch.equal(replayed(adapter, step, cond, dynamics, **call), step.logp) for step in steps)


@contextmanager
def counted(adapter: ModelAdapter) -> Iterator[list[int]]:
    """One entry a forward of the transformer: its batch size."""
    forwards: list[int] = []
    hook = adapter.field.bare["transformer"].register_forward_hook(lambda m, args, kw, out: forwards.append(len(out[0])), with_kwargs=True)
    yield forwards
    hook.remove()


# -- training sees what sampling saw --------------------------------------------------------------------------------------------


def prepared(variant: str, dtype: str) -> tuple[ModelAdapter, AbstractContextManager]:
    """An adapter whose transformer is trained and computes as `variant` says, and the context it computes in."""
    adapter, precision = flux(DTYPES[dtype]), {"float32": "no", "bfloat16": "bf16"}[dtype]
    if "lora" in variant:
        policy_over(adapter, precision, "checkpointing" in variant, finetune_type="lora", target_modules=("default",))
    if "full" in variant:
        master = "fp32" if "autocast" in variant or dtype == "float32" else "bf16"
        policy_over(adapter, precision, "checkpointing" in variant, finetune_type="full", master_weight_dtype=master)
    autocast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
    return adapter, autocast if "autocast" in variant else nullcontext()


@pytest.mark.parametrize("dynamics", SDES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", [
    "plain", "lora", "lora + checkpointing", "lora + autocast", "lora + autocast + checkpointing", "full", "full + autocast",
])  # fmt: skip
def test_the_log_prob_of_a_replay_is_that_of_the_rollout(variant: str, dtype: str, dynamics: str) -> None:
    adapter, context = prepared(variant, dtype)
    cond = condition(adapter)
    with context:
        steps = rolled(adapter, cond, dynamics)
        for step in reversed(steps):
            logp = replayed(adapter, step, cond, dynamics)
            assert torch.equal(logp, step.logp) and logp.isfinite().all() and logp.requires_grad


@pytest.mark.parametrize("dynamics", SDES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("storage", [torch.float32, torch.float16, torch.bfloat16])
def test_latents_stored_in_fewer_bits_replay_exactly(storage: torch.dtype, dtype: str, dynamics: str) -> None:
    adapter, _ = prepared("lora", dtype)
    cond = condition(adapter)
    steps = rolled(adapter, cond, dynamics, storage)
    kept = storage if dtype == "float32" else torch.bfloat16
    assert [step.x.dtype for step in steps] == [DTYPES[dtype], kept, kept] and {step.x1.dtype for step in steps} == {kept}
    assert exact(adapter, steps, cond, dynamics)


def test_a_model_that_never_sampled_replays_exactly() -> None:
    cond, steps = condition(flux()), rolled(flux(), condition(flux()))
    assert all(exact(flux(), [step], cond) for step in steps)


def test_other_resolutions_and_prompt_lengths_in_between_change_nothing() -> None:
    adapter = flux()
    calls = [{}, {"height": 48}, {"width": 16}, {"max_sequence_length": 16}, {"guidance_scale": 1.0}, CFG]
    conds = [condition(adapter, "two red circles and a dog on the hill", "low quality", **call) for call in calls]
    rollouts = [rolled(adapter, cond, **call) for cond, call in zip(conds, calls, strict=True)]
    for order in (range(len(calls)), reversed(range(len(calls)))):
        for k in order:
            assert exact(adapter, rollouts[k], conds[k], **calls[k])


@pytest.mark.parametrize("dtype", DTYPES)
def test_true_cfg_replays_exactly(dtype: str) -> None:
    adapter, _ = prepared("lora", dtype)
    cond = condition(adapter, "a red circle", "low quality", **CFG)
    assert exact(adapter, rolled(adapter, cond, **CFG), cond, **CFG)


@pytest.mark.parametrize(("prompt", "change"), [("a red circle", {"guidance_scale": 3.0}), ("a blue circle", {})])
def test_a_replay_under_other_conditions_is_noticed(prompt: str, change: dict[str, float]) -> None:
    adapter = flux()
    for step in rolled(adapter, condition(adapter)):
        ratio = (replayed(adapter, step, condition(adapter, prompt), **change) - step.logp).exp()
        assert ((ratio - 1).abs() > 1e-6).all()


# -- the velocity is the transformer's ------------------------------------------------------------------------------------------


def by_hand(adapter: ModelAdapter, x: Tensor, t: float, embeds: Tensor, pooled: Tensor, rows: int, columns: int) -> Tensor:
    """A call of the transformer as the FLUX.1 paper's code has it: clock in [0, 1], positions (0, row, column)."""
    ids = torch.tensor([[0, i, j] for i in range(rows) for j in range(columns)], dtype=torch.float32)
    n = len(x)
    return adapter.field.bare["transformer"](
        hidden_states=x, timestep=torch.full((n,), t / 1000), guidance=torch.full((n,), 3.5), pooled_projections=pooled.expand(n, -1),
        encoder_hidden_states=embeds.expand(n, -1, -1), txt_ids=torch.zeros(embeds.shape[1], 3), img_ids=ids, return_dict=False)[0]  # fmt: skip


def test_the_velocity_is_a_direct_call_of_the_transformer() -> None:
    adapter = flux()
    cond, x = condition(adapter), state(tokens=6)
    v = adapter.velocity(x, torch.tensor(612.5), torch.tensor(0.6125), cond, CALL | {"height": 48})
    assert torch.equal(v, by_hand(adapter, x, 612.5, cond["prompt_embeds"], cond["pooled_prompt_embeds"], 3, 2))


def test_true_cfg_is_the_negative_plus_its_scale_times_the_difference() -> None:
    adapter, x = flux(), state()
    cond = condition(adapter, "a red circle", "low quality", **CFG)
    good = by_hand(adapter, x, 500.0, cond["prompt_embeds"], cond["pooled_prompt_embeds"], 2, 2)
    bad = by_hand(adapter, x, 500.0, cond["negative_prompt_embeds"], cond["negative_pooled_prompt_embeds"], 2, 2)
    assert torch.equal(velocity_at(adapter, cond, **CFG), bad + 4.0 * (good - bad)) and not torch.equal(good, bad)


@pytest.mark.parametrize("call", [{}, CFG])
def test_a_velocity_costs_one_forward_a_guidance_branch(call: dict[str, float]) -> None:
    adapter, branches = flux(), 1 + len(call)
    cond = condition(adapter, negative="low quality", **call)
    with counted(adapter) as forwards:
        rolled(adapter, cond, **call)
    assert forwards == [2] * STEPS * branches
    with counted(adapter) as forwards:
        velocity_at(adapter, cond, **call)
    assert forwards == [2] * branches


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("never_sampled", [False, True])
def test_the_gradient_reaches_every_lora_parameter(never_sampled: bool, checkpointing: bool) -> None:
    adapter = flux()
    policy = policy_over(adapter, checkpointing=checkpointing, finetune_type="lora", target_modules=("default",))
    cond = condition(adapter)
    if not never_sampled:
        rolled(adapter, cond)
    velocity_at(adapter, cond).square().mean().backward()
    assert [name for name, p in policy.trained().items() if p.grad is None or not p.grad.any()] == []


# -- the stock pipeline -----------------------------------------------------------------------------------------------------------


def test_an_ode_rollout_draws_the_stock_pipelines_pictures() -> None:
    adapter, seeds = flux(), (3, 4)
    ode = Sampler(DYNAMICS["ODE"], 0.0, (), lambda index, x: x, torch.float16)
    arguments = CALL | adapter.repeat(condition(adapter), 2)
    arguments.pop("max_sequence_length")
    pictures, _ = adapter.field.sample(arguments, STEPS, ode, [generator(0, "init", i) for i in seeds], output_type="np")
    generators = [generator(0, "init", i) for i in seeds]
    stock = flux_pipeline()(
        "a red circle", **CALL, num_images_per_prompt=2, num_inference_steps=STEPS, generator=generators, output_type="np"
    )
    assert np.array_equal(pictures, stock.images) and pictures.std() > 0
    assert not np.array_equal(pictures[0], pictures[1])


def test_evaluation_is_the_stock_pipeline() -> None:
    adapter = flux()
    cond = adapter.join([condition(adapter), condition(adapter, "two dogs")])
    rolled(adapter, condition(adapter))
    pictures = adapter.evaluate(cond, CALL, STEPS, [generator(0, "eval", i) for i in range(2)])
    generators = [generator(0, "eval", i) for i in range(2)]
    stock = flux_pipeline()(**cond, **CALL, num_inference_steps=STEPS, generator=generators, output_type="pil")
    assert all(np.array_equal(a, b) for a, b in zip(pictures, stock.images, strict=True))


def test_noise_levels_are_the_schedulers_own_table() -> None:
    table = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    table.set_timesteps(STEPS, sigmas=np.linspace(1, 1 / STEPS, STEPS), mu=calculate_shift(4))
    for step in rolled(flux(), condition(flux())):
        assert (step.s, step.s1, step.t) == (table.sigmas[step.index], table.sigmas[step.index + 1], table.timesteps[step.index])
        assert step.ceiling == table.sigmas[1]


@pytest.mark.parametrize("begin", [None, 2])
def test_a_recorder_finds_out_where_it_starts(begin: int | None) -> None:
    """Image-to-image starts inside the schedule; some pipelines say where, of the others only the time is known."""
    stock, seen = FlowMatchEulerDiscreteScheduler(), []
    stock.set_timesteps(4)
    if begin is not None:
        stock.set_begin_index(begin)
    recorder = Recorder(stock, lambda index, t, x, v, s, s1, ceiling: (seen.append((index, s, s1)), (x, None))[1])
    for t in recorder.timesteps[2:]:
        recorder.step(state(), t, state())
    assert seen == [(k, stock.sigmas[k], stock.sigmas[k + 1]) for k in (2, 3)]


def test_a_velocity_leaves_the_stock_scheduler_as_it_was() -> None:
    adapter = flux()
    stock, cond = adapter.pipe.scheduler, condition(adapter)
    rolled(adapter, cond)
    before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in vars(stock).items()}
    velocity_at(adapter, cond)
    assert adapter.pipe.scheduler is stock and before.keys() == vars(stock).keys()
    assert all(torch.equal(v, vars(stock)[k]) if isinstance(v, Tensor) else v == vars(stock)[k] for k, v in before.items())


def test_an_error_on_the_way_leaves_nothing_behind() -> None:
    adapter = flux()
    stock, cond = adapter.pipe.scheduler, condition(adapter)
    v = velocity_at(adapter, cond)

    def draw(index: int, t: Tensor, x: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        if index == 2:
            raise ZeroDivisionError
        return x, None

    with pytest.raises(ZeroDivisionError):
        adapter.sample(cond, CALL, STEPS, draw, [generator(0, "init", 0)])
    with pytest.raises(RuntimeError):  # tokens of another resolution, refused after the primer
        adapter.velocity(state(tokens=6), torch.tensor(500.0), torch.tensor(0.5), cond, CALL)
    assert adapter.pipe.scheduler is stock and not adapter.field.priming
    assert torch.equal(velocity_at(adapter, cond), v)


def test_a_pipeline_that_never_steps_is_refused() -> None:
    class Stepless:
        scheduler = None

        def set_progress_bar_config(self, disable: bool) -> None: ...

        def __call__(self, **arguments: Any) -> None: ...

    with pytest.raises(RuntimeError, match="Stepless did not call scheduler.step twice"):
        Field(Stepless(), ()).velocity(state(), torch.tensor(500.0), torch.tensor(0.5), {})


# -- noise -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamics", SDES)
def test_a_samples_noise_does_not_depend_on_its_neighbours(dynamics: str) -> None:
    """With the velocity held at 0 the states are functions of the noise alone, the initial one included."""
    adapter = flux()
    cond = condition(adapter)
    adapter.field.bare["transformer"].register_forward_hook(lambda module, args, out: (torch.zeros_like(out[0]),))
    four, two = (rolled(adapter, cond, dynamics, ids=ids) for ids in (range(4), (2, 3)))
    for a, b in zip(four, two, strict=True):
        assert torch.equal(a.x[2:], b.x) and torch.equal(a.x1[2:], b.x1)
        assert len(torch.unique(a.x1.flatten(1)[:, 0])) == 4
