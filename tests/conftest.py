"""What several files share: the tiny FLUX.1 on disk, its conditions, and policies over it."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from diffusers.models.attention_dispatch import DIFFUSERS_ATTN_BACKEND, AttentionBackendName, _AttentionBackendRegistry
from huggingface_hub import constants
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
from tests.tiny.leftovers import restored
from tests.turns import SHARES, of_other_days

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job ignores it, and so would all commands that tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the models are tiny: a second thread costs more than it brings, most of all on a busy machine

CALL: dict[str, Any] = {"height": 32, "width": 32, "guidance_scale": 3.5, "max_sequence_length": 8}
CFG = {"true_cfg_scale": 4.0}
ETA, STEPS = 0.7, 5
NOISY = (0, 2, 3)
"""The first step, one that follows an ODE step, and one that follows a stochastic step."""
SDES = ["Flow-SDE", "Dance-SDE", "CPS"]


# -- which tests run, and where ---------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    share = os.environ.get("SHARE") or str(date.today().toordinal())
    parser.addoption("--share", default=share, help=f"the exhaustive tests of share N (modulo {SHARES}), or all; $SHARE, else the date's")


def pytest_configure(config: pytest.Config) -> None:
    """Hides this machine's GPUs, unless the tests on a GPU are asked for: the others compare with what a CPU computes."""
    if not for_gpu(config.getoption("markexpr")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def for_gpu(expression: str) -> bool:
    """Whether `-m EXPRESSION` is of the tests on a GPU."""
    return "gpu" in expression and "not gpu" not in expression


def pytest_report_header(config: pytest.Config) -> str:
    share = config.getoption("share")
    return f"exhaustive tests: {'all' if share == 'all' else f'one of {SHARES}; the same ones again by --share {share}'}"


@pytest.hookimpl(tryfirst=True)  # before marks are asked for
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests of other days, see `turns`; those on a GPU want one."""
    for item in items:
        if item.get_closest_marker("gpu") and not (torch.cuda.is_available() or os.environ.get("FF_TEST_DEVICE") == "cpu"):
            item.add_marker(pytest.mark.skip("no GPU; FF_TEST_DEVICE=cpu runs what a CPU can of it"))
    out = of_other_days(items, config.getoption("share"))
    left_out = set(map(id, out))  # thousands of each
    items[:] = [item for item in items if id(item) not in left_out]
    config.hook.pytest_deselected(items=out)


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
def _own_hub_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An empty cache of the hub, here and in commands that tests start: nothing depends on what this machine has downloaded."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):  # before HF_HOME, which some tests set for their commands
        os.environ.pop(name, None)
    os.environ["HF_HOME"] = str(tmp_path_factory.mktemp("hf"))
    constants.HF_HUB_CACHE = str(Path(os.environ["HF_HOME"], "hub"))  # read from the environment at import


@pytest.fixture(scope="session", autouse=True)
def _nowhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is made for several tests is made in an empty folder, wherever pytest was started."""
    os.chdir(tmp_path_factory.mktemp("nowhere"))


@pytest.fixture(scope="module", autouse=True)
def _own_accelerator() -> Iterator[None]:
    """A module's runs keep nothing of another's precision: accelerate has one for the process, and refuses a second."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _own_process() -> Iterator[None]:
    with restored():
        yield


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
