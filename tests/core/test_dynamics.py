"""Kernels against the references' numbers, against torch.distributions, and against what they must conserve."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from flow_factory.core.dynamics import DYNAMICS, Kernel, flow_sde, like, per_sample, sample

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS = [("01_flow_sde", "Flow-SDE"), ("01b_flow_sde_lin", "Flow-SDE"), ("02_dance_sde", "Dance-SDE"), ("03_cps", "CPS")]
STOCHASTIC = ["Flow-SDE", "Dance-SDE", "Flash-SDE", "CPS"]


def golden(name: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {k: torch.from_numpy(np.asarray(a)).to(dtype) for k, a in arrays.items() if a.dtype.kind in "fi"}


def close(actual: Tensor, expected: Tensor, rel: float) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=rel, atol=rel * float(expected.abs().max()))


def closed_form_gradient(name: str, x1: Tensor, mean: Tensor, std: Tensor, s: Tensor, s1: Tensor) -> Tensor:
    """d log_prob / d v, by hand: mean is linear in v with the factor cv."""
    if name == "CPS":
        cv = -s * (1 - s1) + (1 - s) * (s1**2 - std**2).sqrt()
        return 2 * (x1 - mean) * cv / mean[0].numel()
    g2 = std**2 / (s - s1)
    cv = (1 + g2 * (1 - s) / (2 * s)) * (s1 - s)
    return (x1 - mean) * cv / std**2 / mean[0].numel()


@pytest.mark.parametrize(("file", "name"), STEPS)
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_step_and_log_prob_match_the_reference(file: str, name: str, dtype: torch.dtype, rel: float) -> None:
    g, kernel, tag = golden(file, dtype), DYNAMICS[name], {torch.float64: "f64", torch.float32: "f32"}[dtype]
    for k in range(len(g["step_index"])):
        s, s1, eta = g["sigma"][k], g["sigma_prev"][k], float(g["noise_level"])
        x, v_new = g["sample"][k], g["model_output_new"][k].requires_grad_()
        x1, logp, mean = sample(kernel, x, g["model_output"][k], s, s1, eta, g["sigma_max"], g["noise"][k], dtype)
        close(mean, g[f"mean_{tag}"][k], rel)
        close(x1, g[f"next_{tag}"][k], rel)
        close(logp, g[f"logp_{tag}"][k], rel)
        mean_new, std = kernel.step(x, v_new, s, s1, eta, g["sigma_max"])
        scale = 1 if name == "CPS" else (s - s1).sqrt()
        close(std, g[f"std_dev_t_{tag}"][k] * scale, rel)
        replayed = kernel.log_prob(g[f"next_{tag}"][k], mean_new, std)
        close(replayed, g[f"logp_replay_{tag}"][k], rel)
        (gradient,) = torch.autograd.grad(replayed.sum(), v_new)
        close(gradient, g[f"grad_{tag}"][k], rel)
        close(gradient, closed_form_gradient(name, g[f"next_{tag}"][k], mean_new.detach(), std, s, s1), rel)


def test_dance_sde_is_dancegrpos_own_step() -> None:
    g, own = golden("02_dance_sde", torch.float64), golden("02b_dance_native", torch.float64)
    for k in range(len(g["step_index"])):
        step = (g["sample"][k], g["model_output"][k], g["sigma"][k], g["sigma_prev"][k], 0.3, g["sigma_max"])
        x1, logp, _ = sample(DYNAMICS["Dance-SDE"], *step, g["noise"][k], torch.float64)
        close(x1, own["next_f64"][k], 1e-9)
        close(logp, own["logp_f64"][k], 2e-8)  # DanceGRPO's normaliser, log sqrt(2 pi) with a float32 pi, is 1.56e-8 too small


@pytest.mark.parametrize("name", DYNAMICS)
@pytest.mark.parametrize("schedule", ["sd3", "lin"])
def test_without_noise_every_kernel_is_the_euler_step_of_diffusers(name: str, schedule: str) -> None:
    g = golden("04_ode", torch.float32)
    x, sigmas = g["x_init"], g[f"{schedule}_sigmas"]
    for i, v in enumerate(g["model_output"]):
        x, std = DYNAMICS[name].step(x, v, sigmas[i], sigmas[i + 1], 0.0, sigmas[1])
        assert not std.any()
        close(x, g[f"{schedule}_latents"][i + 1], 2e-5)


def test_the_first_noise_level_is_capped_where_a_schedule_starts_just_below_one() -> None:
    """Wan's UniPC tables start at 1 - 1e-6; a test for s == 1 misses them and std comes out as 3.71."""
    g = golden("04b_wan_sde", torch.float64)
    reference, s, x = g["ff_unipc_std_dt_stdsqrtdt_steps0to3"], g["timesteps"] / 1000, torch.zeros(1, 1)
    for i in range(4):
        _, std = flow_sde(x, x, s[i], s[i + 1], 0.9, s[1])
        close(std, torch.tensor(0.89) if i == 0 else reference[i, 2], 2e-2 if i == 0 else 1e-6)
    assert reference[0, 2] > 3.7
    assert flow_sde(x, x, g["sigmas"][0], g["sigmas"][1], 0.9, g["sigmas"][1])[1] < 0.9


@pytest.mark.parametrize(("name", "eta"), [("Flow-SDE", 0.7), ("Dance-SDE", 0.3), ("CPS", 0.8)])
@pytest.mark.parametrize(("window", "noisy"), [("all", range(9)), ("w2_5", range(2, 5))])
def test_whole_rollouts(name: str, eta: float, window: str, noisy: range) -> None:
    g = golden("17_rollout", torch.float64)
    x, sigmas = g["x_init"], g["sigmas"]
    for i in range(10):
        kernel, s, s1 = DYNAMICS[name if i in noisy else "ODE"], sigmas[i], sigmas[i + 1]
        v = torch.einsum("dc,bchw->bdhw", g["A"], x) + s * g["b"] + g["c"]
        mean, std = kernel.step(x, v, s, s1, eta, sigmas[1])
        x = mean + std * g["noise"][i]
        close(mean, g[f"{name}_{window}_means"][i], 1e-7)
        close(x, g[f"{name}_{window}_latents"][i + 1], 1e-7)
        if i in noisy:
            close(kernel.log_prob(x, mean, std), g[f"{name}_{window}_logp"][i], 1e-7)


def replay_errors(storage: torch.dtype, logp_after_rounding: bool) -> Tensor:
    """(9,) largest |ratio - 1| of each step when the stored states of a Flow-SDE rollout are replayed with the same velocity field."""
    torch.manual_seed(0)
    sigmas, errors, kernel = golden("01_flow_sde")["sigmas"].float(), [], DYNAMICS["Flow-SDE"]
    x, mix = torch.randn(4, 4096).to(storage), torch.randn(8, 4096) / 3
    for s, s1 in zip(sigmas[:9], sigmas[1:], strict=False):
        v = torch.tanh(x.float() @ mix.T) @ mix + s * x.float()
        step, noise = (x.float(), v, s, s1, 0.7, sigmas[1]), torch.randn(4, 4096)
        x1, logp, mean = sample(kernel, *step, noise, storage if logp_after_rounding else torch.float32)
        x = x1.to(storage)
        errors.append((kernel.log_prob(x.float(), *kernel.step(*step)) - logp).expm1().abs().max())
    return torch.stack(errors)


@pytest.mark.parametrize(("storage", "tag"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16"), (torch.float16, "fp16")])
def test_replay_of_rounded_states_gives_ratio_one(storage: torch.dtype, tag: str) -> None:
    reference = golden("16_replay_precision")
    assert not replay_errors(storage, logp_after_rounding=True).any()
    assert not reference[f"{tag}_logp_after_rounding_max_abs_ratio_minus_1"].any()
    wrong, expected = replay_errors(storage, logp_after_rounding=False), reference[f"{tag}_logp_before_rounding_max_abs_ratio_minus_1"]
    assert (wrong.max() == 0) == (expected.max() == 0)
    assert expected.max() / 10 <= wrong.max() <= expected.max() * 10, "the order of rounding and log-prob matters as much as it did there"


def test_log_prob_is_the_mean_log_density_of_torch_distributions() -> None:
    torch.manual_seed(0)
    x1, mean = torch.randn(3, 4, 5, 2, dtype=torch.float64), torch.randn(3, 4, 5, 2, dtype=torch.float64)
    for std in (torch.tensor(0.3, dtype=torch.float64), like(torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64), x1)):
        for name in ("Flow-SDE", "Dance-SDE"):
            close(DYNAMICS[name].log_prob(x1, mean, std), per_sample(Normal(mean, std).log_prob(x1)), 1e-12)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_precision_is_the_curvature_of_log_prob(name: str) -> None:
    torch.manual_seed(0)
    kernel, std = DYNAMICS[name], like(torch.tensor([0.1, 0.8], dtype=torch.float64), torch.empty(2, 6))
    old, new, noise = torch.randn(3, 2, 6, dtype=torch.float64)
    x1, k = old + std * noise, kernel.precision(std).flatten()
    difference = kernel.log_prob(x1, new, std) - kernel.log_prob(x1, old, std)
    centred = (difference + k * per_sample((new - old) ** 2)) / (2 * k * std.flatten())
    close(centred, per_sample(noise * (new - old)), 1e-12)


def test_a_deterministic_step_has_no_log_prob() -> None:
    with pytest.raises(ValueError, match="no log-probability"):
        DYNAMICS["ODE"].log_prob(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(()))


@pytest.mark.parametrize("name", DYNAMICS)
def test_per_sample_noise_levels_equal_one_call_each(name: str) -> None:
    torch.manual_seed(0)
    x, v, s = torch.randn(3, 4, 5), torch.randn(3, 4, 5), torch.tensor([1.0, 0.7, 0.2])
    s1, ceiling = s * 0.8, torch.tensor([0.8, 0.9, 0.9])
    mean, std = DYNAMICS[name].step(x, v, like(s, x), like(s1, x), 0.6, like(ceiling, x))
    for b in range(3):
        alone, alone_std = DYNAMICS[name].step(x[b : b + 1], v[b : b + 1], s[b], s1[b], 0.6, ceiling[b])
        assert torch.equal(alone[0], mean[b]) and torch.equal(alone_std, std[b].squeeze())


def test_cps_keeps_the_coefficients_of_a_perfect_velocity_and_the_sdes_do_not() -> None:
    x0, noise = torch.randn(2, 1, 64, dtype=torch.float64).unbind()
    s, s1 = torch.tensor(0.278048784, dtype=torch.float64), torch.tensor(0.008928571, dtype=torch.float64)
    total = {}
    for name, eta in (("Flow-SDE", 0.7), ("Dance-SDE", 0.3), ("CPS", 0.8)):
        mean, std = DYNAMICS[name].step((1 - s) * x0 + s * noise, noise - x0, s, s1, eta, s)
        left = (mean - (1 - s1) * x0) / noise
        close(left, left[0, :1].expand_as(left), 1e-9)
        total[name] = float((left[0, 0] ** 2 + std**2).sqrt())
    assert total["CPS"] == pytest.approx(float(s1), rel=1e-12)
    assert total["Flow-SDE"] == pytest.approx(0.240, abs=1e-3) and total["Dance-SDE"] == pytest.approx(0.159, abs=1e-3)


def final_variance(kernel: Kernel, eta: float, steps: int, variance: float) -> float:
    """Variance of the samples for data N(0, variance), whose exact velocity is linear in x: the kernel's moments, no Monte Carlo."""
    s, one, total = torch.linspace(1, 0, steps + 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64), 1.0
    for i in range(steps):
        slope = (s[i] - (1 - s[i]) * variance) / ((1 - s[i]) ** 2 * variance + s[i] ** 2)
        mean, std = (kernel if i < steps - 1 else DYNAMICS["ODE"]).step(one, slope * one, s[i], s[i + 1], eta, s[1])
        total = total * float(mean) ** 2 + float(std) ** 2
    return total


@pytest.mark.parametrize(("name", "eta"), [("ODE", 0.0), ("Flow-SDE", 0.7), ("Dance-SDE", 0.3), ("CPS", 0.5 / math.sqrt(40))])
def test_on_a_fine_grid_the_samples_have_the_distribution_of_the_data(name: str, eta: float) -> None:
    """CPS's eta is a share per step, not per unit of time: it has a limit only if it falls with the square root of the step."""
    assert final_variance(DYNAMICS[name], eta, 2000, 0.25) == pytest.approx(0.25, rel=1e-2)
