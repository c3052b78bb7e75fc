"""The installed diffusers still makes the noise levels that every other golden file was computed on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

GOLDEN = Path(__file__).parents[1] / "golden"
CASES: dict[str, Any] = json.loads((GOLDEN / "05_sigmas.json").read_text())
EULER = [k for k, case in CASES.items() if case["scheduler"] == "FlowMatchEuler"]
UNIPC = [
    k for k, case in CASES.items() if case["scheduler"] == "UniPC"
]  # not the six of diffusers <= 0.36, which cannot be installed beside


@pytest.fixture(scope="module")
def tables() -> Any:
    with np.load(GOLDEN / "05_sigmas.npz") as g:
        yield g


def matches(tables: Any, name: str, scheduler: Any) -> None:
    np.testing.assert_allclose(scheduler.sigmas.numpy(), tables[f"{name}/sigmas"], rtol=2e-6, atol=2e-7)
    np.testing.assert_allclose(scheduler.timesteps.numpy(), tables[f"{name}/timesteps"], rtol=2e-6, atol=2e-4)


@pytest.mark.parametrize("name", EULER)
def test_euler_tables(tables: Any, name: str) -> None:
    case = CASES[name]
    scheduler: Any = FlowMatchEulerDiscreteScheduler(**case["config"])
    n = case["n"]
    if name.startswith("z_image_sigma_min0"):
        scheduler.sigma_min = 0.0
    sigmas = np.linspace(1, 1 / n, n) if case["sigmas_in"] else None
    scheduler.set_timesteps(n, sigmas=sigmas, mu=case.get("mu"))
    matches(tables, name, scheduler)


@pytest.mark.parametrize("name", UNIPC)
def test_unipc_tables(tables: Any, name: str) -> None:
    case = CASES[name]
    scheduler: Any = UniPCMultistepScheduler(**case["config"], flow_shift=case["flow_shift"])
    scheduler.set_timesteps(case["n"])
    matches(tables, name, scheduler)
    assert scheduler.timesteps.dtype == torch.int64, "truncated: noise levels are read from the table, not from these"


@pytest.mark.parametrize("name", [k for k in EULER if "mu" in CASES[k]])
def test_the_shift_follows_the_number_of_tokens(name: str) -> None:
    case, config = CASES[name], CASES[name]["config"]
    if "mu_rule" in case:
        mu = compute_empirical_mu(case["seq_len"], case["n"])
    else:
        mu = calculate_shift(
            *(case["seq_len"], *(config[k] for k in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")))
        )
    assert mu == pytest.approx(case["mu"], rel=1e-12)
