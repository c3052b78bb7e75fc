"""GRPO-Guard, NFT and AWM through their classes: the references' losses and gradients, and what must hold before the first update."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flow_factory.algorithms.awm import AWM
from flow_factory.algorithms.grpo_guard import GRPOGuard
from flow_factory.algorithms.losses import kl_v
from flow_factory.algorithms.losses.awm import pseudo_log_prob, scaled_advantage, surrogate
from flow_factory.algorithms.losses.nft import optimality
from flow_factory.algorithms.nft import NFT
from flow_factory.config import AWMConfig, GRPOGuardConfig, NFTConfig, SchedulerConfig
from flow_factory.core.dynamics import DYNAMICS
from flow_factory.core.sampling import Sampler
from flow_factory.types import Point, Step
from tests.points import given, noised, rollout
from tests.vectors import close, golden, gradient, normals

ODE = SchedulerConfig()
WEIGHTINGS = [("Uniform", "Uniform", 0.25), ("t", "t", 0.25), ("t2", "t**2", 0.25), ("huber", "huber", 0.25),
              ("ghuber_p0.25", "ghuber", 0.25), ("ghuber_p0.5", "ghuber", 0.5)]  # fmt: skip

# -- GRPO-Guard -----------------------------------------------------------------------------------------------------------------------


def guard(dynamics: str = "Flow-SDE", **train: Any) -> GRPOGuard:
    return GRPOGuard(GRPOGuardConfig(**train), SchedulerConfig(dynamics_type=dynamics))


def replayed(algorithm: GRPOGuard, k: int) -> tuple[dict[str, Tensor], Point, Tensor]:
    """The file, the algorithm's own point of the k-th step of `07`, and the policy's velocity there (leaf)."""
    g = golden("07_grpo_guard")
    i, v = int(g["steps"][k]), g["v_new"][k].clone().requires_grad_()
    s, s1, t = g["sigmas"][i], g["sigmas"][i + 1], g["timesteps"][i]
    step = Step(i, t, s, s1, g["sigmas"][1], g["x"][k], g["next_latents"][k], g["log_prob_old"][k], torch.float64, g["mean_old"][k])
    (point,) = algorithm.points(rollout(g["advantages"], steps=[step]))
    point.frozen = {"policy": v, "ref": g["v_ref"][k]}
    return g, point, v


@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize("clip", ["0.0001", "0.01"])
@pytest.mark.parametrize(("reweight", "loss_tag", "grad_tag"), [(True, "verl_loss", "verl_grad"), (False, "policy_loss", "grad")])
def test_guard_is_the_references(k: int, clip: str, reweight: bool, loss_tag: str, grad_tag: str) -> None:
    """Weighted verl-omni's, unweighted the public Flow-Factory's; in float32."""
    algorithm = guard(clip_range=float(clip), reweight=reweight)
    g, point, v = replayed(algorithm, k)
    loss, metrics = algorithm.loss(point, given)
    close(loss.double(), g[f"clip{clip}_{loss_tag}"][k], 1e-5)
    close(metrics["ratio"].double(), g[f"clip{clip}_ratio"][k], 1e-6)
    close(gradient(loss, v), g[f"clip{clip}_{grad_tag}"][k], 1e-4)


@pytest.mark.parametrize("k", range(3))
def test_guard_with_kl_is_the_public_trainers(k: int) -> None:
    """Whose beta is .04, and not divided by |dt|."""
    algorithm = guard(clip_range=1e-4, reweight=False, kl_beta=0.04, kl_type="x-based")
    g, point, v = replayed(algorithm, k)
    loss, metrics = algorithm.loss(point, given)
    close(loss.double(), g["clip0.0001_kl_x_loss"][k], 1e-5)
    close(metrics["kl_div"].double(), g["clip0.0001_kl_x_kl_div"][k], 1e-5)
    close(gradient(loss, v), g["clip0.0001_kl_x_grad"][k], 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("dynamics", "reweight"), [("Flow-SDE", True), ("Dance-SDE", True), ("CPS", False)])
def test_guards_ratio_is_exactly_one_before_any_update(dynamics: str, reweight: bool, dtype: torch.dtype) -> None:
    algorithm = guard(dynamics, reweight=reweight)
    x, noise = normals(2, 4, 3, 6).float()
    sampler = Sampler(DYNAMICS[dynamics], 0.7, {1}, lambda *_: noise, dtype, with_mean=algorithm.with_mean)
    s, s1, ceiling = (torch.tensor(a) for a in (0.8, 0.6, 0.9))
    step = sampler(1, s * 1000, x.to(dtype), (0.75 * x.to(dtype).float() + 0.25).to(dtype), s, s1, ceiling)[1]
    assert step is not None
    advantage = torch.tensor([1.5, -0.5, 0.0, 2.0])
    (point,) = algorithm.points(rollout(advantage, steps=[step]))
    loss, metrics = algorithm.loss(point, lambda p, weights="policy": (0.75 * p.x.float() + 0.25).to(dtype))
    assert torch.equal(metrics["ratio"], torch.ones(4)) and algorithm.on_policy_error(metrics)[0] == 0
    close(loss, -advantage.mean() / (0.2 if reweight else 1.0), 1e-6)


def test_guard_tolerates_what_float32_cannot_tell_from_one() -> None:
    assert guard(clip_range=2e-6).on_policy_error({"ratio_error": torch.zeros(())})[1] == 1e-6
    assert guard(clip_range=(-1e-3, 1e-4)).on_policy_error({"ratio_error": torch.zeros(())})[1] == pytest.approx(1e-5)


# -- NFT ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beta", "mode"), [(1.0, m) for m in ("all", "positive_only", "negative_only", "one_only", "binary")] + [(0.1, "all")]
)
def test_nft_is_the_authors(beta: float, mode: str) -> None:
    """A time a sample, whose float32 is divided by 1000 there."""
    g, tag = golden("08_nft"), f"beta{beta:g}_{mode}_"
    algorithm = NFT(NFTConfig(nft_beta=beta, adv_mode=mode, kl_beta=1e-4), ODE, per_sample_times=True)
    v, advantage = g["v_cur"].clone().requires_grad_(), algorithm.advantage(rollout(g["advantages"]))
    point = noised(g["x0"], g["eps"], g["t"] / 1000, advantage, policy=v, old=g["v_old"], ref=g["v_ref"])
    loss, metrics = algorithm.loss(point, given)
    close(metrics["optimality"], g[tag + "r"])
    close(metrics["loss_positive"], g[tag + "positive_loss"], 1e-6)
    close(metrics["loss_negative"], g[tag + "negative_loss"], 1e-6)
    close(loss, g[tag + "loss"].mean(), 1e-6)
    close(gradient(loss, v), g[tag + "grad"], 1e-5)


@pytest.mark.parametrize(("beta", "most"), [(1.0, 0.0), (0.1, 1e-7)])
def test_nft_at_the_old_policy_learns_nothing_from_a_sample_of_no_advantage(beta: float, most: float) -> None:
    """And c (2r - 1) / beta dL+ from the others, in opposite directions."""
    x0, noise = normals(2, 3, 4, 5).float()
    v = normals(3, 4, 5, seed=1).float().requires_grad_()
    algorithm = NFT(NFTConfig(nft_beta=beta), ODE)
    point = noised(x0, noise, torch.tensor(0.6), torch.tensor([0.0, 2.5, -2.5]), policy=v, old=v.detach())
    slope = gradient(algorithm.loss(point, given)[0], v)
    assert slope[0].abs().max() <= most
    error = 0.6 * (noise - x0 - v.detach())
    for k, half in ((1, 0.5), (2, -0.5)):
        close(slope[k], 5 * half * 2 * error[k] * -0.6 / (20 * error[k].abs().mean()) / 3, 1e-4)


@pytest.mark.parametrize(("c", "signal"), [(1.0, 0.631), (2.0, 0.390), (3.0, 0.266), (5.0, 0.160)])
def test_nft_of_less_saturation_has_more_signal_beside_what_holds_it(c: float, signal: float) -> None:
    """loss = c / (2 beta) mean[(L+ + L-) + q (L+ - L-)], q = clip(A, -c, c) / c; E|q| of standard normal advantages is known."""
    x0, noise = normals(2, 64, 3, 4)
    old, beta, s = normals(64, 3, 4, seed=1), 0.5, torch.tensor(0.6, dtype=torch.float64)
    v = (old + 0.1 * normals(64, 3, 4, seed=2)).requires_grad_()
    algorithm = NFT(NFTConfig(nft_beta=beta, nft_saturation=c), ODE)
    advantage = algorithm.advantage(rollout(2 * normals(64, seed=3)))
    loss, metrics = algorithm.loss(noised(x0, noise, s, advantage, policy=v, old=old), given)
    plus, minus = metrics["loss_positive"], metrics["loss_negative"]
    q = advantage.clamp(-c, c) / c
    close(loss, c / (2 * beta) * ((plus + minus) + q * (plus - minus)).mean(), 1e-6)
    close(metrics["optimality"], (1 + q) / 2)
    many = optimality(normals(400_000), c)
    close((2 * many - 1).abs().mean(), torch.tensor(signal, dtype=torch.float64), 1e-2)


def test_nfts_saturation_is_the_advantages_clip_where_none_is_given() -> None:
    assert NFTConfig().nft_saturation == 5 and NFTConfig(adv_clip_range=(-3.0, 3.0)).nft_saturation == 3
    assert NFTConfig(adv_clip_range=(-3.0, 3.0), nft_saturation=1).nft_saturation == 1


# -- AWM ------------------------------------------------------------------------------------------------------------------------------


def awm(**train: Any) -> AWM:
    return AWM(AWMConfig(**train), ODE)


def awm_points(algorithm: AWM) -> tuple[dict[str, Tensor], list[Point], Tensor]:
    """The file, its two noise levels of three samples, the policy's velocities (leaf)."""
    g = golden("09_awm")
    v, advantage = g["v_cur"].clone().requires_grad_(), algorithm.advantage(rollout(g["advantages"]))
    parts = (slice(0, 3), slice(3, 6))
    kept = {"old": g["v_old"], "ref": g["v_ref"], "ema": g["v_ema"]}
    points = [noised(g["x0"][p], g["eps"][p], g["sigma"][p], advantage, policy=v[p], **{n: u[p] for n, u in kept.items()}) for p in parts]
    return g, points, v


@pytest.mark.parametrize(("tag", "weighting", "power"), WEIGHTINGS)
@pytest.mark.parametrize(
    ("order", "clip", "maximum"), [("exp_first", "1", 1.0), ("exp_first", "0.0001", None), ("sum_first", "0.0001", None)]
)
def test_awm_is_the_authors(tag: str, weighting: str, power: float, order: str, clip: str, maximum: float | None) -> None:
    """The mean of the points' losses, whether each has a ratio of its own or the survey has that of all; both distances with it."""
    algorithm = awm(
        awm_weighting=weighting, ghuber_power=power, ratio_order=order, clip_range=float(clip), advantage_max=maximum,
        kl_beta=0.001, ema_kl_beta=1.0,
    )  # fmt: skip
    g, points, v = awm_points(algorithm)
    if algorithm.scope == "times":
        for point, peers in zip(points, algorithm.precompute(points, given), strict=True):
            point.peers = peers.detach()
    losses, metrics = zip(*(algorithm.loss(point, given) for point in points), strict=True)
    key, loss = f"{tag}_{order}_clip{clip}_advmax{maximum}_", torch.stack(losses).mean()
    close(loss, g[key + "loss"], 1e-6)
    close(torch.stack([m["policy_loss"] for m in metrics]).mean(), g[key + "policy_loss"])
    ratio = torch.cat([m["ratio"] for m in metrics])
    close(ratio if order == "exp_first" else ratio[3:], g[key + "ratio"])
    close(gradient(loss, v), g[key + "grad"], 1e-5)
    assert (algorithm.scope == "times") is (order == "sum_first")


def test_the_elbo_weight_is_the_authors() -> None:
    algorithm = awm(kl_weight="ELBO", kl_beta=1.0, ema_kl_beta=1.0)
    g, points, _ = awm_points(algorithm)
    metrics = [algorithm.loss(point, given)[1] for point in points]
    for name, key in (("kl_div", "elbo_kl_loss"), ("ema_kl_div", "elbo_ema_kl_loss")):
        close(torch.stack([m[name] for m in metrics]).mean().double(), g[key], 1e-6)


def test_awm_asks_for_no_weights_that_its_loss_does_not_know() -> None:
    assert awm().weights == ("old",)
    assert awm(kl_beta=0.1, ema_kl_beta=0.1).weights == ("old", "ref", "ema")
    _, points, _ = awm_points(awm())
    points[0].frozen = {k: points[0].frozen[k] for k in ("policy", "old")}
    assert math.isfinite(awm().loss(points[0], given)[0].item())


@pytest.mark.parametrize("weighting", ["Uniform", "t", "t**2", "huber", "ghuber"])
@pytest.mark.parametrize("order", ["exp_first", "sum_first"])
def test_awm_before_any_update_has_minus_the_advantage_times_the_log_probabilitys_gradient(weighting: str, order: str) -> None:
    """Without a survey: the ratio is exactly one in both orders. For Uniform, d log p / d v = -2 (v - target) / D."""
    x0, noise = normals(2, 4, 3, 5)
    v, s, advantage = normals(4, 3, 5, seed=1).requires_grad_(), torch.tensor(0.7), torch.tensor([1.0, -2.0, 0.0, 3.0])
    point = noised(x0, noise, s, advantage, policy=v, old=v.detach())
    loss, metrics = awm(awm_weighting=weighting, ratio_order=order).loss(point, given)
    assert torch.equal(metrics["ratio"], torch.ones(4).double()) and not metrics["clip_frac"]
    slope = gradient(pseudo_log_prob(v, x0, noise, s, weighting).sum(), v)  # type: ignore[arg-type]
    if weighting == "Uniform":
        close(slope, -2 * (v.detach() - (noise - x0)) / 15)
    close(gradient(loss, v), -advantage.view(-1, 1, 1) / 4 * slope, 1e-6)


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_sum_first_point_by_point_is_the_surrogate_of_all_noise_levels_at_once(levels: int) -> None:
    x0, noise, off = normals(3, levels, 3, 2, 4)
    v = (noise - x0 + 0.3 * off).requires_grad_()
    old, s, advantage = (v + 0.1 * normals(levels, 3, 2, 4, seed=9)).detach(), torch.linspace(0.9, 0.4, levels).double(), normals(3, seed=4)
    algorithm = awm(ratio_order="sum_first", clip_range=0.02, kl_beta=0.0)
    points = [noised(x0[k], noise[k], s[k], advantage, policy=v[k], old=old[k]) for k in range(levels)]
    for point, peers in zip(points, algorithm.precompute(points, given), strict=True):
        point.peers = peers.detach()
    whole = [torch.stack([pseudo_log_prob(u[k], x0[k], noise[k], s[k]) for k in range(levels)]) for u in (v, old)]
    objective, _ = surrogate(whole[0], whole[1], advantage, (-0.02, 0.02), "sum_first")
    parts = torch.stack([algorithm.loss(point, given)[0] for point in points]).mean()
    close(parts, objective.mean().detach())
    close(gradient(parts, v), gradient(objective.mean(), v))


def test_awms_advantage_and_distance_by_hand() -> None:
    raw = torch.tensor([-9.0, 2.0, 0.0])
    close(awm(adv_clip_range=4.0, advantage_max=2.0).advantage(rollout(raw)), scaled_advantage(raw, 4.0, 2.0))
    close(awm(adv_clip_range=4.0, advantage_max=2.0).advantage(rollout(raw)), torch.tensor([-2.0, 1.0, 0.0]))
    close(awm(advantage_max=None).advantage(rollout(raw)), torch.tensor([-5.0, 2.0, 0.0]))
    _, (point, _), _ = awm_points(awm())
    plain, _ = awm().loss(point, given)
    held, metrics = awm(kl_beta=0.5).loss(point, given)
    close(metrics["kl_div"].double(), kl_v(given(point), given(point, "ref")).mean().detach(), 1e-6)
    close(held - plain, (0.5 * metrics["kl_div"]).double(), 1e-6)
