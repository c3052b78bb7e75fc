"""The seam on a tiny FLUX.1 of stock classes: velocities are the transformer's, rollouts the pipeline's, and neither is changed by it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from flow_factory.core.dynamics import DYNAMICS
from flow_factory.core.randomness import generator
from flow_factory.core.sampling import Sampler
from flow_factory.core.scheduler_seam import Recorder
from flow_factory.core.velocity import VelocityField
from flow_factory.models.base import ModelAdapter
from tests.conftest import CALL, CFG, SDES, STEPS, condition, flux, policy_over, rolled, state, velocity_at
from tests.tiny.flux import flux_pipeline


@contextmanager
def counted(adapter: ModelAdapter) -> Iterator[list[int]]:
    """One entry a forward of the transformer: its batch size."""
    forwards: list[int] = []
    hook = adapter.field.bare["transformer"].register_forward_hook(lambda m, args, kw, out: forwards.append(len(out[0])), with_kwargs=True)
    yield forwards
    hook.remove()


# -- the velocity is the transformer's ------------------------------------------------------------------------------------------


def by_hand(adapter: ModelAdapter, x: Tensor, t: float, embeds: Tensor, pooled: Tensor, rows: int, columns: int) -> Tensor:
    """A call of the transformer as the FLUX.1 paper's code has it: clock in [0, 1], positions (0, row, column)."""
    ids = torch.tensor([[0, i, j] for i in range(rows) for j in range(columns)], dtype=torch.float32)
    n = len(x)
    out = adapter.field.bare["transformer"](
        hidden_states=x, timestep=torch.full((n,), t / 1000), guidance=torch.full((n,), 3.5), pooled_projections=pooled.expand(n, -1),
        encoder_hidden_states=embeds.expand(n, -1, -1), txt_ids=torch.zeros(embeds.shape[1], 3), img_ids=ids)  # fmt: skip
    return out.sample


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
    ode = Sampler(DYNAMICS["ODE"], 0.0, (), lambda index, x, purpose: x, torch.float16)
    arguments = CALL | adapter.repeat(condition(adapter), 2)
    arguments.pop("max_sequence_length")
    (pictures,), _ = adapter.field.sample(arguments, STEPS, ode, [generator(0, "init", i) for i in seeds], output_type="np")
    generators = [generator(0, "init", i) for i in seeds]
    stock = flux_pipeline()(
        "a red circle", **CALL, num_images_per_prompt=2, num_inference_steps=STEPS, generator=generators, output_type="np"
    )
    assert np.array_equal(pictures, stock.images) and pictures.std() > 0
    assert not np.array_equal(pictures[0], pictures[1])


def test_the_states_of_an_ode_rollout_are_kept_where_they_are_asked_for() -> None:
    adapter, cond = flux(), condition(flux())
    ode = Sampler(DYNAMICS["ODE"], 0.0, (), lambda index, x, purpose: x, torch.float16, kept=(0, 2, 3, 4))
    _, recorder = adapter.sample(cond, CALL, STEPS, ode, [generator(0, "init", i) for i in (3, 4)])
    kept = recorder.kept
    assert [step.index for step in kept] == [0, 2, 3, 4] and all(step.logp.isnan().all() for step in kept)
    assert all(torch.equal(a.x1, b.x) for a, b in zip(kept[1:], kept[2:], strict=False)) and torch.equal(kept[-1].x1, recorder.final)
    for step in kept:  # the state is what the model saw, not rounded to the dtype in which stochastic ones are kept
        v = adapter.velocity(step.x, step.t, step.s, cond, CALL)
        assert torch.equal(step.x1, step.x + (step.s1 - step.s) * v)


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
    recorder = Recorder(stock, lambda index, t, x, v, s, s1, ceiling, drawn: (seen.append((index, s, s1)), (x, None))[1])
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

    def draw(index: int, t: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, None]:
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
        VelocityField(Stepless(), ()).velocity(state(), torch.tensor(500.0), torch.tensor(0.5), {})


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
