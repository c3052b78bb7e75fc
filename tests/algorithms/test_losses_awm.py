"""AWM: log-probabilities, surrogates and KL weights against the authors' script and the public trainer."""

import pytest
import torch

from flow_factory.algorithms.losses import kl_v
from flow_factory.algorithms.losses.awm import elbo_weight, pseudo_log_prob, scaled_advantage, surrogate
from flow_factory.core.dynamics import like
from tests.vectors import close, golden, gradient, normals

WEIGHTINGS = [("Uniform", "Uniform", 0.25), ("t", "t", 0.25), ("t2", "t**2", 0.25), ("huber", "huber", 0.25),
              ("ghuber_p0.25", "ghuber", 0.25), ("ghuber_p0.5", "ghuber", 0.5)]  # fmt: skip
SURROGATES = [("exp_first", "1", 1.0), ("exp_first", "0.0001", None), ("sum_first", "0.0001", None)]


@pytest.mark.parametrize(("tag", "weighting", "power"), WEIGHTINGS)
def test_the_log_probability_is_the_authors(tag: str, weighting: str, power: float) -> None:
    g = golden("09_awm")
    v = g["v_cur"].clone().requires_grad_()
    point = (g["x0"], g["eps"], g["sigma"], weighting, power)
    logp = pseudo_log_prob(v, *point)  # type: ignore[arg-type]
    close(logp, g[f"{tag}_logp_cur"])
    close(pseudo_log_prob(g["v_old"], *point), g[f"{tag}_logp_old"])  # type: ignore[arg-type]
    close(gradient(logp.sum(), v), g[f"{tag}_dlogp_dv"])


@pytest.mark.parametrize(("tag", "weighting", "power"), WEIGHTINGS)
@pytest.mark.parametrize(("order", "clip", "maximum"), SURROGATES)
def test_the_loss_is_the_authors(tag: str, weighting: str, power: float, order: str, clip: str, maximum: float | None) -> None:
    g, key = golden("09_awm"), f"{tag}_{order}_clip{clip}_advmax{maximum}_"
    v, shape = g["v_cur"].clone().requires_grad_(), (int(g["T"]), int(g["B"]))
    point = (g["x0"], g["eps"], g["sigma"], weighting, power)
    logp, old = (pseudo_log_prob(u, *point).reshape(shape) for u in (v, g["v_old"]))  # type: ignore[arg-type]
    objective, ratio = surrogate(logp, old, scaled_advantage(g["advantages"], 5.0, maximum), (-float(clip), float(clip)), order)  # type: ignore[arg-type]
    close(ratio.flatten(), g[key + "ratio"])
    close(objective.mean(), g[key + "policy_loss"])
    kl, ema = kl_v(v, g["v_ref"]).mean(), kl_v(v, g["v_ema"]).mean()
    close(0.001 * kl, 0.001 * g[key + "kl_loss"])
    close(ema, g[key + "ema_kl_loss"])
    loss = objective.mean() + 0.001 * kl + ema
    close(loss, g[key + "loss"])
    close(gradient(loss, v), g[key + "grad"])


def test_a_micro_batch_is_the_public_trainers() -> None:
    """One noise level at a time, unscaled advantages, old and averaged weights alike."""
    g, (levels, n) = golden("09_awm"), (2, 3)
    v = g["v_cur"].clone().requires_grad_()
    point = (g["x0"], g["eps"], g["sigma"])
    logp, old = (pseudo_log_prob(u, *point).reshape(levels, n) for u in (v, g["v_old"]))
    objective, ratio = surrogate(logp, old, scaled_advantage(g["advantages"], maximum=None), (-1e-4, 1e-4))
    close(ratio, g["ff_ghuber_clip1e-4_ratio"], 1e-7)
    losses = objective.mean(1) + 0.001 * kl_v(v, g["v_ref"]).reshape(levels, n).mean(1)
    close(losses, g["ff_ghuber_clip1e-4_loss"], 1e-7)
    close(gradient(losses.sum(), v), g["ff_ghuber_clip1e-4_grad"], 1e-7)


def test_the_elbo_weight_is_the_authors() -> None:
    g = golden("09_awm")
    for weights, key in (("v_ref", "elbo_kl_loss"), ("v_ema", "elbo_ema_kl_loss")):
        close((elbo_weight(g["sigma"]) * kl_v(g["v_cur"], g[weights])).mean(), g[key])
    assert elbo_weight(torch.ones(1)) > 0


@pytest.mark.parametrize(("tag", "weighting", "power"), WEIGHTINGS)
def test_at_ratio_one_the_gradient_is_minus_the_advantage_times_that_of_the_log_probability(tag: str, weighting: str, power: float) -> None:
    x0, noise = normals(2, 4, 3, 5)
    v, s, advantage = (
        normals(4, 3, 5, seed=1).requires_grad_(),
        torch.full((4,), 0.7),
        torch.tensor([1.0, -2.0, 0.0, 3.0], dtype=torch.float64),
    )
    logp = pseudo_log_prob(v, x0, noise, s, weighting, power)  # type: ignore[arg-type]
    objective, ratio = surrogate(logp[None], logp[None].detach(), advantage, (-1e-4, 1e-4))
    assert torch.equal(ratio, torch.ones(1, 4).double())
    (slope,) = torch.autograd.grad(logp.sum(), v, retain_graph=True)
    close(gradient(objective.sum(), v), -like(advantage, v) * slope)


@pytest.mark.parametrize("weighting", ["Uniform", "t", "t**2", "huber", "ghuber"])
def test_a_perfect_velocity_has_log_probability_zero_and_a_finite_gradient(weighting: str) -> None:
    x0, noise = normals(2, 3, 8)
    v = (noise - x0).requires_grad_()
    logp = pseudo_log_prob(v, x0, noise, torch.tensor(0.5), weighting)  # type: ignore[arg-type]
    assert logp.dtype == torch.float64 and not logp.any() and not gradient(logp.sum(), v).any()


def test_noise_levels_of_any_shape_and_advantages_by_hand() -> None:
    x0, noise, v = normals(3, 4, 2, 5)
    s = torch.tensor([0.2, 0.4, 0.6, 0.8])
    close(pseudo_log_prob(v, x0, noise, like(s, v)), pseudo_log_prob(v, x0, noise, s))
    close(scaled_advantage(torch.tensor([-10.0, 2.5, 20.0]), 5.0, 2.0), torch.tensor([-2.0, 1.0, 2.0]))
    with pytest.raises(ValueError, match="no AWM weighting 'l1'; known: Uniform"):
        pseudo_log_prob(v, x0, noise, s, "l1")  # type: ignore[arg-type]
