"""Shared loss terms: values and gradients against the references, closed forms by hand, torch.distributions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from flow_factory.algorithms.losses import approx_kl, clip_fractions, clipped_objective, kl_exact, kl_v, kl_x
from flow_factory.core.dynamics import DYNAMICS, like, per_sample

GOLDEN = Path(__file__).parents[1] / "golden"
KERNEL = DYNAMICS["Flow-SDE"]


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {k: torch.from_numpy(np.asarray(a)) for k, a in arrays.items()}


def close(actual: Tensor, expected: Tensor, rel: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=rel, atol=rel * float(expected.detach().abs().max()))


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss, leaf)[0]


def test_clipped_objective_is_flow_grpos() -> None:
    g = golden("06b_grpo_loss")
    advantage, clip = g["advantages"].clamp(-5, 5), float(g["clip_range"])
    losses = []
    for t in range(3):
        new = g["log_prob_new"][:, t].clone().requires_grad_()
        loss, ratio = clipped_objective(new, g["log_prob_old"][:, t], advantage, (-clip, clip))
        close(ratio, g["ratio"][:, t])
        close(loss, torch.maximum(g["unclipped_loss"], g["clipped_loss"])[:, t])
        close(loss.mean(), g["policy_loss"][t])
        close(gradient(loss.mean(), new), g["grad"][:, t])
        losses.append(loss.mean())
    close(torch.stack(losses).mean(), g["total_loss"])


@pytest.mark.parametrize(("advantage", "ratio", "slope"), [
    (2.0, 1.0, -2.0), (2.0, 1.25, -2.5), (2.0, 1.35, 0.0), (2.0, 0.5, -1.0),
    (-2.0, 1.0, 2.0), (-2.0, 0.95, 1.9), (-2.0, 0.85, 0.0), (-2.0, 1.5, 3.0), (0.0, 1.5, 0.0),
])  # fmt: skip
def test_the_gradient_of_an_asymmetric_clip(advantage: float, ratio: float, slope: float) -> None:
    """-A r inside (1 - .1, 1 + .3); outside it 0 where the advantage is already served, -A r where the ratio has to come back."""
    new = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    loss, _ = clipped_objective(new, torch.zeros(1, dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64), (-0.1, 0.3))
    close(gradient(loss.sum(), new), torch.tensor([slope], dtype=torch.float64))


def test_at_ratio_one_the_gradient_is_minus_the_advantage() -> None:
    new, advantage = torch.randn(64, requires_grad=True), torch.randn(64)
    loss, ratio = clipped_objective(new, new.detach(), advantage, (-1e-4, 1e-4))
    assert torch.equal(ratio, torch.ones(64)) and torch.equal(loss, -advantage)
    close(gradient(loss.sum(), new), -advantage, 1e-6)


def test_clip_fractions_and_approx_kl() -> None:
    ratio = torch.tensor([0.8, 0.95, 1.0, 1.25, 1.31, 2.0, 3.0, 0.9])
    low, high = clip_fractions(ratio, (-0.1, 0.3))
    assert (low, high) == (1 / 8, 3 / 8)
    close(approx_kl(ratio.log(), torch.zeros(8)), 0.5 * ratio.log() ** 2, 1e-6)
    assert not clip_fractions(torch.ones(4), (0.0, 0.0))[0]


@pytest.mark.parametrize(("clip", "kl"), [("0.0001", ""), ("0.01", ""), ("0.0001", "_kl_x"), ("0.0001", "_kl_v")])
def test_a_grpo_micro_batch_is_the_public_trainers(clip: str, kl: str) -> None:
    """Its noise levels are float32 timesteps over 1000, hence the tolerance; it weighs the KL terms by .04."""
    g, tag = golden("06c_ff_grpo_trainer"), f"clip{clip}{kl}"
    for k, i in enumerate(g["steps"].tolist()):
        v, s, s1, eta, ceiling = g["v_new"][k].clone().requires_grad_(), g["sigmas"][i], g["sigmas"][i + 1], 0.7, g["sigmas"][1]
        mean, std = KERNEL.step(g["x"][k], v, s, s1, eta, ceiling)
        old = KERNEL.log_prob(g["next_latents"][k], *KERNEL.step(g["x"][k], g["v_old"][k], s, s1, eta, ceiling))
        close(old, g["log_prob_old"][k], 1e-6)
        new = KERNEL.log_prob(g["next_latents"][k], mean, std)
        objective, ratio = clipped_objective(new, old, g["advantages"].clamp(-5, 5), (-float(clip), float(clip)))
        close(ratio, g[f"{tag}_ratio"][k], 1e-7)
        distance = torch.zeros(4, dtype=torch.float64)
        if kl:
            reference, _ = KERNEL.step(g["x"][k], g["v_ref"][k], s, s1, eta, ceiling)
            distance = kl_v(v, g["v_ref"][k]) if kl == "_kl_v" else kl_x(mean, reference)
            close(distance.mean(), g[f"{tag}_kl_div"][k], 1e-6)
        loss = objective.mean() + 0.04 * distance.mean()
        close(loss, g[f"{tag}_loss"][k], 1e-7)
        close(gradient(loss, v), g[f"{tag}_grad"][k], 1e-6)


def test_exact_kl_is_the_papers_with_its_closed_form_in_velocities() -> None:
    g = golden("10_kl")
    for k, i in enumerate(g["steps"].tolist()):
        s, s1, ceiling = g["sigmas"][i], g["sigmas"][i + 1], g["sigmas"][1]
        v = g["v_new"][k].clone().requires_grad_()
        mean, std = KERNEL.step(g["x"][k], v, s, s1, 0.7, ceiling)
        reference, _ = KERNEL.step(g["x"][k], g["v_ref"][k], s, s1, 0.7, ceiling)
        kl = kl_exact(mean, reference, std)
        close(kl.mean(), g["flow_grpo_orig_paper"][k])
        close(kl.mean(), g["wan_style_dt"][k])
        close(kl.mean() * (s - s1), g["flow_grpo_nodt"][k])
        close(gradient(kl.mean(), v), g["grad_paper"][k])
        dt, scale = s - s1, std / (s - s1).sqrt()
        close(kl, dt / 2 * (scale * (1 - s) / (2 * s) + 1 / scale) ** 2 * kl_v(v, g["v_ref"][k]))
        close(kl_x(mean, reference), 2 * std**2 * kl)


def test_exact_kl_is_the_mean_kl_of_torch_distributions() -> None:
    torch.manual_seed(0)
    mean, reference = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    std = like(torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64), mean)
    close(kl_exact(mean, reference, std), per_sample(kl_divergence(Normal(mean, std), Normal(reference, std))), 1e-12)


@pytest.mark.parametrize("shape", [(3, 8), (3, 4, 5), (3, 2, 4, 4), (3, 2, 3, 4, 4)])
def test_distances_have_the_gradients_of_a_mean_square(shape: tuple[int, ...]) -> None:
    """Packed (3-D), image and video latents alike: everything but the batch is averaged."""
    torch.manual_seed(0)
    a, b = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(shape, dtype=torch.float64)
    std = torch.tensor(0.4, dtype=torch.float64)
    by_hand = 2 * (a.detach() - b) / a[0].numel()
    for distance, scale in ((kl_v(a, b), 1.0), (kl_x(a, b), 1.0), (kl_exact(a, b, std), 1 / (2 * 0.4**2))):
        assert distance.shape == (3,)
        close(gradient(distance.sum(), a), scale * by_hand, 1e-12)


@pytest.mark.parametrize("name", ["Flow-SDE", "Dance-SDE", "CPS"])
def test_an_unchanged_velocity_has_ratio_one_and_the_policy_gradient_by_hand(name: str) -> None:
    """d loss / d v = -A / B * d log_prob / d v with d log_prob / d v = 2 k (x1 - mean) cv / D."""
    torch.manual_seed(0)
    kernel, (x, v, noise) = DYNAMICS[name], torch.randn(3, 4, 2, 6, dtype=torch.float64)
    s, s1, eta, advantage = torch.tensor(0.7), torch.tensor(0.6), 0.5, torch.tensor([1.0, -2.0, 0.0, 3.0], dtype=torch.float64)
    mean, std = kernel.step(x, v, s.double(), s1.double(), eta, s.double())
    x1 = mean + std * noise
    live = v.clone().requires_grad_()
    new = kernel.log_prob(x1, *kernel.step(x, live, s.double(), s1.double(), eta, s.double()))
    loss, ratio = clipped_objective(new, kernel.log_prob(x1, mean, std), advantage, (-1e-4, 1e-4))
    assert torch.equal(ratio, torch.ones(4, dtype=torch.float64))
    one, nought = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    cv = kernel.step(nought, one, s.double(), s1.double(), eta, s.double())[0]
    by_hand = -like(advantage, x) / 4 * 2 * kernel.precision(std) * (x1 - mean) * cv / x[0].numel()
    close(gradient(loss.mean(), live), by_hand)
