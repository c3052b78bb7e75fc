"""Students of few steps on pictures that are points of a plane: each goes where its losses should lead it."""

import pytest
import torch
from torch import Tensor

from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.types import Point, Rollout, Step
from tests.points import made, rollout

pytestmark = pytest.mark.exhaustive

SPREAD, SIGMAS, MANY = 0.5, torch.tensor([1.0, 0.6, 0.0]), 16
MEAN = torch.tensor([0.3, -0.2])
UNGUIDED = {"real_guidance_scale": None, "tdm_weight": 0.0, "surrogate_guidance_scale": 1.0}


def gaussian(x: Tensor, s: Tensor, mean: Tensor) -> Tensor:
    """The exact velocity at noise level s of pictures N(mean, SPREAD^2)."""
    s = s.reshape(-1, *[1] * (x.ndim - 1))
    away = (x - (1 - s) * mean) / (((1 - s) * SPREAD) ** 2 + s**2)
    return (s - (1 - s) * SPREAD**2) * away - mean


def drawn(mean: Tensor, noise: Tensor, sign: float) -> Rollout:
    """A group of two Euler steps; its advantages are the first coordinate's, times `sign`."""
    x, steps = noise, []
    for k in range(2):
        x1 = x + (SIGMAS[k + 1] - SIGMAS[k]) * gaussian(x, SIGMAS[k], mean)
        steps.append(Step(k, 1000 * SIGMAS[k], SIGMAS[k], SIGMAS[k + 1], SIGMAS[1], x, x1, torch.full((MANY,), torch.nan), torch.float32))
        x = x1
    reward = sign * x[:, 0]
    return rollout((reward - reward.mean()) / reward.std(), x0=x, steps=steps, memo=ConditionMemo())


def learnt(name: str, start: Tensor, sign: float, updates: int) -> Tensor:
    """The student's mean, less the base's, after so many updates. Every network is a Gaussian whose mean is trained."""
    keys = UNGUIDED if name == "tdm-r1" else {}
    algorithm, noise = made(name, num_inference_steps=2, ttur_fake_updates=2, **keys), torch.Generator().manual_seed(0)
    means = {"policy": start.clone().requires_grad_()} | {n: torch.zeros(2, requires_grad=True) for n in ("fake", "surrogate")}
    steps = {n: torch.optim.Adam([p], 0.02 if n == "policy" else 0.04, betas=(0.0, 0.999)) for n, p in means.items()}
    kept = {"ref": torch.zeros(2), "slow": torch.zeros(2)}
    for update in range(updates):
        groups = [drawn(MEAN + means["policy"].detach(), torch.randn(MANY, 2, generator=noise), sign) for _ in range(4)]
        for turn in algorithm.turns(update):

            def velocity(point: Point, weights: str = "policy", guidance: float | None = None, learns: str = turn.network) -> Tensor:
                with torch.set_grad_enabled(weights == learns):
                    return gaussian(point.x, point.s, MEAN + (means | kept)[weights])

            steps[turn.network].zero_grad()
            torch.stack([turn.loss(p, velocity)[0] for group in groups for p in turn.points(group)]).mean().backward()
            steps[turn.network].step()
        for kind, average in algorithm.averages.items():
            kept[kind] = torch.lerp(means["surrogate"].detach(), kept[kind], average.decay(update))
    return means["policy"].detach()


@pytest.mark.parametrize("name", ["dmd2", "tdm"])
def test_a_student_comes_back_to_the_base(name: str) -> None:
    start = torch.tensor([0.6, -0.6])
    assert (learnt(name, start, 1.0, updates=30).abs() < 0.5 * start.abs()).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_tdm_r1_goes_where_the_reward_is_higher(sign: float) -> None:
    """Along the first coordinate, upwards or downwards, and not along the second, which the reward does not see."""
    along, aside = learnt("tdm-r1", torch.zeros(2), sign, updates=25).tolist()
    assert sign * along > 0.3 and abs(aside) < 0.5 * abs(along)
