"""CRD: values and gradients against the public trainer (one group a micro-batch), and what must not matter to it."""

import pytest
import torch

from flow_factory.algorithms.losses import kl_v
from flow_factory.algorithms.losses.crd import adaptive_kl_weight, centre_weights, centres, crd_loss, implicit_reward
from flow_factory.algorithms.losses.nft import optimality
from tests.vectors import close, golden, gradient, normals

P = torch.tensor([0.9, 0.2, 0.5, 0.7, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("loss_type", ["mse", "bce"])
@pytest.mark.parametrize("temperature", [-1.0, 0.0, 0.5])
@pytest.mark.parametrize("adaptive", [True, False])
def test_the_loss_is_the_public_trainers(loss_type: str, temperature: float, adaptive: bool) -> None:
    """`neutral=0` is its way to select at temperature 0."""
    g, tag = golden("11c_crd"), f"{loss_type}_temp{temperature:g}_adaptive{int(adaptive)}_"
    v, beta, kl_beta, clip = g["v_cur"].clone().requires_grad_(), float(g["crd_beta"]), float(g["kl_beta"]), float(g["adv_clip_max"])
    p = optimality(g["advantages"], clip)
    reward = implicit_reward(v, g["v_old"], g["x0"], g["eps"], adaptive)
    close(reward.mean(), g[tag + "r_theta_mean"])
    centre = centres(reward, p, temperature, neutral=0.0)
    policy = crd_loss(reward, p, centre, beta, loss_type, clip).mean()  # type: ignore[arg-type]
    close(policy, g[tag + "policy_loss"])
    close(policy * beta / clip, g[tag + "unweighted"])
    kl = kl_beta * (adaptive_kl_weight(p, kl_beta) * kl_v(v, g["v_ref"])).mean()
    close(kl, g[tag + "kl_loss"])
    close(policy + kl, g[tag + "loss"])
    close(gradient(policy + kl, v), g[tag + "grad"])


@pytest.mark.parametrize("temperature", [-1.0, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("loss_type", ["mse", "bce"])
def test_a_constant_added_to_a_groups_rewards_changes_nothing(temperature: float, loss_type: str) -> None:
    """The implicit reward is known up to a constant a prompt: that is what centring is for."""
    reward, loss = normals(5).requires_grad_(), []
    for shift in (0.0, 3.0):
        moved = reward + shift
        loss.append(crd_loss(moved, P, centres(moved, P, temperature), 0.7, loss_type))  # type: ignore[arg-type]
    close(loss[1], loss[0].detach())
    close(gradient(loss[1].sum(), reward), gradient(loss[0].sum(), reward))


def test_a_micro_batch_of_a_group_has_the_groups_centre() -> None:
    reward = normals(5).requires_grad_()
    centre = centres(reward, P, 0.5)
    whole = crd_loss(reward, P, centre)
    parts = torch.cat([crd_loss(reward[part], P[part], centre) for part in (slice(0, 2), slice(2, 5))])
    close(parts, whole.detach())
    close(gradient(parts.sum(), reward), gradient(whole.sum(), reward))


def test_the_gradient_by_hand_does_not_pass_through_the_centre() -> None:
    reward = normals(5).requires_grad_()
    slope = gradient(crd_loss(reward, P, centres(reward, P, -1.0), beta=2.0, clip=5.0).sum(), reward)
    fixed = reward.detach()
    close(slope, 5.0 / 2.0 * 2 * 2.0 * (2.0 * (fixed - fixed.mean()) - (P - P.mean())))
    slope = gradient(crd_loss(reward, P, centres(reward, P, -1.0), beta=2.0, loss_type="bce", clip=5.0).sum(), reward)
    close(slope, 5.0 * ((2.0 * (fixed - fixed.mean())).sigmoid() - (P - P.mean()).sigmoid()))


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_old_velocity_earns_nothing_and_a_better_one_more(adaptive: bool) -> None:
    x0, noise, off = normals(3, 4, 2, 6)
    old = noise - x0 + off
    assert not implicit_reward(old, old, x0, noise, adaptive).any()
    assert (implicit_reward(noise - x0 + 0.5 * off, old, x0, noise, adaptive) > 0).all()


def test_centre_weights_by_hand() -> None:
    close(centre_weights(P, -1.0), torch.full((1, 5), 0.2, dtype=torch.float64))
    close(centre_weights(P, 0.1), torch.stack([(10 * P).softmax(0), (-10 * P).softmax(0)]))
    good, bad = centre_weights(P, 0.0)
    close(good[[0, 3]], P[[0, 3]].softmax(0))
    close(bad[[1, 4]], (-P[[1, 4]]).softmax(0))
    assert not good[[1, 2, 4]].any() and not bad[[0, 2, 3]].any(), "a half is neither good nor bad"
    close(centre_weights(torch.full((4,), 0.5), 0.0), torch.full((2, 4), 0.25))
    for temperature in (-1.0, 0.0, 0.3):
        close(centre_weights(P, temperature).sum(1), torch.ones(1 if temperature < 0 else 2).double())


def test_the_kl_weight_runs_from_the_least_to_kl_beta() -> None:
    close(0.1 * adaptive_kl_weight(torch.tensor([0.0, 0.5, 1.0]), 0.1), torch.tensor([1e-4, 0.05005, 0.1]), 1e-6)


def test_an_unknown_loss_is_an_error() -> None:
    with pytest.raises(ValueError, match="no CRD loss 'l1'; known: mse, bce"):
        crd_loss(P, P, centres(P, P, -1.0), loss_type="l1")  # type: ignore[arg-type]
