"""GRPO with a made-up velocity v = w x + b: losses and gradients against formulas by hand, in float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flow_factory.algorithms.grpo import GRPO
from flow_factory.config import GRPOConfig, SchedulerConfig
from flow_factory.core.dynamics import DYNAMICS
from flow_factory.core.sampling import Sampler
from flow_factory.types import Point, Rollout, Row, Step

N, D, ETA = 4, 6, 0.7
S, S1, CEILING = 0.8, 0.6, 0.9
SDES = ["Flow-SDE", "Dance-SDE", "Flash-SDE", "CPS"]
ADVANTAGE = torch.tensor([1.5, -0.5, 0.0, 2.0])


class Line:
    """v = w x + b under the policy, 1.1 x - .3 under the reference; remembers who was asked."""

    def __init__(self, w: float = 0.9, b: float = 0.2):
        self.w, self.b = torch.tensor(w, requires_grad=True), torch.tensor(b, requires_grad=True)
        self.asked: list[str] = []

    def __call__(self, point: Point, weights: str = "policy") -> Tensor:
        self.asked.append(weights)
        return self.w * point.x + self.b if weights == "policy" else 1.1 * point.x - 0.3


def algorithm(dynamics: str = "Flow-SDE", **train: Any) -> GRPO:
    return GRPO(GRPOConfig(**train), SchedulerConfig(dynamics_type=dynamics, noise_level=ETA))


def rolled_step(dynamics: str, index: int = 1, w: float = 1.0, b: float = 0.0, dtype: torch.dtype = torch.float32) -> Step:
    """A transition that the line w x + b drew."""
    numbers = torch.Generator().manual_seed(index)
    x = torch.randn(N, 2, D // 2, generator=numbers).to(dtype)
    noise = torch.randn(N, 2, D // 2, generator=numbers)
    sampler = Sampler(DYNAMICS[dynamics], ETA, {index}, lambda k, like, purpose: noise, dtype)
    s, s1, ceiling = (torch.tensor(a) for a in (S, S1, CEILING))
    return sampler(index, s * 1000, x, (w * x.float() + b).to(dtype), s, s1, ceiling)[1]


def point_of(step: Step, advantage: Tensor = ADVANTAGE) -> Point:
    return Point(step.x.to(step.dtype), step.t, step.s, {}, advantage, step)


# -- by hand: mean = a x + c v, per sample; logp = -k mean_d (x1 - mean)^2 + const ------------------------------------------------


def coefficients(dynamics: str) -> tuple[float, float, float, float]:
    """(a, c, std, k)."""
    if dynamics == "CPS":
        std = S1 * math.sin(ETA * math.pi / 2)
        kept = math.sqrt(S1**2 - std**2)
        return 1 - S1 + kept, -S * (1 - S1) + (1 - S) * kept, std, 1.0
    g = {"Flow-SDE": ETA * math.sqrt(S / (1 - S)), "Dance-SDE": ETA, "Flash-SDE": ETA * CEILING * S}[dynamics]
    std = g * math.sqrt(S - S1)
    return 1 - (S - S1) * g**2 / (2 * S), -(S - S1) * (1 + g**2 * (1 - S) / (2 * S)), std, 1 / (2 * std**2)


def by_hand(dynamics: str, step: Step, v: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, logp) of a velocity, float64."""
    a, c, std, k = coefficients(dynamics)
    mean = a * step.x.double() + c * v
    constant = 0.0 if dynamics == "CPS" else math.log(std) + 0.5 * math.log(2 * math.pi)
    return mean, -k * ((step.x1.double() - mean) ** 2).flatten(1).mean(1) - constant


def close(actual: Tensor, expected: Tensor | float, rel: float = 2e-4) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach().double(), expected, rtol=rel, atol=rel * float(expected.abs().max()) + 1e-9)


@pytest.mark.parametrize("dynamics", SDES)
def test_the_loss_and_its_gradient_are_the_papers(dynamics: str) -> None:
    """d logp / d v = 2 k (x1 - mean) c / D, and the clip is wide: d loss / d logp = -A r / N."""
    step, line = rolled_step(dynamics), Line()
    loss, metrics = algorithm(dynamics, clip_range=0.9).loss(point_of(step), line)
    x = step.x.double()
    mean, logp = by_hand(dynamics, step, 0.9 * x + 0.2)
    ratio, advantage = (logp - step.logp.double()).exp(), ADVANTAGE.double()
    assert ((ratio - 1).abs() < 0.9).all() and ((ratio - 1).abs() > 1e-4).all()
    close(loss, (-advantage * ratio).mean())
    close(metrics["ratio"], ratio)
    close(metrics["approx_kl"], 0.5 * (logp - step.logp.double()) ** 2, 1e-3)
    close(metrics["ratio_error"], (ratio - 1).abs().max(), 1e-3)
    _, c, _, k = coefficients(dynamics)
    slope = (-advantage * ratio / N).view(N, 1, 1) * 2 * k * (step.x1.double() - mean) * c / D
    for actual, expected in zip(torch.autograd.grad(loss, (line.w, line.b)), ((slope * x).sum(), slope.sum()), strict=True):
        close(actual, expected, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dynamics", SDES)
def test_before_any_update_the_ratio_is_exactly_one(dynamics: str, dtype: torch.dtype) -> None:
    step = rolled_step(dynamics, w=0.75, b=0.25, dtype=dtype)
    loss, metrics = algorithm(dynamics).loss(point_of(step), lambda point, weights="policy": (0.75 * point.x.float() + 0.25).to(dtype))
    assert torch.equal(metrics["ratio"], torch.ones(N)) and torch.equal(loss, -ADVANTAGE.mean())
    assert not any(metrics[k].any() for k in ("ratio_error", "clip_frac", "approx_kl"))


def test_an_asymmetric_clip_stops_only_what_has_gone_far_enough() -> None:
    """Clip (-.02, .05): samples by sign of A and side of r; the old log-probability is set to give each its ratio."""
    step, line = rolled_step("Flow-SDE"), Line()
    logp = by_hand("Flow-SDE", step, 0.9 * step.x.double() + 0.2)[1]
    ratio = torch.tensor([1.1, 0.9, 1.1, 0.9]).double()
    advantage = torch.tensor([1.0, 1.0, -2.0, -2.0])
    step.logp = (logp - ratio.log()).float()
    loss, metrics = algorithm(clip_range=(-0.02, 0.05)).loss(point_of(step, advantage), line)
    close(loss, (-1.05 - 0.9 + 2.2 + 2 * 0.98) / 4)
    close(metrics["clip_frac_low"], 0.5), close(metrics["clip_frac_high"], 0.5), close(metrics["clip_frac"], 1.0)
    _, c, _, k = coefficients("Flow-SDE")
    mean = by_hand("Flow-SDE", step, 0.9 * step.x.double() + 0.2)[0]
    slope = torch.tensor([0.0, -0.9, 2.2, 0.0]).double().view(N, 1, 1) / N * 2 * k * (step.x1.double() - mean) * c / D
    close(torch.autograd.grad(loss, line.b)[0], slope.sum(), 1e-3)


@pytest.mark.parametrize("kl_type", ["x-based", "v-based", "exact"])
@pytest.mark.parametrize("dynamics", ["Flow-SDE", "Dance-SDE", "Flash-SDE"])
def test_the_distance_to_the_reference(dynamics: str, kl_type: str) -> None:
    """mean_d of dv^2; of dmean^2 = c^2 dv^2; the Gaussian KL |dt| / 2 (g (1 - s) / (2 s) + 1 / g)^2 dv^2. Advantage 0: no other term."""
    step, line, beta = rolled_step(dynamics), Line(), 0.04
    loss, metrics = algorithm(dynamics, kl_beta=beta, kl_type=kl_type).loss(point_of(step, torch.zeros(N)), line)
    _, c, std, _ = coefficients(dynamics)
    g, x = std / math.sqrt(S - S1), step.x.double()
    factor = {"v-based": 1.0, "x-based": c**2, "exact": (S - S1) / 2 * (g * (1 - S) / (2 * S) + 1 / g) ** 2}[kl_type]
    dv = (0.9 - 1.1) * x + (0.2 + 0.3)
    close(metrics["kl_div"], factor * (dv**2).mean())
    close(loss, beta * factor * (dv**2).mean())
    gradients = torch.autograd.grad(loss, (line.w, line.b))
    close(gradients[0], beta * factor * (2 * dv * x).mean(), 1e-3)
    close(gradients[1], beta * factor * (2 * dv).mean(), 1e-3)
    assert line.asked == ["policy", "ref"]


def test_cps_knows_the_same_distances() -> None:
    step, line = rolled_step("CPS"), Line()
    c, dv = coefficients("CPS")[1], -0.2 * rolled_step("CPS").x.double() + 0.5
    for kl_type, factor in (("x-based", c**2), ("v-based", 1.0), ("exact", c**2 / (2 * coefficients("CPS")[2] ** 2))):
        _, metrics = algorithm("CPS", kl_beta=1.0, kl_type=kl_type).loss(point_of(step), line)
        close(metrics["kl_div"], factor * (dv**2).mean())


def test_the_loss_is_the_policys_plus_beta_times_the_distance() -> None:
    step = rolled_step("Flow-SDE")
    plain, _ = algorithm().loss(point_of(step), Line())
    loss, metrics = algorithm(kl_beta=0.5).loss(point_of(step), Line())
    close(loss, (plain + 0.5 * metrics["kl_div"]).detach().double())
    close(metrics["policy_loss"], plain.detach().double())
    assert metrics["loss"] == loss and not any(m.requires_grad for m in metrics.values())


def test_without_kl_the_reference_is_never_asked_nor_kept() -> None:
    line = Line()
    algorithm(kl_beta=0.0).loss(point_of(rolled_step("Flow-SDE")), line)
    assert line.asked == ["policy"]
    assert algorithm(kl_beta=0.0).weights == () and algorithm(kl_beta=0.1).weights == ("ref",)


# -- points and steps -----------------------------------------------------------------------------------------------------------------


def test_points_are_the_stochastic_steps_in_order_with_the_clipped_advantage() -> None:
    steps = [rolled_step("Flow-SDE", index, dtype=torch.bfloat16) for index in (1, 3, 4)]
    steps[1].dtype = torch.float32  # stored in fewer bits than the model saw
    cond = {"prompt_embeds": torch.zeros(1)}
    rollout = Rollout(Row(0, "a cat"), cond, steps, [], group=0)
    rollout.advantage = torch.tensor([-9.0, -0.5, 1.0, 9.0])
    points = list(algorithm(adv_clip_range=(-1.0, 2.0)).points(rollout))
    assert [p.step for p in points] == steps and all(p.cond is cond for p in points)
    for point, step in zip(points, steps, strict=True):
        assert torch.equal(point.advantage, torch.tensor([-1.0, -0.5, 1.0, 2.0]))
        assert point.x.dtype == step.dtype and torch.equal(point.x.float(), step.x.float())
        assert (point.t, point.s) == (step.t, step.s)
    assert torch.equal(rollout.advantage, torch.tensor([-9.0, -0.5, 1.0, 9.0]))


def test_an_epochs_steps_are_drawn_from_the_candidates_by_seed_and_epoch() -> None:
    def drawn(seed: int, **scheduler: Any) -> list[tuple[int, ...]]:
        grpo = GRPO(GRPOConfig(num_inference_steps=8, seed=seed), SchedulerConfig(**scheduler))
        return [grpo.noisy(epoch, 0) for epoch in range(100)]

    some = drawn(1, sde_steps=[1, 2, 5], num_sde_steps=2)
    assert set(some) == {(1, 2), (1, 5), (2, 5)} and some == drawn(1, sde_steps=[1, 2, 5], num_sde_steps=2)
    assert some != drawn(2, sde_steps=[1, 2, 5], num_sde_steps=2)
    assert set(drawn(1, num_sde_steps=1)) == {(k,) for k in range(7)}
    assert set(drawn(1, num_sde_steps=None)) == {tuple(range(7))}


@pytest.mark.parametrize(("clip", "most"), [((-2e-4, 5e-4), 2e-5), ((-5e-4, 1e-4), 1e-5)])
def test_the_largest_tolerable_error_is_a_tenth_of_the_clips_nearer_end(clip: tuple[float, float], most: float) -> None:
    grpo = algorithm(clip_range=clip)
    _, metrics = grpo.loss(point_of(rolled_step("Flow-SDE")), Line())
    error, limit = grpo.on_policy_error(metrics)
    assert error == (metrics["ratio"] - 1).abs().max() and limit == pytest.approx(most)
