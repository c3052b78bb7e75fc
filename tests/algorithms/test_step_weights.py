"""What a step counts: TempFlow-GRPO's and Flash-GRPO's weights, losses and gradients, and what must hold of any of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flow_factory.algorithms.grpo import GRPO
from flow_factory.algorithms.losses import clipped_objective
from flow_factory.algorithms.losses.steps import step_weights
from flow_factory.core.advantage import group_advantage
from flow_factory.core.dynamics import DYNAMICS, like
from flow_factory.types import Point, Step
from tests.points import given, made, rollout
from tests.vectors import close, golden, gradient, normals

FLASH = [("flow", "Flow-SDE"), ("dance", "Dance-SDE"), ("flash", "Flash-SDE"), ("cps", "CPS")]
NINE = range(9)


def at(sigmas: Tensor, steps: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Noise levels before and after each point's own step."""
    return like(sigmas[steps], x), like(sigmas[steps + 1], x)


@pytest.mark.parametrize("grid", ["sd3", "lin"])
def test_noise_weights_are_tempflows_with_mean_one(grid: str) -> None:
    g = golden("19_tempflow")
    weights = step_weights(DYNAMICS["Flow-SDE"], "noise", g[f"{grid}_sigmas"], NINE, float(g["eta"]))
    close(weights, g[f"{grid}_weight_mean1"])
    close(weights * 2.25 * g[f"{grid}_std"].mean(), g[f"{grid}_weight"])


@pytest.mark.parametrize(("tag", "dynamics"), FLASH)
def test_rectified_weights_are_flash_grpos_for_every_kernel(tag: str, dynamics: str) -> None:
    g, kernel = golden("20_flash"), DYNAMICS[dynamics]
    s, s1, eta = g["lin_sigmas"][:9], g["lin_sigmas"][1:10], float(g[f"{tag}_eta"])
    cv, std = kernel.step(torch.zeros_like(s), torch.ones_like(s), s, s1, eta, g["lin_sigmas"][1])
    close(std, g[f"{tag}_std"]), close(cv.abs(), g[f"{tag}_cv"].abs())
    weights = step_weights(kernel, "rectified", g["lin_sigmas"], NINE, eta)
    close(weights, g[f"{tag}_rect"] / g[f"{tag}_rect"].mean())


def test_rectified_weights_are_the_authors_table_of_wan() -> None:
    """Which is printed with five digits, and over the ten steps of their script."""
    g = golden("20_flash")
    pool = g["wan_pool"].tolist()
    weights = step_weights(DYNAMICS["Flash-SDE"], "rectified", g["wan_sigmas"], pool, float(g["wan_eta"]))
    close(weights, g["wan_weight"])
    close(weights, g["author_rect"] / g["author_rect"].mean(), 1e-4)


@pytest.mark.parametrize("clip", [1e-4, 1e-2])
def test_the_weighted_loss_is_tempflows(clip: float) -> None:
    g, kernel = golden("19_tempflow"), DYNAMICS["Flow-SDE"]
    v, steps, sigmas = g["point_v_new"].clone().requires_grad_(), g["point_step"], g["lin_sigmas"]
    mean, std = kernel.step(g["point_x"], v, *at(sigmas, steps, v), float(g["eta"]), sigmas[1])
    objective, _ = clipped_objective(kernel.log_prob(g["point_next"], mean, std), g["point_logp_old"], g["point_advantages"], (-clip, clip))
    weights = step_weights(kernel, "noise", sigmas, NINE, float(g["eta"]))
    gain = float((g["point_weight"] / weights[steps]).mean())  # Adam takes it out again
    loss = (gain * weights[steps] * objective).mean()
    close(loss, g[f"clip{clip:g}_loss"])
    close(gradient(loss, v), g[f"clip{clip:g}_grad"])


@pytest.mark.parametrize(("tag", "dynamics"), [f for f in FLASH if f[0] != "dance"])
def test_the_weighted_loss_is_flash_grpos_and_its_score_the_same_at_every_step(tag: str, dynamics: str) -> None:
    g, kernel, eta = golden("20_flash"), DYNAMICS[dynamics], float(golden("20_flash")[f"{tag}_eta"])
    steps, sigmas, x = g["point_step"], g["lin_sigmas"], g["point_x"]
    weights = step_weights(kernel, "rectified", sigmas, NINE, eta)[steps]
    close(weights, g[f"{tag}_weight"])

    def log_prob(v: Tensor) -> Tensor:
        return kernel.log_prob(g[f"{tag}_next"], *kernel.step(x, v, *at(sigmas, steps, x), eta, sigmas[1]))

    v = g["point_v_new"].clone().requires_grad_()
    old = log_prob(g["point_v_old"])
    loss = (weights * clipped_objective(log_prob(v), old, g["point_advantages"].clamp(-5, 5), (-1e-3, 1e-3))[0]).mean()
    close(loss, g[f"{tag}_loss"])
    close(gradient(loss, v), g[f"{tag}_grad"])
    v_old = g["point_v_old"].clone().requires_grad_()
    rectified = g[f"{tag}_rect"][steps]
    score = gradient((rectified * log_prob(v_old)).sum(), v_old)
    close(score, g[f"{tag}_score_old"])
    close(score.flatten(1).norm(dim=1), (g["point_noise"] / x[0].numel()).flatten(1).norm(dim=1))


def test_branches_are_tempflows_tree_of_one_step_a_group() -> None:
    """A trunk by the ODE, a stochastic step, the ODE again; advantages over all seeds' branches at a step, or over a seed's own."""
    g, kernel = golden("19_tempflow"), DYNAMICS["Flow-SDE"]
    sigmas, eta = g["lin_sigmas"] if torch.allclose(g["branch_std"], g["lin_std"][g["branch_steps"]]) else g["sd3_sigmas"], float(g["eta"])

    def v(x: Tensor, s: Tensor) -> Tensor:
        return torch.einsum("dc,...chw->...dhw", g["M"], x) + s * g["b"] + g["c"]

    trunk = [g["trunk"][0]]
    for s, s1 in zip(sigmas[:-1], sigmas[1:], strict=True):
        trunk.append(DYNAMICS["ODE"].step(trunk[-1], v(trunk[-1], s), s, s1, 0.0, sigmas[1])[0])
    close(torch.stack(trunk), g["trunk"])
    for j, k in enumerate(g["branch_steps"].tolist()):
        mean, std = kernel.step(trunk[k], v(trunk[k], sigmas[k]), sigmas[k], sigmas[k + 1], eta, sigmas[1])
        close(mean, g["branch_mean"][j]), close(std, g["branch_std"][j])
        x = mean[:, None] + std * g["branch_noise"][j]
        close(x, g["branch_next"][j])
        many = x.flatten(0, 1)
        close(kernel.log_prob(many, mean.repeat_interleave(x.shape[1], 0), std).view(x.shape[:2]), g["branch_logp"][j])
        for s, s1 in zip(sigmas[k + 1 : -1], sigmas[k + 2 :], strict=True):
            x = x + (s1 - s) * v(x, s)
        close(x, g["branch_final"][j])
    by_step = g["rewards"].permute(0, 2, 1, 3)  # prompt, step, seed, branch
    one = torch.ones(1)
    for scores, global_std, wanted in (
        (by_step.flatten(2).flatten(0, 1), False, g["adv_prompt"].permute(0, 2, 1, 3)),
        (by_step.flatten(2).flatten(0, 1), True, g["adv_prompt_epoch_std"].permute(0, 2, 1, 3)),
        (g["rewards"].flatten(0, 2), False, g["adv_seed"]),
    ):
        close(group_advantage(scores[..., None], one, global_std)[0].flatten(), wanted.flatten().float(), 1e-5)


# -- in the algorithm -------------------------------------------------------------------------------------------------------------------


def grpo(dynamics: str = "Flow-SDE", steps: list[int] | None = None, **train: Any) -> GRPO:
    algorithm = made("grpo", scheduler={"dynamics_type": dynamics, "sde_steps": steps}, num_inference_steps=10, **train)
    assert isinstance(algorithm, GRPO)
    return algorithm


def point_of(algorithm: GRPO, index: int, v: Tensor) -> Point:
    """Of a transition of the schedule 1, .9, ..., 0, whose old log-probability is another policy's."""
    x, noise, old = normals(3, 4, 2, 3, seed=index)
    sigmas = torch.linspace(1, 0, 11, dtype=torch.float64)
    s, s1, ceiling = sigmas[index], sigmas[index + 1], sigmas[1]
    mean, std = algorithm.kernel.step(x, old, s, s1, algorithm.scheduler.noise_level, ceiling)
    x1 = mean + std * noise
    step = Step(index, 1000 * s, s, s1, ceiling, x, x1, algorithm.kernel.log_prob(x1, mean, std), torch.float64)
    made_of = rollout(torch.tensor([1.0, -0.5, 0.0, 2.0]), steps=[step])
    made_of.schedule = 1000 * sigmas[:-1], sigmas
    (point,) = algorithm.points(made_of)
    point.frozen = {"policy": v, "ref": old}
    return point


@pytest.mark.parametrize(("dynamics", "kind"), [("Flow-SDE", "noise"), ("Flow-SDE", "rectified"), ("Flash-SDE", "rectified"),
                                                ("Dance-SDE", "noise"), ("CPS", "rectified")])  # fmt: skip
def test_a_steps_loss_is_grpos_times_its_weight_and_the_distance_to_the_reference_stays(dynamics: str, kind: str) -> None:
    """Over the candidates the weights are 1 on average; a single candidate has weight 1, which is GRPO."""
    total, steps = torch.zeros(()), [0, 2, 3, 7]
    plain, weighted = grpo(dynamics, steps, kl_beta=0.5), grpo(dynamics, steps, kl_beta=0.5, step_weight=kind)
    assert weighted.with_schedule and not plain.with_schedule
    for index in steps:
        v = normals(4, 2, 3, seed=9).requires_grad_()
        ours, metrics = weighted.loss(point_of(weighted, index, v), given)
        theirs, without = plain.loss(point_of(plain, index, v), given)
        assert "step_weight" not in without
        w = metrics["step_weight"]
        assert w.shape == (4,) and w.unique().numel() == 1
        close(ours - metrics["kl_loss"], (theirs - without["kl_loss"]).detach() * w[0], 1e-5)
        total = total + w[0]
        alone = grpo(dynamics, [index], step_weight=kind)
        close(alone.loss(point_of(alone, index, v), given)[0], without["policy_loss"], 1e-6)
    close(total / len(steps), torch.ones(()), 1e-6)
