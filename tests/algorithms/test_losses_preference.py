"""Diffusion-DPO and DGPO: values and gradients against the references, and what must hold at the reference weights."""

import math

import pytest
import torch

from flow_factory.algorithms.losses import kl_v, matching_error
from flow_factory.algorithms.losses.dgpo import dgpo_loss, group_weight, out_of_range, stopped
from flow_factory.algorithms.losses.dpo import dpo_loss
from tests.vectors import close, golden, gradient, normals

DGPO = [(100, "0.01", 0.02, 0, 1, 0), (100, "0.001", 0.02, 0, 1, 1), (2000, "0.01", 0, 1, 1, 0), (10, "0.01", 0, 0, 0, 0)]


@pytest.mark.parametrize("beta", [100, 2000])
def test_dpo_is_every_references(beta: int) -> None:
    g = golden("11_dpo")
    chosen, rejected = g["v_w"].clone().requires_grad_(), g["v_l"].clone().requires_grad_()
    d_w, d_w_ref = (matching_error(v, g["x_w"], g["eps"]) for v in (chosen, g["ref_w"]))
    d_l, d_l_ref = (matching_error(v, g["x_l"], g["eps"]) for v in (rejected, g["ref_l"]))
    close(d_w - d_w_ref, g[f"beta{beta}_w_diff"])
    close(d_l - d_l_ref, g[f"beta{beta}_l_diff"])
    loss, margin = dpo_loss(d_w, d_l, d_w_ref, d_l_ref, beta)
    close(margin, g[f"beta{beta}_inside_term"])
    close(loss.mean(), g[f"beta{beta}_loss"])
    slopes = torch.autograd.grad(loss.mean(), (chosen, rejected))
    close(slopes[0], g[f"beta{beta}_grad_w"])
    close(slopes[1], g[f"beta{beta}_grad_l"])


def test_dpo_at_the_reference_is_log_two_with_the_gradient_by_hand() -> None:
    x_w, x_l, noise, v_w, v_l = normals(5, 3, 2, 6)
    v_w, v_l = v_w.requires_grad_(), v_l.requires_grad_()
    d_w, d_l = matching_error(v_w, x_w, noise), matching_error(v_l, x_l, noise)
    loss, margin = dpo_loss(d_w, d_l, d_w.detach(), d_l.detach(), 50.0)
    assert not margin.any()
    close(loss, torch.full((3,), math.log(2), dtype=torch.float64))
    slope_w, slope_l = torch.autograd.grad(loss.sum(), (v_w, v_l))
    close(slope_w, 0.5 * 25 * 2 * (v_w.detach() - (noise - x_w)) / 12)
    close(slope_l, -0.5 * 25 * 2 * (v_l.detach() - (noise - x_l)) / 12)


def test_a_margin_far_on_either_side_does_not_overflow() -> None:
    loss, _ = dpo_loss(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), torch.zeros(2), torch.zeros(2), 1e4)
    close(loss, torch.tensor([0.0, 5e3]), 1e-6)


@pytest.mark.parametrize(("beta", "clip", "kl_beta", "averaged", "clip_dsm", "clip_kl"), DGPO)
def test_dgpo_is_the_authors(beta: int, clip: str, kl_beta: float, averaged: int, clip_dsm: int, clip_kl: int) -> None:
    g, tag = golden("11b_dgpo"), f"bdpo{beta}_clip{clip}_kl{kl_beta:g}_ema{averaged}_cd{clip_dsm}_ck{clip_kl}_"
    v, advantage, shape = g["model_v"].clone().requires_grad_(), g["advantages"].clamp(-5, 5), (2, int(g["group_size"]))
    d, d_old, d_ref = (kl_v(u, g["target_v"]) for u in (v, g["old_v"], g["old_v"] if averaged else g["ref_v"]))
    close(d, g[tag + "dsm_loss"])
    weight = group_weight(advantage.reshape(shape), d.reshape(shape), d_ref.reshape(shape), beta)[g["group_ids"]]
    mask, ratio = out_of_range(advantage, d, d_old, (-float(clip), float(clip)))
    if clip_dsm:
        assert torch.equal(mask, g[tag + "should_clip"])
        close(ratio, g[tag + "ratio"])
    policy, kl = dgpo_loss(weight, advantage, stopped(d, mask & bool(clip_dsm))).mean(), kl_v(v, g["ref_v"])
    close(policy, g[tag + "dgpo_loss"])
    loss = policy + kl_beta * stopped(kl, mask & bool(clip_kl)).mean()
    close(loss, g[tag + "loss"])
    close(gradient(loss, v), g[tag + "grad"])


def test_dgpo_at_the_reference_weighs_a_half() -> None:
    d = normals(3, 4).abs().requires_grad_()
    weight = group_weight(normals(3, 4, seed=1), d, d.detach(), 2000.0)
    assert torch.equal(weight, torch.full((3,), 0.5, dtype=torch.float64)) and not weight.requires_grad


def test_dgpo_has_the_gradient_of_its_group_preference() -> None:
    """-log sigmoid(-S) over beta, S = mean A beta (d - d_ref)."""
    advantage, d_ref = normals(2, 6)
    d = normals(6, seed=1).abs().requires_grad_()
    preference = -torch.nn.functional.logsigmoid(-(advantage * 3.0 * (d - d_ref)).mean()) / 3.0
    close(gradient(dgpo_loss(group_weight(advantage, d, d_ref, 3.0), advantage, d).mean(), d), gradient(preference, d))


def test_the_weight_falls_as_the_group_gets_into_order() -> None:
    advantage, d_ref = torch.tensor([1.0, -1.0]), torch.ones(2)
    in_order, reversed_ = torch.tensor([0.5, 1.5]), torch.tensor([1.5, 0.5])
    assert group_weight(advantage, in_order, d_ref, 10.0) < 0.01 < 0.99 < group_weight(advantage, reversed_, d_ref, 10.0)


@pytest.mark.parametrize(("advantage", "ratio", "clipped"), [
    (1.0, 1.2, True), (1.0, 1.05, False), (1.0, 0.5, False), (-1.0, 0.8, True), (-1.0, 0.95, False), (-1.0, 2.0, False), (0.0, 0.8, True),
])  # fmt: skip
def test_the_mask_stops_the_gradient_and_keeps_the_value(advantage: float, ratio: float, clipped: bool) -> None:
    a, d_old = torch.tensor([advantage], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    d = (d_old - math.log(ratio)).requires_grad_()
    mask, found = out_of_range(a, d, d_old, (-0.1, 0.1))
    close(found, torch.tensor([ratio], dtype=torch.float64))
    assert mask.item() is clipped
    kept = stopped(d, mask)
    assert torch.equal(kept, d)
    close(gradient(kept.sum(), d), (~mask).double())
