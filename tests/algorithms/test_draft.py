"""ReFL and DRaFT-K: the gradient through the last steps is that of one graph through all of them, by closed forms and by autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flow_factory.algorithms.draft import DRaFT
from flow_factory.types import Point, Rollout, Step
from tests.points import made, rollout
from tests.vectors import close, golden


class Linear:
    """v = M x + s b + c with its parameters, in float64; the reference is 0."""

    def __init__(self, g: dict[str, Tensor]):
        self.M, self.b, self.c = (g[name].clone().requires_grad_() for name in ("M", "b", "c"))

    def __call__(self, point: Point, weights: str = "policy") -> Tensor:
        if weights == "ref":
            return torch.zeros_like(point.x).double()
        return self.at(point.x.double(), point.s)

    def at(self, x: Tensor, s: Tensor) -> Tensor:
        return x @ self.M.T + s * self.b + self.c

    @property
    def gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in (("M", self.M), ("b", self.b), ("c", self.c))}


def draft(**train: Any) -> DRaFT:
    algorithm = made("draft", num_inference_steps=8, **train)
    assert isinstance(algorithm, DRaFT)
    return algorithm


def rolled(algorithm: DRaFT, g: dict[str, Tensor]) -> Rollout:
    """The golden file's path, of which the steps that are trained on are kept, and the reward's gradient at its end."""
    sigmas, x = g["sigmas"], g["latents"]
    steps = [
        Step(i, 1000 * sigmas[i], sigmas[i], sigmas[i + 1], sigmas[1], x[i], x[i + 1], torch.zeros(2), torch.float64)
        for i in algorithm.kept(0, 0)
    ]
    one = rollout(torch.zeros(2), steps=steps)
    end = x[-1].clone().requires_grad_()
    score = -0.5 * ((end - g["target"]) ** 2).sum(-1)
    close(score, g["reward"])
    (one.slope,) = torch.autograd.grad(algorithm.objective(score).sum(), end)
    return one


def backwards(algorithm: DRaFT, one: Rollout, velocity: Linear, factor: float) -> None:
    """What the learner does: the mean over points, times whatever an engine multiplies a loss with."""
    for point in algorithm.points(one):
        loss, _ = algorithm.loss(point, velocity)
        (factor * loss / algorithm.size(one)).backward()


@pytest.mark.parametrize("factor", [1.0, 512.0, 0.125])
@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("K", [1, 2, 5, 8])
def test_gradients_are_those_through_the_last_steps_whatever_the_loss_is_multiplied_with(K: int, stop: bool, factor: float) -> None:
    g, velocity = golden("25_refl"), Linear(golden("25_refl"))
    algorithm = draft(draft_steps=K % 8, stop_gradient=stop)  # 0 is all
    one = rolled(algorithm, g)
    assert algorithm.kept(0, 0) == tuple(range(8 - K, 8)) and algorithm.noisy(0, 0) == ()
    backwards(algorithm, one, velocity, factor)
    for name, gradient in velocity.gradients.items():
        close(gradient / factor, g[f"K{K}{'_stop' * stop}_grad_{name}"], 1e-6)  # states are leaves in float32
    assert not any(step.x.requires_grad for step in one.steps), "what is kept is not a part of any graph"


def test_one_step_has_no_steps_before_it_and_a_constant_reward_teaches_nothing() -> None:
    g = golden("25_refl")
    with_it, without = Linear(g), Linear(g)
    for velocity, stop in ((with_it, True), (without, False)):
        algorithm = draft(draft_steps=1, stop_gradient=stop)
        backwards(algorithm, rolled(algorithm, g), velocity, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(with_it.gradients.values(), without.gradients.values(), strict=True))
    silent, algorithm = Linear(g), draft(draft_steps=3)
    one = rolled(algorithm, g)
    one.slope = torch.zeros_like(one.slope)  # type: ignore[arg-type]
    backwards(algorithm, one, silent, 1.0)
    assert not any(gradient.any() for gradient in silent.gradients.values())


def test_the_distance_to_the_reference_is_added_at_the_steps_that_are_trained_on() -> None:
    """kl mean over K steps of mean_d (v - v_ref)^2 / (2 s^2), states taken for given."""
    g = golden("25_refl")
    velocity, algorithm = Linear(g), draft(draft_steps=3, kl_beta=0.5, stop_gradient=True)
    assert algorithm.weights == ("ref",)
    one = rolled(algorithm, g)
    one.slope = torch.zeros_like(one.slope)  # type: ignore[arg-type]
    backwards(algorithm, one, velocity, 1.0)
    wanted = Linear(g)
    total = sum((wanted.at(step.x, step.s) ** 2).mean() / (2 * step.s**2) for step in one.steps)
    (0.5 * total / 3).backward()  # type: ignore[union-attr]
    for name, gradient in velocity.gradients.items():
        close(gradient, wanted.gradients[name], 1e-6)
