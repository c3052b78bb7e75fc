"""GRPO-Guard: values and gradients against the references, the closed form of its ratio, where it is undefined."""

import pytest
import torch
from torch import Tensor

from flow_factory.algorithms.losses.guard import guard_objective, normalised_log_ratio, step_weight
from flow_factory.core.dynamics import DYNAMICS, per_sample
from tests.vectors import close, golden, gradient, normals

REL = 1e-6  # the references' noise levels are float32 timesteps over 1000
ONE = torch.tensor(1.0, dtype=torch.float64)


def replay(k: int, bias: str = "sample") -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, Tensor]:
    """The file, the velocity (leaf), its log-ratio, the stored noise levels before and after, of the k-th step of `07`."""
    g, kernel = golden("07_grpo_guard"), DYNAMICS["Flow-SDE"]
    i, v = int(g["steps"][k]), g["v_new"][k].clone().requires_grad_()
    s, s1, ceiling = g["sigmas"][i], g["sigmas"][i + 1], g["sigmas"][1]
    mean, std = kernel.step(g["x"][k], v, s, s1, float(g["noise_level"]), ceiling)
    logp = kernel.log_prob(g["next_latents"][k], mean, std)
    ratio = normalised_log_ratio(kernel, logp, g["log_prob_old"][k], mean, g["mean_old"][k], std, bias)  # type: ignore[arg-type]
    return g, v, ratio, s, s1


@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize("clip", ["0.0001", "0.01"])
def test_the_objective_is_the_references(k: int, clip: str) -> None:
    """Unweighted the public Flow-Factory's, weighted verl-omni's and flow_grpo's one sample at a time."""
    g, v, log_ratio, s, s1 = replay(k)
    advantage, clip_range, weight = g["advantages"].clamp(-5, 5), (-float(clip), float(clip)), step_weight(DYNAMICS["Flow-SDE"], s, s1)
    loss, ratio = guard_objective(log_ratio, advantage, clip_range, None)
    close(ratio, g[f"clip{clip}_ratio"][k], REL)
    close(ratio, g[f"clip{clip}_fgB1_ratio"][k], REL)
    close(loss.mean(), g[f"clip{clip}_policy_loss"][k], REL)
    close(gradient(loss.mean(), v), g[f"clip{clip}_grad"][k], 1e-5)
    loss, ratio = guard_objective(replay(k)[2], advantage, clip_range, weight)
    close(loss.mean(), g[f"clip{clip}_verl_loss"][k], REL)
    close(loss.mean(), g[f"clip{clip}_fgB1_loss"][k], REL)
    close(ratio.mean(), g[f"clip{clip}_verl_ratio"][k], REL)


@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize("clip", ["0.0001", "0.01"])
@pytest.mark.parametrize(("bias", "tag"), [("sample", "verl"), ("batch", "fg")])
def test_the_gradient_is_the_references(k: int, clip: str, bias: str, tag: str) -> None:
    """`bias="batch"` is flow_grpo's script with its micro-batch of four."""
    g, v, log_ratio, s, s1 = replay(k, bias)
    weight = step_weight(DYNAMICS["Flow-SDE"], s, s1)
    loss, ratio = guard_objective(log_ratio, g["advantages"].clamp(-5, 5), (-float(clip), float(clip)), weight)
    close(loss.mean(), g[f"clip{clip}_{tag}_loss"][k], REL)
    close(gradient(loss.mean(), v), g[f"clip{clip}_{tag}_grad"][k], 1e-5)
    if bias == "batch":
        close(ratio, g[f"clip{clip}_fg_ratio"][k], REL)


@pytest.mark.parametrize(("name", "eta"), [("Flow-SDE", 0.7), ("Dance-SDE", 0.3), ("CPS", 0.8)])
def test_the_log_ratio_is_the_mean_product_of_noise_and_the_mean_that_moved(name: str, eta: float) -> None:
    """log r~ = mean_d (e dmu) whatever the scale of the kernel's log-probability; its gradient is e dmu / dv / D."""
    kernel, s, s1 = DYNAMICS[name], 0.7 * ONE, 0.6 * ONE
    x, v_old, v, noise = normals(4, 3, 2, 5, 6)
    v.requires_grad_()
    old, std = kernel.step(x, v_old, s, s1, eta, s)
    x1, (mean, _) = old + std * noise, kernel.step(x, v, s, s1, eta, s)
    log_ratio = normalised_log_ratio(kernel, kernel.log_prob(x1, mean, std), kernel.log_prob(x1, old, std), mean, old, std)
    close(log_ratio, per_sample(noise * (mean - old)).detach())
    slope = kernel.step(torch.zeros(1, 1).double(), torch.ones(1, 1).double(), s, s1, eta, s)[0]
    close(gradient(log_ratio.sum(), v), noise * slope / x[0].numel())


def test_levels_may_differ_between_samples() -> None:
    """(B, 1, ..., 1) levels give (B,) ratios: no (B, B) by broadcasting."""
    kernel, s = DYNAMICS["Flow-SDE"], torch.tensor([0.9, 0.5, 0.3], dtype=torch.float64).reshape(3, 1, 1)
    x, v_old, v, noise = normals(4, 3, 4, 5)
    old, std = kernel.step(x, v_old, s, s - 0.1, 0.7, s)
    x1, (mean, _) = old + std * noise, kernel.step(x, v, s, s - 0.1, 0.7, s)
    log_ratio = normalised_log_ratio(kernel, kernel.log_prob(x1, mean, std), kernel.log_prob(x1, old, std), mean, old, std)
    close(log_ratio, per_sample(noise * (mean - old)))
    loss, _ = guard_objective(log_ratio, torch.ones(3).double(), (-1.0, 9.0), step_weight(kernel, s, s - 0.1))
    assert loss.shape == (3,)
    close(loss, -log_ratio.exp() * 10)


def test_unchanged_weights_have_ratio_one() -> None:
    logp, mean = normals(4), normals(4, 3)
    log_ratio = normalised_log_ratio(DYNAMICS["Flow-SDE"], logp, logp, mean, mean, 0.3 * ONE)
    assert torch.equal(guard_objective(log_ratio, logp, (-2e-6, 2e-6), None)[1], torch.ones(4).double())


@pytest.mark.parametrize(("name", "std"), [("ODE", 1.0), ("Flow-SDE", 0.0), ("CPS", 0.0)])
def test_a_deterministic_step_has_no_ratio(name: str, std: float) -> None:
    with pytest.raises(ValueError, match="take a stochastic dynamics"):
        normalised_log_ratio(DYNAMICS[name], normals(2), normals(2), normals(2, 3), normals(2, 3), std * ONE)


def test_cps_has_no_step_weight() -> None:
    with pytest.raises(ValueError, match="take Flow-SDE or Dance-SDE, or switch the weight off"):
        step_weight(DYNAMICS["CPS"], ONE, 0.5 * ONE)
