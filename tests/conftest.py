"""What several files share: the tiny FLUX.1 on disk, its conditions, and policies over it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flow_factory.config import ModelConfig
from flow_factory.dynamics import DYNAMICS
from flow_factory.models.base import ModelAdapter
from flow_factory.models.flux1 import Flux1
from flow_factory.policy import Policy, build_policy
from flow_factory.randomness import generator, normal
from flow_factory.sampling import Noise, Sampler
from flow_factory.types import Cond, Row, Step
from tests.tiny.flux import flux_pipeline, save_flux

torch.set_num_threads(1)  # the models are tiny: a second thread costs more than it brings, most of all on a busy machine

CALL: dict[str, Any] = {"height": 32, "width": 32, "guidance_scale": 3.5, "max_sequence_length": 8}
CFG = {"true_cfg_scale": 4.0}
ETA, STEPS = 0.7, 5
NOISY = (0, 2, 3)
"""The first step, one that follows an ODE step, and one that follows a stochastic step."""
SDES = ["Flow-SDE", "Dance-SDE", "CPS"]


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


def policy_over(adapter: ModelAdapter, precision: str = "no", checkpointing: bool = False, seed: int = 0, **model: Any) -> Policy:
    """As a run builds it, but a LoRA's B is not 0 (the first B is, and would hide the whole LoRA)."""
    policy = fresh_policy(adapter, precision, checkpointing, seed, **model)
    numbers = torch.Generator().manual_seed(seed)
    for name, p in policy.trained().items():
        if "lora_B" in name:
            p.data = torch.randn(p.shape, generator=numbers).mul(0.1).to(p.dtype)
    return policy


def fresh_policy(adapter: ModelAdapter, precision: str = "no", checkpointing: bool = False, seed: int = 0, **model: Any) -> Policy:
    """As a run builds it."""
    config = ModelConfig(model_name_or_path="tiny", model_type="flux1", **model)
    return build_policy(adapter, config, precision, checkpointing, seed, torch.device("cpu"))


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
