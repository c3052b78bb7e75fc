"""Flow-DPPO: values and gradients against the reference, its mask in closed form, what it has in common with GRPO."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flow_factory.algorithms.dppo import DPPO
from flow_factory.algorithms.grpo import GRPO
from flow_factory.algorithms.losses import clipped_objective, kl_exact, kl_v, kl_x
from flow_factory.algorithms.losses.dppo import far_enough, masked_objective
from flow_factory.config import DPPOConfig, GRPOConfig, SchedulerConfig
from flow_factory.core.dynamics import DYNAMICS, slope
from flow_factory.core.sampling import Sampler
from flow_factory.types import Metrics, Point, Step
from tests.points import given, rollout
from tests.vectors import close, golden, gradient, normals

KERNELS = {"flow": "Flow-SDE", "dance": "Dance-SDE", "cps": "CPS"}


def replayed(algorithm: DPPO | GRPO, tag: str, k: int) -> tuple[dict[str, Tensor], Point, Tensor]:
    """The file, the algorithm's own point of the k-th step, and the policy's velocity there (leaf)."""
    g = golden("18_dppo")
    i, v = int(g["steps"][k]), g["v_new"][k].clone().requires_grad_()
    s, s1 = g["sigmas"][i], g["sigmas"][i + 1]
    old = g[f"{tag}_mean_old"][k]
    step = Step(i, 1000 * s, s, s1, g["sigmas"][1], g["x"][k], g[f"{tag}_next"][k], g[f"{tag}_logp_old"][k], torch.float64, old)
    (point,) = algorithm.points(rollout(g["advantages"], steps=[step]))
    point.frozen = {"policy": v, "ref": g["v_ref"][k]}
    return g, point, v


def made(tag: str, **train: Any) -> DPPO:
    eta = float(golden("18_dppo")[f"{tag}_eta"])
    return DPPO(DPPOConfig(**train), SchedulerConfig(dynamics_type=KERNELS[tag], noise_level=eta))


# -- against the reference ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", KERNELS)
@pytest.mark.parametrize("kind", ["exact", "v"])
@pytest.mark.parametrize("size", ["zero", "mid", "inf"])
def test_the_masked_objective_is_the_references(tag: str, kind: str, size: str) -> None:
    """All in float64."""
    g, kernel = golden("18_dppo"), DYNAMICS[KERNELS[tag]]
    threshold = {"zero": 0.0, "inf": math.inf}.get(size, float(g.get(f"{tag}_{kind}_tau_mid", torch.tensor(0.0))))
    for k, i in enumerate(g["steps"].tolist()):
        s, s1, v = g["sigmas"][i], g["sigmas"][i + 1], g["v_new"][k].clone().requires_grad_()
        where = (s, s1, float(g[f"{tag}_eta"]), g["sigmas"][1])
        mean, std = kernel.step(g["x"][k], v, *where)
        logp = kernel.log_prob(g[f"{tag}_next"][k], mean, std)
        kl = kl_exact(mean, g[f"{tag}_mean_old"][k], std)
        close(kl, g[f"{tag}_kl_exact"][k])
        if kind == "v":
            kl = kl_x(mean, g[f"{tag}_mean_old"][k]) / slope(kernel, *where) ** 2
            close(kl, g["kl_v"][k])
        advantage = g["advantages"].clamp(-5, 5)
        far = far_enough(kl.detach(), (logp - g[f"{tag}_logp_old"][k]).detach(), advantage, threshold)
        loss, ratio = masked_objective(logp, g[f"{tag}_logp_old"][k], advantage, far)
        close(ratio, g[f"{tag}_ratio"][k])
        assert torch.equal(~far, g[f"{tag}_{kind}_{size}_keep"][k])
        close(loss.mean(), g[f"{tag}_{kind}_{size}_loss"][k])
        close(gradient(loss.mean(), v), g[f"{tag}_{kind}_{size}_grad"][k])


@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize("tag", KERNELS)
@pytest.mark.parametrize("kind", ["exact", "v-based"])
def test_the_algorithm_is_the_references(tag: str, k: int, kind: str) -> None:
    """In float32, with the KL to the reference."""
    name = kind.partition("-")[0]
    threshold = float(golden("18_dppo")[f"{tag}_{name}_tau_mid"])
    algorithm = made(tag, kl_mask_type=kind, kl_mask_threshold=threshold, kl_type="exact", kl_beta=0.04 if kind == "exact" else 0.0)
    g, point, v = replayed(algorithm, tag, k)
    loss, metrics = algorithm.loss(point, given)
    total = f"{tag}_total" if kind == "exact" and f"{tag}_total_loss" in g else f"{tag}_{name}_mid"
    if kind == "exact" and total.endswith("mid"):
        loss = metrics["policy_loss"]
    close(loss.double(), g[f"{total}_loss"][k], 2e-5)
    if total.endswith("total") or kind == "v-based":
        close(gradient(loss, v), g[f"{total}_grad"][k], 2e-4)
    kept, good = g[f"{tag}_{name}_mid_keep"][k], g["advantages"] > 0
    assert torch.equal(metrics["far_frac"], (~kept).to(metrics["far_frac"]))
    assert torch.equal(metrics["far_frac_high"] > 0, ~kept & good) and torch.equal(metrics["far_frac_low"] > 0, ~kept & ~good)
    if kind == "exact":
        close(metrics["kl_old"].double(), g[f"{tag}_kl_exact"][k], 2e-5)
        assert metrics["kl_old_max"] == metrics["kl_old"].max()


# -- properties -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Flow-SDE", "Dance-SDE", "CPS"])
def test_a_threshold_on_velocities_is_one_on_the_kl_with_another_scale_at_each_step(name: str) -> None:
    kernel, (x, v_old, v) = DYNAMICS[name], normals(3, 4, 2, 5)
    for s, s1 in ((0.9, 0.8), (0.4, 0.2)):
        where = torch.tensor(s).double(), torch.tensor(s1).double(), 0.7, torch.tensor(0.95).double()
        (old, std), (new, _) = kernel.step(x, v_old, *where), kernel.step(x, v, *where)
        close(kl_v(v, v_old), 2 * std**2 / slope(kernel, *where) ** 2 * kl_exact(new, old, std))


@pytest.mark.parametrize("direction", ["ratio", "normalised"])
@pytest.mark.parametrize("k", range(3))
def test_without_a_threshold_it_is_the_unclipped_policy_gradient(k: int, direction: str) -> None:
    algorithm = made("flow", kl_mask_threshold=1e6, direction=direction)
    g, point, v = replayed(algorithm, "flow", k)
    grpo = GRPO(GRPOConfig(clip_range=(-1.0, 1e6)), algorithm.scheduler)
    assert torch.equal(algorithm.loss(point, given)[0], grpo.loss(point, given)[0])
    assert torch.equal(gradient(algorithm.loss(point, given)[0], v), gradient(grpo.loss(point, given)[0], v))


@pytest.mark.parametrize("k", range(3))
def test_with_threshold_0_only_what_comes_back_has_a_gradient(k: int) -> None:
    algorithm = made("flow", kl_mask_threshold=0.0)
    g, point, v = replayed(algorithm, "flow", k)
    back = g["advantages"] * (g["flow_ratio"][k] - 1) < 0
    assert torch.equal(gradient(algorithm.loss(point, given)[0], v).flatten(1).abs().sum(1) > 0, back)


@pytest.mark.parametrize("direction", ["ratio", "normalised"])
def test_the_other_sign_of_the_advantage_masks_the_other_side(direction: str) -> None:
    algorithm = made("flow", kl_mask_threshold=0.0, direction=direction)
    _, point, _ = replayed(algorithm, "flow", 1)
    one = algorithm.loss(point, given)[1]["far_frac"]
    point.advantage = -point.advantage
    assert torch.equal(one + algorithm.loss(point, given)[1]["far_frac"], torch.ones_like(one))


def test_the_normalised_direction_is_the_sign_of_the_noise_times_the_move() -> None:
    """Where the likelihood's own has its bias: a policy that has moved across the noise makes all samples less probable."""
    noise = torch.ones(2, 8).double()
    move = torch.tensor([[3.0, -2.9] * 4, [3.0, -3.1] * 4]).double()  # a little along the noise, a little against it
    g, s, s1 = DYNAMICS["Flow-SDE"], torch.tensor(0.7).double(), torch.tensor(0.6).double()
    x, old_v = torch.zeros(2, 8).double(), torch.zeros(2, 8).double()
    old, std = g.step(x, old_v, s, s1, 0.7, s)
    new, _ = g.step(x, move / slope(g, s, s1, 0.7, s), s, s1, 0.7, s)
    step = Step(1, s, s, s1, s, x, old + std * noise, g.log_prob(old + std * noise, old, std), torch.float64, old)
    found = {}
    for direction in ("ratio", "normalised"):
        algorithm = DPPO(DPPOConfig(kl_mask_threshold=0.0, direction=direction), SchedulerConfig(noise_level=0.7))
        (point,) = algorithm.points(rollout(torch.ones(2), steps=[step]))
        point.frozen = {"policy": move / slope(g, s, s1, 0.7, s)}
        found[direction] = algorithm.loss(point, given)[1]["far_frac"].tolist()
    assert found == {"ratio": [0.0, 0.0], "normalised": [1.0, 0.0]}
    close(new - old, move)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tag", KERNELS)
def test_nothing_is_far_before_any_update_and_the_gradient_is_grpos(tag: str, dtype: torch.dtype) -> None:
    algorithm = made(tag)
    x, noise = normals(2, 4, 3, 6).float()
    sampler = Sampler(algorithm.kernel, algorithm.scheduler.noise_level, {1}, lambda *_: noise, dtype, with_mean=algorithm.with_mean)
    s, s1, ceiling = (torch.tensor(a) for a in (0.8, 0.6, 0.9))
    step = sampler(1, s * 1000, x.to(dtype), (0.75 * x.to(dtype).float() + 0.25).to(dtype), s, s1, ceiling)[1]
    assert step is not None
    (point,) = algorithm.points(rollout(torch.tensor([1.5, -0.5, 0.0, 2.0]), steps=[step]))
    v = (0.75 * point.x.float() + 0.25).to(dtype).requires_grad_()
    loss, metrics = algorithm.loss(point, lambda p, weights="policy": v)
    assert torch.equal(metrics["ratio"], torch.ones(4)) and not metrics["far_frac"].any() and not metrics["kl_old"].any()
    assert algorithm.on_policy_error(metrics)[0] == 0
    other = GRPO(GRPOConfig(), algorithm.scheduler).loss(point, lambda p, weights="policy": v)[0]
    assert torch.equal(gradient(loss, v), gradient(other, v))


@pytest.mark.parametrize(("kl", "ratio", "worse"), [(0.9e-7, 0.9e-5, False), (1.1e-7, 0.0, True), (0.0, 1.1e-5, True)])
def test_training_must_see_what_sampling_saw_by_kl_and_by_ratio(kl: float, ratio: float, worse: bool) -> None:
    metrics: Metrics = {"kl_old_max": torch.tensor(kl), "ratio_error": torch.tensor(ratio)}
    error, most = made("flow").on_policy_error(metrics)
    assert most == pytest.approx(1e-7) and (error.item() > most) == worse


def test_an_infinite_ratio_that_is_left_out_has_no_gradient() -> None:
    logp = torch.tensor([1e4, 0.0], requires_grad=True)
    loss, _ = masked_objective(logp, torch.zeros(2), torch.ones(2), torch.tensor([True, False]))
    assert gradient(loss.sum(), logp).tolist() == [0.0, -1.0] and loss.tolist() == [0.0, -1.0]


def test_where_no_bound_binds_it_is_grpos_objective() -> None:
    logp, old, advantage = normals(3, 5) * 1e-6
    far = torch.zeros(5, dtype=torch.bool)
    close(masked_objective(logp, old, advantage, far)[0], clipped_objective(logp, old, advantage, (-0.5, 0.5))[0])
