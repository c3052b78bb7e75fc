"""DiffusionNFT: every term and the gradient against the authors' script; what a preference of 1/2 does."""

import pytest
import torch

from flow_factory.algorithms.losses import kl_v, self_normalised_square
from flow_factory.algorithms.losses.nft import implicit_velocities, nft_loss, optimality
from flow_factory.core.dynamics import like
from tests.vectors import close, golden, gradient, normals

REL = 1e-7  # a float32 timestep over 1000
CASES = [(1.0, "all"), (1.0, "positive_only"), (1.0, "negative_only"), (1.0, "one_only"), (1.0, "binary"), (0.1, "all")]


@pytest.mark.parametrize(("beta", "mode"), CASES)
def test_the_loss_is_the_authors(beta: float, mode: str) -> None:
    g, tag = golden("08_nft"), f"beta{beta:g}_{mode}_"
    v, clip = g["v_cur"].clone().requires_grad_(), float(g["adv_clip_max"])
    r = optimality(g["advantages"], clip, mode)  # type: ignore[arg-type]
    close(r, g[tag + "r"])
    terms = nft_loss(v, g["v_old"], g["xt"], g["x0"], g["t"] / 1000, r, beta, clip)
    close(terms["positive"], g[tag + "positive_loss"], REL)
    close(terms["negative"], g[tag + "negative_loss"], REL)
    close(terms["loss"], g[tag + "ori_policy_loss"] * clip, REL)
    kl = kl_v(v, g["v_ref"])
    close(kl, g[tag + "kl_div_loss"])
    loss = terms["loss"].mean() + 1e-4 * kl.mean()
    close(loss, g[tag + "loss"], REL)
    close(loss, g[tag + "policy_loss"], REL)  # the script adds the KL term to it in place
    close(gradient(loss, v), g[tag + "grad"], REL)


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_the_weights_are_the_authors(beta: float) -> None:
    """error^2 over its self-normalised square is the divisor."""
    g, tag = golden("08_nft"), f"beta{beta:g}_all_"
    s = like(g["t"] / 1000, g["xt"])
    for v, key in zip(implicit_velocities(g["v_cur"], g["v_old"], beta), ("weight_factor", "negative_weight_factor"), strict=True):
        error = g["xt"] - s * v - g["x0"]
        close((error**2).flatten(1).mean(1) / self_normalised_square(error), g[tag + key].flatten(), REL)


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_at_the_old_velocity_the_gradient_grows_with_the_preference_and_is_zero_at_a_half(beta: float) -> None:
    x0, noise = normals(2, 5, 3, 4)
    s, r = torch.full((5,), 0.6, dtype=torch.float64), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    v = (noise - x0 + 0.3 * normals(5, 3, 4, seed=1)).requires_grad_()
    terms = nft_loss(v, v.detach(), 0.4 * x0 + 0.6 * noise, x0, s, r, beta)
    close(terms["positive"], terms["negative"])
    slope = gradient(terms["loss"].sum(), v)
    assert slope[2].abs().max() < 1e-12
    error = 0.6 * (noise - x0 - v.detach())
    by_hand = like(2 * r - 1, x0) * 5 * 2 * error * -0.6 / (12 * like(error.abs().flatten(1).mean(1), x0))
    close(slope, by_hand)


def test_no_gradient_reaches_the_old_velocity_or_the_weight() -> None:
    v, old = normals(2, 3, 4).requires_grad_(), normals(2, 3, 4, seed=1).requires_grad_()
    plus, minus = implicit_velocities(v, old, 0.1)
    close((plus + minus) / 2, old.detach())
    assert torch.autograd.grad((plus + minus).sum(), old, allow_unused=True)[0] is None
    error = normals(3, 8).requires_grad_()
    slope, fixed = gradient(self_normalised_square(error).sum(), error), error.detach()
    close(slope, 2 * fixed / 8 / fixed.abs().mean(1, keepdim=True))


def test_a_perfect_reconstruction_does_not_divide_by_zero() -> None:
    error = torch.zeros(2, 6, requires_grad=True)
    loss = self_normalised_square(error)
    assert loss.dtype == torch.float64 and not loss.any() and not gradient(loss.sum(), error).any()


def test_optimality_by_hand() -> None:
    advantage = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0])
    close(optimality(advantage, 2.0), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    close(optimality(advantage, 2.0, "negative_only"), torch.tensor([0.0, 0.25, 0.5, 0.5, 0.5]))
    with pytest.raises(ValueError, match="no advantage mode 'best'; known: all"):
        optimality(advantage, 2.0, "best")  # type: ignore[arg-type]
