"""What several files share: the tiny FLUX.1 on disk, its conditions, and policies over it."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
import torch.distributed as dist
from diffusers.models.attention_dispatch import DIFFUSERS_ATTN_BACKEND, AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor

from flow_factory.config import ModelConfig
from flow_factory.core.dynamics import DYNAMICS
from flow_factory.core.randomness import generator, normal
from flow_factory.core.sampling import Noise, Sampler
from flow_factory.models.base import ModelAdapter
from flow_factory.models.flux1 import Flux1
from flow_factory.policy.gradient_checkpointing import Setting
from flow_factory.policy.policy import Policy, build_policy
from flow_factory.types import Cond, Row, Step
from flow_factory.utils.user_code import STRANGERS
from tests.tiny.flux import flux_pipeline, save_flux

torch.set_num_threads(1)  # the models are tiny: a second thread costs more than it brings, most of all on a busy machine

CALL: dict[str, Any] = {"height": 32, "width": 32, "guidance_scale": 3.5, "max_sequence_length": 8}
CFG = {"true_cfg_scale": 4.0}
ETA, STEPS = 0.7, 5
NOISY = (0, 2, 3)
"""The first step, one that follows an ODE step, and one that follows a stochastic step."""
SDES = ["Flow-SDE", "Dance-SDE", "CPS"]


# -- which tests run, and where ---------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
SHARES = 40
"""Of the exhaustive tests, the gate runs one of so many."""


THINNED = {
    "test_an_example_is_for_gpus_of_80_gb_and_every_key_in_it_has_an_effect": 6,
    "test_an_epoch_costs": 4,
    "test_evaluation_draws_the_stock_pipelines_pictures": 4,
    "test_the_log_prob_of_a_replay_is_that_of_the_rollout": 4,
    "test_the_gradient_of_full_training_misses_the_dead_ends_and_nothing_else": 4,
    "test_a_saved_lora_in_a_stock_pipeline_draws_what_a_run_evaluates": 4,
    "test_a_row_encoded_twice_and_a_row_from_the_cache_have_the_same_velocity": 4,
    "test_rows_of_other_pictures_and_prompts_replay_exactly_in_any_order": 4,
    "test_an_ode_rollout_ends_where_the_stock_loop_ends": 4,
    "test_a_saved_lora_comes_back_into_a_fresh_policy": 2,
    "test_the_old_policy_is_the_one_that_sampled_to_the_bit": 4,
    "test_groups_of_no_variance_are_left_out_and_the_update_is_the_same": 4,
    "test_pictures_are_those_of_the_weights_that_roll_out": 4,
    "test_a_checkpoint_draws_what_its_pipeline_draws": 2,
    "test_samples_depend_on_all_that_is_asked_for": 2,
    "test_damaged_files_are_taken_or_refused_in_a_line": 3,
    "test_static_parts_are_what_a_run_holds": 3,
    "test_training_sees_what_sampling_saw_and_the_update_takes_effect": 3,
    "test_a_step_and_a_velocity_cost_one_forward_a_guidance_branch": 3,
    "test_the_size_of_a_micro_batch_does_not_change_the_update": 3,
    "test_before_any_update_the_policy_is_the_reference_of_start_alone": 3,
    "test_a_model_that_never_sampled_replays_exactly": 3,
    "test_a_run_learns_and_is_on_policy": 3,
    "test_activations_are_near_those_of_a_traced_forward_and_backward": 2,
    "test_the_gradient_reaches_every_lora_parameter": 3,
    "test_an_epoch_costs_its_samples_and_its_points_and_nothing_else": 3,
    "test_a_picture_is_refused_by_its_size_alone_or_drawn": 3,
    "test_latents_stored_in_fewer_bits_replay_exactly": 3,
    "test_an_old_policy_moves_after_an_epoch_by_the_optimiser_steps_taken": 3,
    "test_every_script_of_the_pages_runs": 3,
    "test_what_an_epoch_logs": 3,
    "test_a_size_that_cannot_be_is_refused_and_the_nearest_one_is_drawn": 3,
    "test_a_published_architecture_has_the_default_targets_and_the_dead_ends": 3,
    "test_a_hook_that_raises_is_one_line_and_a_trace_where_that_is_asked_for": 3,
    "test_conditions_are_encoded_once_a_micro_batch": 3,
    "test_training_without_guidance_costs_one_forward": 3,
    "test_a_pipeline_whose_last_step_returns_the_state_of_media_decodes_their_latents": 3,
    "test_a_gradient_reaches_every_linear_layer": 3,
    "test_an_answer_that_is_none_is_asked_for_again_then_masked_or_the_run_stops": 2,
}
"""Grids of the fast part of which it runs every n-th cell; the others are exhaustive."""


def pytest_addoption(parser: pytest.Parser) -> None:
    share = os.environ.get("SHARE") or str(date.today().toordinal())
    parser.addoption("--share", default=share, help=f"the exhaustive tests of share N (modulo {SHARES}), or all; $SHARE, else the date's")


def pytest_report_header(config: pytest.Config) -> str:
    share = config.getoption("share")
    return f"exhaustive tests: {'all' if share == 'all' else f'one of {SHARES}; the same ones again by --share {share}'}"


@pytest.hookimpl(tryfirst=True)  # before marks are asked for
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the exhaustive tests of other shares, each of which comes up within `SHARES` days; those on a GPU want one."""
    for item in items:
        if item.get_closest_marker("gpu") and not (torch.cuda.is_available() or os.environ.get("FF_TEST_DEVICE") == "cpu"):
            item.add_marker(pytest.mark.skip("no GPU; FF_TEST_DEVICE=cpu runs what a CPU can of it"))
    thin(items)
    out = [item for item in items if item.get_closest_marker("exhaustive") and not in_share(item.nodeid, config.getoption("share"))]
    items[:] = [item for item in items if item not in out]
    config.hook.pytest_deselected(items=out)


def thin(items: list[pytest.Item]) -> None:
    """Marks the cells that `THINNED` leaves to the exhaustive part."""
    seen = Counter[str]()
    for item in items:
        name = item.nodeid.rpartition("::")[2].partition("[")[0]
        if name in THINNED and not any(map(item.get_closest_marker, ("exhaustive", "slow"))):
            if seen[name] % THINNED[name]:
                item.add_marker(pytest.mark.exhaustive)
            seen[name] += 1


def in_share(test: str, share: str) -> bool:
    return share == "all" or crc32(test.encode()) % SHARES == int(share) % SHARES


def cells(*given: Any) -> pytest.MarkDecorator:
    """`cells("model", "engine", CASES, MORE)`: a test for each of these cases; those that are also in `MORE` are exhaustive."""
    *names, cases, more = given
    return pytest.mark.parametrize(names, [pytest.param(*c, marks=pytest.mark.exhaustive) if c in more else c for c in cases])


def chosen(request: pytest.FixtureRequest, *names: str) -> set[tuple[Any, ...]]:
    """The cases of these parameters that this module's tests run: what they share does no more than they ask for."""
    mine = [item.callspec.params for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    return {tuple(params[name] for name in names) for params in mine if params.keys() == set(names)}


@pytest.fixture(scope="session", autouse=True)
def _own_kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Inductor's, in a folder of these tests: a file that a killed process has left half-written in the shared one is an error to torch."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))  # torch has set its own already


@pytest.fixture(scope="session", autouse=True)
def _nowhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is made for several tests is made in an empty folder, wherever pytest was started."""
    os.chdir(tmp_path_factory.mktemp("nowhere"))


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test runs in its own folder. Modules that it writes there come before those that a user keeps in the root.

    They go with it, and so do the program's memory of whose classes it has called, a process group, and the choice of an attention
    backend, which diffusers keeps for the process.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*(p for p in sys.path if p not in ("", str(ROOT))), str(tmp_path), str(ROOT)])
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    STRANGERS.clear()
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName(DIFFUSERS_ATTN_BACKEND))
    if dist.is_initialized():  # by FSDP of one process, say
        dist.destroy_process_group()


# -- the tiny models of rewards ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """`keys("HPSv2")`: an entry's own keys, which lead to a tiny checkpoint that is made once."""
    from tests.tiny.reward_models import SAVERS

    return cache(lambda name: SAVERS[name](tmp_path_factory.mktemp(name)) if name in SAVERS else {})


# -- the tiny FLUX.1 --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `flux()`; not to be written to."""
    return save_flux(tmp_path_factory.mktemp("flux"))


def flux(dtype: torch.dtype = torch.float32) -> Flux1:
    """The same weights at every call."""
    return Flux1(flux_pipeline().to(dtype))


@torch.no_grad()
def condition(adapter: ModelAdapter, prompt: str = "a red circle", negative: str | None = None, **call: Any) -> Cond:
    return adapter.encode(Row(0, prompt, negative), CALL | call)


def policy_over(adapter: ModelAdapter, precision: str = "no", checkpointing: Setting = False, seed: int = 0, **model: Any) -> Policy:
    """As a run builds it, but a LoRA's B is not 0 (the first B is, and would hide the whole LoRA)."""
    policy = fresh_policy(adapter, precision, checkpointing, seed, **model)
    numbers = torch.Generator().manual_seed(seed)
    for name, p in policy.trained().items():
        if "lora_B" in name:
            p.data = torch.randn(p.shape, generator=numbers).mul(0.1).to(p.dtype)
    return policy


def fresh_policy(
    adapter: ModelAdapter, precision: str = "no", checkpointing: Setting = False, seed: int = 0, device: str = "cpu",
    roles: Sequence[str] = (), **model: Any,
) -> Policy:  # fmt: skip
    """As a run builds it; what is trained comes to the device by the engine."""
    config = ModelConfig(model_name_or_path="tiny", model_type="flux1", **model)
    return build_policy(adapter, config, precision, checkpointing, seed, torch.device(device), roles=roles)


def state(n: int = 2, tokens: int = 4, seed: int = 0) -> Tensor:
    """Latents of n 32 x 32 pictures."""
    return torch.randn(n, tokens, 16, generator=torch.Generator().manual_seed(seed))


def velocity_at(adapter: ModelAdapter, cond: Cond, dtype: torch.dtype = torch.float32, **call: Any) -> Tensor:
    """v at `state()` in the middle of the schedule."""
    return adapter.velocity(state().to(dtype), torch.tensor(500.0), torch.tensor(0.5), cond, CALL | call)


def keyed_noise(ids: Sequence[int]) -> Noise:
    """Noise of a rollout of the samples with these ids."""
    return lambda index, x, purpose: torch.stack([normal(x.shape[1:], torch.float32, "cpu", 0, purpose, i, index) for i in ids])


def log_prob_at(v: Tensor, step: Step, dynamics: str) -> Tensor:
    """Of a kept transition, with the velocity v."""
    kernel = DYNAMICS[dynamics]
    return kernel.log_prob(step.x1.float(), *kernel.step(step.x.float(), v.float(), step.s, step.s1, ETA, step.ceiling))


def rolled(
    adapter: ModelAdapter,
    cond: Cond,
    dynamics: str = "Flow-SDE",
    storage: torch.dtype = torch.float32,
    ids: Sequence[int] = (0, 1),
    **call: Any,
) -> list[Step]:
    """The kept transitions of a rollout whose noise is keyed by sample id."""
    sampler = Sampler(DYNAMICS[dynamics], ETA, NOISY, keyed_noise(ids), storage)
    _, recorder = adapter.sample(cond, CALL | call, STEPS, sampler, [generator(0, "init", i) for i in ids])
    assert [step.index for step in recorder.kept] == list(NOISY)
    return recorder.kept
