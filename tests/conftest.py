"""What several files share: the tiny FLUX.1 on disk, its conditions, and policies over it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flow_factory.config import ModelConfig
from flow_factory.models.base import ModelAdapter
from flow_factory.models.flux1 import Flux1
from flow_factory.policy import Policy, build_policy
from flow_factory.types import Cond, Row
from tests.tiny.flux import flux_pipeline, save_flux

CALL: dict[str, Any] = {"height": 32, "width": 32, "guidance_scale": 3.5, "max_sequence_length": 8}


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
