"""DPO, DGPO and CRD through their classes: the references' losses and gradients, and that a group may be cut into micro-batches."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from flow_factory.algorithms.base import Algorithm
from flow_factory.algorithms.crd import CRD
from flow_factory.algorithms.dgpo import DGPO
from flow_factory.algorithms.dpo import DPO
from flow_factory.config import CRDConfig, DGPOConfig, DPOConfig, SchedulerConfig
from flow_factory.types import Point
from tests.points import given, noised, rollout
from tests.vectors import close, golden, gradient, normals

ODE = SchedulerConfig()
ADVANTAGE = torch.tensor([1.5, -0.5, 0.25, -2.0, 0.75, 0.0])
PARTS = (slice(0, 2), slice(2, 4), slice(4, 6))

# -- DPO ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [100, 2000])
def test_dpo_is_every_references(beta: int) -> None:
    """A point has one pair: three of them, their mean loss."""
    g, algorithm = golden("11_dpo"), DPO(DPOConfig(beta=float(beta)), ODE)
    chosen, rejected = g["v_w"].clone().requires_grad_(), g["v_l"].clone().requires_grad_()
    losses = []
    for k in range(3):
        x0, v, ref = (torch.stack([g[f"{a}_w"][k], g[f"{a}_l"][k]]) for a in ("x", "v", "ref"))
        v = torch.stack([chosen[k], rejected[k]])
        pair = noised(x0, g["eps"][k].expand(x0.shape), g["t"][k] / 1000, torch.tensor([1.0, -1.0]), policy=v, ref=ref)
        loss, metrics = algorithm.loss(pair, given)
        close(metrics["margin"], g[f"beta{beta}_inside_term"][k : k + 1], 1e-4)
        losses.append(loss)
    loss = torch.stack(losses).mean()
    close(loss, g[f"beta{beta}_loss"], 1e-5)
    for leaf, tag in ((chosen, "w"), (rejected, "l")):
        close(torch.autograd.grad(loss, leaf, retain_graph=True)[0], g[f"beta{beta}_grad_{tag}"], 1e-4)


@pytest.mark.parametrize("advantage", [(0.0, 0.0), (1.5, 1.5)])
def test_dpo_learns_nothing_from_a_tie_and_log_two_from_a_pair_at_the_reference(advantage: tuple[float, float]) -> None:
    algorithm, (x0, noise) = DPO(DPOConfig(), ODE), normals(2, 2, 3, 4)
    v = normals(2, 3, 4, seed=1).requires_grad_()
    pair = noised(x0, noise, torch.tensor(0.6), torch.tensor([1.0, -1.0]), policy=v, ref=v.detach())
    assert algorithm.loss(pair, given)[0].item() == pytest.approx(math.log(2), abs=1e-7)
    tie = noised(x0, noise, torch.tensor(0.6), torch.tensor(advantage), policy=v, ref=v.detach() + 0.1)
    loss, metrics = algorithm.loss(tie, given)
    assert loss == 0 and metrics["ties"] == 1 and not gradient(loss, v).any()


def test_dpos_pair_is_the_groups_best_and_worst_in_this_order() -> None:
    algorithm = DPO(DPOConfig(), ODE)
    states = torch.arange(6.0).view(6, 1, 1)
    group = [rollout(ADVANTAGE[p], tuple(range(10 + p.start, 10 + p.stop)), x0=states[p]) for p in PARTS]
    (pair,) = algorithm.select(group)
    assert pair.ids == (10, 13) and pair.x0 is not None and pair.x0.flatten().tolist() == [0.0, 3.0]
    assert pair.advantage.tolist() == [1.5, -2.0]
    (tie,) = algorithm.select([rollout(torch.zeros(2), (k, k + 1), x0=states[:2]) for k in (0, 2)])
    assert tie.ids == (0, 1), "the forward is made all the same: every process makes as many"


# -- DGPO -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "clip", "kl_beta", "averaged", "clip_dsm", "clip_kl"),
    [(100, "0.01", 0.02, 0, 1, 0), (100, "0.001", 0.02, 0, 1, 1), (2000, "0.01", 0, 1, 1, 0), (10, "0.01", 0, 0, 0, 0)])  # fmt: skip
def test_dgpo_is_the_authors(beta: int, clip: str, kl_beta: float, averaged: int, clip_dsm: int, clip_kl: int) -> None:
    """Two groups of four, each in one point; in float32."""
    g, tag = golden("11b_dgpo"), f"bdpo{beta}_clip{clip}_kl{kl_beta:g}_ema{averaged}_cd{clip_dsm}_ck{clip_kl}_"
    algorithm = DGPO(
        DGPOConfig(dpo_beta=float(beta), clip_range=float(clip), kl_beta=float(kl_beta), use_ema_ref=bool(averaged),
                   clip_dsm=bool(clip_dsm), clip_kl=bool(clip_kl)), ODE,
    )  # fmt: skip
    v, x0, losses, policies = g["model_v"].clone().requires_grad_(), normals(8, 4, 4, 4), [], []
    for group in (0, 1):
        mine = g["group_ids"] == group
        kept = {"ref": g["ref_v"][mine], "ema_ref": g["old_v"][mine]}
        kept = {k: u for k, u in kept.items() if k in algorithm.weights}
        advantage = algorithm.advantage(rollout(g["advantages"][mine]))
        point = noised(x0[mine], g["target_v"][mine] + x0[mine], torch.tensor(0.5), advantage, policy=v[mine], **kept)
        loss, metrics = algorithm.loss(point, given)
        losses.append(loss)
        policies.append(metrics["policy_loss"])
        close(metrics["matching_error"], g[tag + "dsm_loss"][mine], 1e-5)
        if clip_dsm:
            close(metrics["ratio"], g[tag + "ratio"][mine], 1e-5)
            assert torch.equal(metrics["clip_frac"].bool(), g[tag + "should_clip"][mine])
    close(torch.stack(policies).mean(), g[tag + "dgpo_loss"], 1e-5)
    close(torch.stack(losses).mean(), g[tag + "loss"], 1e-5)
    close(gradient(torch.stack(losses).mean(), v), g[tag + "grad"], 1e-4)


def test_dgpo_at_the_reference_weighs_a_half() -> None:
    algorithm, (x0, noise) = DGPO(DGPOConfig(), ODE), normals(2, 6, 3, 4)
    v = normals(6, 3, 4, seed=1).requires_grad_()
    point = noised(x0, noise, torch.tensor(0.7), ADVANTAGE, policy=v, ref=v.detach(), ema_ref=v.detach())
    loss, metrics = algorithm.loss(point, given)
    assert metrics["group_weight"] == 0.5 and not metrics["clip_frac"].any()
    close(gradient(loss, v), 0.5 * ADVANTAGE.view(-1, 1, 1) / 6 * 2 * (v.detach() - (noise - x0)) / 12, 1e-6)


@pytest.mark.parametrize(("train", "weights"), [
    ({}, ("ref", "ema_ref")), ({"clip_dsm": False}, ("ref",)), ({"clip_dsm": False, "clip_kl": True}, ("ref", "ema_ref")),
    ({"use_ema_ref": True}, ("ema_ref",)), ({"use_ema_ref": True, "clip_dsm": False, "kl_beta": 0.1}, ("ema_ref",)),
])  # fmt: skip
def test_dgpo_asks_for_no_weights_that_its_loss_does_not_know(train: dict[str, Any], weights: tuple[str, ...]) -> None:
    algorithm, (x0, noise, v) = DGPO(DGPOConfig(**train), ODE), normals(3, 6, 3, 4)
    assert algorithm.weights == weights and tuple(algorithm.averages) == ("ema_ref",)
    point = noised(x0, noise, torch.tensor(0.7), ADVANTAGE, policy=v, **dict.fromkeys(weights, v))
    assert torch.isfinite(algorithm.loss(point, given)[0])


# -- a group in several micro-batches -------------------------------------------------------------------------------------------------


def cut(algorithm: Algorithm, point: Point, v: Tensor) -> list[Point]:
    """The point as three micro-batches of two, which have seen the survey."""
    assert point.x0 is not None and point.noise is not None
    kept = {k: u for k, u in point.frozen.items() if k != "policy"}
    parts = [
        noised(point.x0[p], point.noise[p], point.s, point.advantage[p], policy=v[p], **{k: u[p] for k, u in kept.items()}) for p in PARTS
    ]
    with torch.no_grad():
        surveyed = algorithm.precompute(parts, given)
    for part, peers in zip(parts, surveyed, strict=True):
        part.peers = peers
    return parts


def assert_same(algorithm: Algorithm, whole: Point, parts: Sequence[Point], v: Tensor) -> None:
    loss = algorithm.loss(whole, given)[0]
    split = torch.stack([algorithm.loss(part, given)[0] for part in parts]).mean()
    close(split, loss.detach(), 1e-6)
    close(gradient(split, v), gradient(loss, v), 1e-6)


@pytest.mark.parametrize("train", [{}, {"kl_beta": 0.3, "clip_kl": True, "clip_range": 0.05}, {"use_ema_ref": True, "kl_beta": 0.3}])
def test_dgpo_has_the_weight_of_the_whole_group(train: dict[str, Any]) -> None:
    algorithm, (x0, noise, ref, old) = DGPO(DGPOConfig(**train), ODE), normals(4, 6, 3, 4)
    v = (ref + 0.2 * normals(6, 3, 4, seed=5)).requires_grad_()
    whole = noised(x0, noise, torch.tensor(0.7), ADVANTAGE, policy=v, ref=ref, ema_ref=old)
    parts = cut(algorithm, whole, v)
    assert parts[0].peers.ndim == 0 and abs(parts[0].peers - 0.5) > 0.01, "a weight that is not the one of no preference"
    assert_same(algorithm, whole, parts, v)


@pytest.mark.parametrize("loss_type", ["mse", "bce"])
@pytest.mark.parametrize("temperature", [-1.0, 0.0, 0.5])
def test_crd_has_the_centres_of_the_whole_group(loss_type: str, temperature: float) -> None:
    algorithm, (x0, noise, old, ref) = CRD(CRDConfig(crd_loss_type=loss_type, weight_temp=temperature), ODE), normals(4, 6, 3, 4)
    v, p = (old + 0.3 * normals(6, 3, 4, seed=5)).requires_grad_(), algorithm.advantage(rollout(ADVANTAGE))
    whole = noised(x0, noise, torch.tensor(0.7), p, policy=v, old=old, ref=ref)
    assert_same(algorithm, whole, cut(algorithm, whole, v), v)
    alone = [noised(x0[k], noise[k], whole.s, p[k], policy=v[k], old=old[k], ref=ref[k]) for k in PARTS]
    assert (torch.stack([algorithm.loss(a, given)[0] for a in alone]).mean() - algorithm.loss(whole, given)[0]).abs() > 1e-4


# -- CRD ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", ["mse", "bce"])
@pytest.mark.parametrize("temperature", [-1.0, 0.0, 0.5])
@pytest.mark.parametrize("adaptive", [True, False])
def test_crd_is_the_public_trainers(monkeypatch: pytest.MonkeyPatch, loss_type: str, temperature: float, adaptive: bool) -> None:
    """Whose choice at temperature 0 is between above and below 0, not a half."""
    monkeypatch.setattr("flow_factory.algorithms.crd.NEUTRAL", 0.0)
    g, tag = golden("11c_crd"), f"{loss_type}_temp{temperature:g}_adaptive{int(adaptive)}_"
    algorithm = CRD(CRDConfig(crd_loss_type=loss_type, weight_temp=temperature, adaptive_logp=adaptive, crd_beta=1.5, kl_beta=0.1), ODE)
    v, p = g["v_cur"].clone().requires_grad_(), algorithm.advantage(rollout(g["advantages"]))
    point = noised(g["x0"], g["eps"], g["t"] / 1000, p, policy=v, old=g["v_old"], ref=g["v_ref"])
    loss, metrics = algorithm.loss(point, given)
    close(metrics["implicit_reward"].mean(), g[tag + "r_theta_mean"], 1e-4)
    close(metrics["policy_loss"], g[tag + "policy_loss"], 1e-5)
    close(metrics["kl_loss"].double(), g[tag + "kl_loss"], 1e-5)
    close(loss, g[tag + "loss"], 1e-5)
    close(gradient(loss, v), g[tag + "grad"], 1e-4)


@pytest.mark.parametrize(("kl_beta", "adaptive", "weights"), [
    (0.1, True, [1e-3, 0.5005, 1.0]), (0.1, False, [1.0, 1.0, 1.0]), (1e-5, True, [1.0, 1.0, 1.0]),
])  # fmt: skip
def test_crds_kl_holds_good_samples_and_lets_bad_ones_go(kl_beta: float, adaptive: bool, weights: list[float]) -> None:
    """kl_beta m + kl_beta p (1 - m) with kl_beta m = 1e-4, for p = 0, 1/2, 1; a kl_beta below that weighs all alike."""
    algorithm = CRD(CRDConfig(kl_beta=kl_beta, reward_adaptive_kl=adaptive), ODE)
    x0, noise, ref = normals(3, 3, 2, 4)
    v, p = (noise - x0).requires_grad_(), algorithm.advantage(rollout(torch.tensor([-9.0, 0.0, 5.0])))
    assert p.tolist() == [0.0, 0.5, 1.0]
    point = noised(x0, noise, torch.tensor(0.5), p, policy=v, old=v.detach(), ref=ref)
    loss, metrics = algorithm.loss(point, given)
    distance = ((v.detach() - ref) ** 2).flatten(1).mean(1)
    by_hand = (torch.tensor(weights).double() * distance).mean()
    close(metrics["kl_div"].double(), by_hand, 1e-6)
    close(loss.double() - metrics["policy_loss"], kl_beta * by_hand, 1e-6)
    free = CRD(CRDConfig(kl_beta=0.0), ODE).loss(point, given)[0]
    slope = gradient(loss, v) - gradient(free, v)
    close(slope, kl_beta * torch.tensor(weights).double().view(-1, 1, 1) * 2 * (v.detach() - ref) / 8 / 3, 1e-4)


def test_crd_compares_with_an_average_or_with_the_start() -> None:
    moving, fixed = (CRD(CRDConfig(use_old_for_loss=x, old_model_decay="0-0.25-0.005-0.999"), ODE) for x in (True, False))
    assert [moving.averages["old"].decay(k) for k in (0, 50)] == [0.25, 0.5]
    assert [fixed.averages["old"].decay(k) for k in (0, 50)] == [1.0, 1.0], "the weights at the start, for ever"
    assert moving.weights == ("old", "ref") and CRD(CRDConfig(kl_beta=0.0), ODE).weights == ("old",)
