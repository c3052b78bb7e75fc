"""GARDO's statistics against the vectors, and what must hold whatever the scores are."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from flow_factory.algorithms.grpo import GRPO
from flow_factory.config import GRPOConfig, SchedulerConfig
from flow_factory.core.advantage import aggregation, diversity_scaled, group_advantage
from flow_factory.core.uncertainty import adapted, gated, mean_doubt, nearest, uncertainty, win_rates
from flow_factory.training.kl_gate import KLGate
from flow_factory.types import Point, Step
from tests.points import given, made, rollout
from tests.vectors import close, golden, gradient, normals

G = golden("21_gardo")
U = G["uncertainty"]


def test_win_rates_and_their_difference_are_the_vectors() -> None:
    close(win_rates(G["proxy"]), G["win_proxy"])
    for mine, theirs in zip(G["aux"], G["win_aux"], strict=True):
        close(win_rates(mine), theirs)
    close(uncertainty(G["proxy"], G["aux"].T), U)
    close(uncertainty(G["tied_proxy"], G["aux"].T), G["tied_uncertainty"])
    close(-len(U) * U, G["author_rank_gap"])


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_the_gate_is_the_vectors(share: float) -> None:
    mine = gated(U, share)
    assert torch.equal(mine, G[f"gate_{share}"].bool()) and not (mine & G[f"author_gate_{share}"].bool()).any()
    assert (U[mine] > 0).all(), "what the trained reward overrates"


def test_only_the_order_of_scores_matters_and_missing_ones_do_not_count() -> None:
    warped = uncertainty(G["proxy"].exp(), torch.stack([G["aux"][0] ** 3, -(-G["aux"][1]).exp()], 1))
    close(warped, U)
    same = G["proxy"]
    assert not uncertainty(same, torch.stack([same, same], 1)).any() and not gated(torch.zeros(8), 0.1).any()
    hole = G["proxy"].clone()
    hole[3] = torch.nan
    doubts = uncertainty(hole, G["aux"].T)
    assert doubts[3].isnan() and not gated(doubts, 1.0)[3] and doubts.isnan().sum() == 1
    assert not gated(torch.full((4,), -0.5), 0.5).any() and mean_doubt(torch.full((4,), -0.5)) == 0


def test_the_share_adapts_as_the_vectors() -> None:
    share, seen = 0.1, list[float]()
    for mean, expected in zip(G["controller_mean"].tolist(), G["controller_share"].tolist(), strict=True):
        share = adapted(share, mean, seen, (0.02, 0.2))
        seen.append(mean)
        assert share == pytest.approx(expected, rel=1e-12)


def gate_of(**train: Any) -> tuple[KLGate, list[str]]:
    """A gate over parts that only say what they were asked."""
    moved: list[str] = []
    context: Any = SimpleNamespace(
        progress=SimpleNamespace(epoch=0, memory={}), store=SimpleNamespace(blend=lambda name, decay: moved.append(f"{name} {decay}")),
        meter=SimpleNamespace(values={}, add=lambda metrics: None), accelerator=SimpleNamespace(gather=lambda x: x),
    )  # fmt: skip
    return KLGate(context, GRPOConfig(kl_beta=0.1, **train)), moved


def test_the_reference_moves_in_the_epochs_of_the_vectors() -> None:
    gate, moved = gate_of(kl_reset_threshold=float(G["ref_threshold"]), kl_reset_epochs=int(G["ref_every"]))
    hits = []
    for epoch, kl in enumerate(G["ref_kl"]):
        gate.context.progress.epoch = epoch + 1
        gate.context.meter.values["kl_held"] = [kl * 0.1, kl]
        before = len(moved)
        gate.finish()
        hits.append(len(moved) > before)
    assert hits[:-1] == G["ref_reset"].bool().tolist()[1:] and set(moved) == {"ref 0.0"}


def test_weights_are_one_on_average_and_memory_changes_at_the_end_alone() -> None:
    gate, _ = gate_of(kl_gate_share=0.1)
    for epoch in range(3):
        weight, metrics = gate.weights(U.view(6, 8) + 0.01 * epoch)
        assert weight.mean().item() == pytest.approx(1) and set(weight.unique().tolist()) == {0.0, weight.max().item()}
        assert metrics["gated_share"].item() == pytest.approx((weight > 0).float().mean().item())
        assert len(gate.context.progress.memory.get("kl_gate", [])) == (0 if epoch == 0 else 1 + epoch)
        again, _ = gate.weights(U.view(6, 8) + 0.01 * epoch)
        assert torch.equal(weight, again), "of a run that was stopped within the epoch"
        gate.finish()
    weight, _ = gate.weights(-U.abs().view(6, 8) - 1)
    assert not weight.any(), "nothing is overrated"


def test_diversity_scales_good_samples_as_the_vectors() -> None:
    ids, scores = G["group_ids"], torch.stack([G["proxy"], G["nearest"]], 1).view(6, 8, 2)
    near = torch.stack([nearest(G["features"][ids == k]) for k in range(6)])
    torch.testing.assert_close(near.flatten(), G["nearest"], rtol=1e-9, atol=1e-12)
    assert not near[5].any(), "one picture eight times"
    advantage, _ = aggregation("gardo", ("proxy", "apart"), "apart")(scores, torch.tensor([1.0, 0.0]), True)
    torch.testing.assert_close(advantage.double().flatten(), G["adv"], rtol=1e-6, atol=1e-7)
    plain, _ = diversity_scaled(scores, torch.tensor([1.0, 0.0]))
    close(plain.double(), (scores[..., 0] - scores[..., 0].mean(1, keepdim=True)).float().double(), 1e-6)
    hole = scores.clone()
    hole[0, 2, 1], hole[1, 3, 0] = torch.nan, torch.nan
    advantage, metrics = diversity_scaled(hole, torch.tensor([1.0, 0.0]), diversity=1)
    assert advantage.isfinite().all() and advantage[1, 3] == 0 and advantage[0, 2] == plain[0, 2] and metrics["missing_scores"] == 1
    assert torch.equal(group_advantage(scores, torch.tensor([1.0, 0.0]))[0] == 0, plain == 0)


def point(kl_weight: Tensor | None) -> tuple[GRPO, Point, Tensor]:
    """GRPO's own point at the vectors' transition, whose next state is the policy's mean: the ratio has no gradient there."""
    algorithm = GRPO(
        GRPOConfig(kl_beta=1.0, kl_type="exact", kl_reset_epochs=1), SchedulerConfig(noise_level=float(G["kl_eta"]), sde_steps=(0,))
    )
    v = G["kl_v_new"].clone().requires_grad_()
    s, s1, ceiling, x = G["kl_sigma"], G["kl_sigma_next"], G["kl_ceiling"], normals(*v.shape)
    mean, std = algorithm.kernel.step(x, v.detach(), s, s1, float(G["kl_eta"]), ceiling)
    step = Step(0, 1000 * s, s, s1, ceiling, x, mean, algorithm.kernel.log_prob(mean, mean, std), torch.float64)
    batch = rollout(torch.zeros(6), steps=[step])
    batch.kl_weight = kl_weight
    (one,) = algorithm.points(batch)
    one.frozen = {"policy": v, "ref": G["kl_v_ref"]}
    return algorithm, one, v


def test_the_gated_term_and_its_gradient_are_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    algorithm, one, v = point(G["kl_gate"].double() / G["kl_share"])
    loss, metrics = algorithm.loss(one, given)
    close(loss, G["kl_gated"], 1e-7)
    close(gradient(loss, v), G["kl_gated_grad"], 1e-6)
    close(metrics["kl_held"], G["author_kl"], 1e-7)


def test_without_a_gate_all_count_and_without_a_gated_sample_the_reference_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    algorithm, one, v = point(None)
    metrics = algorithm.loss(one, given)[1]
    close(metrics["kl_div"], G["kl_per_sample"].mean(), 1e-7)
    assert metrics["kl_div"] == metrics["kl_held"]
    algorithm, one, v = point(torch.zeros(6))
    del one.frozen["ref"]
    loss, metrics = algorithm.loss(one, given)
    assert metrics["kl_div"] == metrics["kl_held"] == 0 and not gradient(loss, v).any()


def test_nfts_distance_of_velocities_is_gated_alike() -> None:
    """At the old policy and without advantages the loss has no other gradient."""
    algorithm, weight = made("nft", kl_beta=1.0, kl_reset_epochs=1, num_train_timesteps=1), (G["kl_gate"] / G["kl_share"]).float()
    v, ref = G["kl_v_new"].float().requires_grad_(), G["kl_v_ref"].float()
    batch = rollout(torch.zeros(6), x0=normals(*v.shape).float(), kl_weight=weight)
    (one,) = algorithm.points(batch)
    one.frozen = {"policy": v, "old": v.detach(), "ref": ref}
    loss, metrics = algorithm.loss(one, given)
    each = (v.detach() - ref).square().flatten(1).mean(1)
    close(metrics["kl_div"], (weight * each).mean(), 1e-6)
    close(metrics["kl_held"], each[weight > 0].mean(), 1e-6)
    close(gradient(loss, v), weight.view(-1, 1, 1, 1) * 2 * (v.detach() - ref) / v.numel(), 1e-5)
    batch.kl_weight = torch.zeros(6)
    (one,) = algorithm.points(batch)
    one.frozen = {"policy": v, "old": v.detach()}
    assert algorithm.needs("old", batch) and not algorithm.needs("ref", batch)
    assert algorithm.loss(one, given)[1]["kl_div"] == 0
