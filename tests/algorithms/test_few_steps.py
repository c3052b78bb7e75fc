"""Students of few steps: the turns of an update, what each asks for, and what must hold whatever the networks are."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flow_factory.algorithms.base import Algorithm, Turn
from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.types import Point, Rollout, Step
from tests.points import made, rollout

SIGMAS = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0])
GUIDED = 4.0


def path(n: int = 4, ids: tuple[int, ...] = (), **more: Any) -> Rollout:
    """A micro-batch of a path of four Euler steps."""
    x = torch.randn(n, 3, 4, generator=torch.Generator().manual_seed(1))
    steps = []
    for k in range(4):
        x1 = x + (SIGMAS[k + 1] - SIGMAS[k]) * field(x)
        steps.append(Step(k, 1000 * SIGMAS[k], SIGMAS[k], SIGMAS[k + 1], SIGMAS[1], x, x1, torch.full((n,), torch.nan), torch.float32))
        x = x1
    return rollout(torch.linspace(-1, 1, n), ids, x0=x, steps=steps, memo=ConditionMemo(), **more)


def field(x: Tensor) -> Tensor:
    return 0.5 * x - 0.2


class Networks:
    """Velocities that are linear in the state; each network has a factor of its own, which is trained."""

    def __init__(self, **factors: float):
        self.factors = {name: torch.tensor(f, requires_grad=True) for name, f in ({"policy": 0.5} | factors).items()}
        self.trained, self.asked = "policy", Counter[tuple[str, float | None]]()

    def __call__(self, point: Point, weights: str = "policy", guidance: float | None = None) -> Tensor:
        self.asked[weights, guidance] += 1
        factor = self.factors[weights] if weights in self.factors else torch.tensor(0.5)
        extra = 0.1 * (GUIDED - 1) if weights == "ref" and guidance is None else 0.0
        with torch.set_grad_enabled(weights == self.trained and torch.is_grad_enabled()):
            return factor * point.x - 0.2 + extra

    def gradient(self, turn: Turn, batch: Rollout) -> Tensor:
        self.trained = turn.network
        loss = torch.stack([turn.loss(point, self)[0] for point in turn.points(batch)]).mean()
        return torch.autograd.grad(loss, self.factors[turn.network])[0]


def turns(algorithm: Algorithm, update: int = 0) -> list[str]:
    return [turn.network for turn in algorithm.turns(update)]


SETTINGS = {"dmd2": {"real_guidance_scale": GUIDED}, "tdm": {"real_guidance_scale": GUIDED}, "tdm-r1": {"real_guidance_scale": GUIDED}}
EVERY = list(SETTINGS)
UNGUIDED: dict[str, dict[str, Any]] = {name: {} for name in EVERY} | {
    "tdm-r1": {"real_guidance_scale": None, "tdm_weight": 0.0, "surrogate_guidance_scale": 1.0}
}


def test_an_update_trains_each_network_in_its_turn() -> None:
    assert turns(made("dmd2")) == ["fake"] * 5 + ["policy"] and turns(made("tdm")) == ["fake", "policy"]
    assert turns(made("tdm-r1", ttur_fake_updates=2)) == ["fake", "fake", "surrogate", "policy"]
    assert turns(made("grpo")) == turns(made("dgpo")) == ["policy"]


BUDGET = {
    "dmd2": {"fake": {("policy", None): 1, ("fake", None): 1}, "policy": {("policy", None): 1, ("fake", None): 1, ("ref", None): 1}},
    "tdm": {"fake": {("policy", None): 4, ("fake", None): 4}, "policy": {("policy", None): 4, ("fake", None): 4, ("ref", None): 4}},
    "tdm-r1": {
        "fake": {("policy", None): 4, ("fake", None): 4},
        "surrogate": {("ref", 1.0): 4, ("slow", 1.0): 4, ("surrogate", 1.0): 4},
        "policy": {("policy", None): 4, ("fake", None): 4, ("ref", None): 4, ("ref", 1.0): 4, ("surrogate", 4.5): 4},
    },
}
"""Velocities that a turn asks for of a micro-batch whose group is whole."""


@pytest.mark.parametrize("name", EVERY)
def test_a_turn_asks_for_no_velocity_too_many(name: str) -> None:
    for turn in made(name, **SETTINGS[name]).turns(0):
        networks = Networks(fake=0.7, surrogate=0.6)
        networks.gradient(turn, path())
        assert networks.asked == BUDGET[name][turn.network], turn.network
        assert {*turn.needs, (turn.network, None)} == {(k, g if k != turn.network else None) for k, g in networks.asked}, "as it says"


def test_without_guidance_the_base_is_asked_once_and_pulls_as_the_surrogate_does() -> None:
    """Where the surrogate and the fake network are the base, nothing pulls; a surrogate of its own does."""
    policy = made("tdm-r1", **UNGUIDED["tdm-r1"]).turns(0)[-1]
    networks = Networks(fake=0.5, surrogate=0.5)
    assert networks.gradient(policy, path()) == 0
    assert networks.asked == {("policy", None): 4, ("fake", None): 4, ("ref", 1.0): 4, ("surrogate", 1.0): 4}
    assert Networks(fake=0.5, surrogate=0.6).gradient(policy, path()) != 0


@pytest.mark.parametrize("name", EVERY)
def test_noise_and_its_level_are_a_samples_own_and_new_at_each_turn(name: str) -> None:
    algorithm = made(name, per_sample_times=True, **SETTINGS[name])
    assert {p.tau.ndim for t in algorithm.turns(0) for p in t.points(path()) if p.tau is not None} == {0}, "of guided networks, one for all"
    algorithm = made(name, per_sample_times=True, **UNGUIDED[name])
    first, *others = [list(turn.points(path(ids=(4, 5)))) for turn in algorithm.turns(3) if turn.network != "surrogate"]
    near = next(iter(algorithm.turns(3))).points(path(ids=(5, 6)))
    same = {p.step.index: p for p in near if p.step is not None}
    for point in first:
        assert point.step is not None and point.noise is not None and point.tau is not None
        if (twin := same.get(point.step.index)) is not None and twin.noise is not None and twin.tau is not None:
            assert torch.equal(point.noise[1], twin.noise[0]) and point.tau[1] == twin.tau[0]
    again = list(algorithm.turns(4)[0].points(path(ids=(4, 5))))
    drawn = [p.noise for points in (first, *others, again) for p in points if p.noise is not None]
    assert len(torch.cat(drawn).flatten(1).unique(dim=0)) == 2 * len(drawn)


def test_levels_are_within_their_interval() -> None:
    for name, keys in (("tdm", {}), ("tdm", {"tdm_query_interval": "trajectory", "tdm_query_distribution": "actual_uniform"})):
        points = [p for update in range(4) for turn in made(name, **keys).turns(update) for p in turn.points(path())]
        for p in points:
            assert p.step is not None and p.tau is not None
            top = p.step.s if keys else torch.tensor(1.0)
            assert p.step.s1 < p.tau <= top + 1e-6
    levels = torch.stack([p.tau for update in range(30) for p in made("dmd2").turns(update)[0].points(path()) if p.tau is not None])
    assert 0.02 <= levels.min() < 0.2 and 0.8 < levels.max() <= 0.98


@pytest.mark.parametrize("name", ["dmd2", "tdm"])
def test_without_guidance_a_student_with_the_bases_weights_is_not_pulled(name: str) -> None:
    """The fake network is the base at first: the two scores are the same."""
    policy = made(name).turns(0)[-1]
    networks = Networks(fake=0.5)

    def unguided(point: Point, weights: str = "policy", guidance: float | None = None) -> Tensor:
        return networks(point, weights, 1.0)

    loss = torch.stack([policy.loss(point, unguided)[0] for point in policy.points(path())]).mean()
    assert torch.autograd.grad(loss, networks.factors["policy"])[0] == 0
    assert networks.gradient(policy, path()) != 0, "with guidance it is"


@pytest.mark.parametrize("name", EVERY)
def test_only_the_network_whose_turn_it_is_gets_a_gradient(name: str) -> None:
    for turn in made(name, **SETTINGS[name]).turns(0):
        networks = Networks(fake=0.7, surrogate=0.6)
        networks.trained = turn.network
        for point in turn.points(path()):
            turn.loss(point, networks)[0].backward()
        assert {name for name, factor in networks.factors.items() if factor.grad is not None} == {turn.network}


@pytest.mark.exhaustive
def test_the_fake_network_learns_the_flow_of_the_students_pictures() -> None:
    """Of a student whose pictures are one point c, the velocity at x is (x - c) / tau: the trained field comes near it."""
    algorithm = made("dmd2", ttur_fake_updates=1, time_shift=1.0, perturbation_timestep_range=(0.3, 0.9))
    w, optimizer_of = torch.zeros(2, requires_grad=True), torch.optim.Adam

    def velocity(point: Point, weights: str = "policy", guidance: float | None = None) -> Tensor:
        if weights == "policy":
            return (point.x - 0.25) / point.s  # every state leads to 0.25
        return (w[0] * point.x + w[1]) / point.s

    optimizer = optimizer_of([w], lr=0.02)
    for update in range(600):
        optimizer.zero_grad()
        turn = algorithm.turns(update)[0]
        torch.stack([turn.loss(p, velocity)[0] for p in turn.points(path(64, tuple(range(64))))]).mean().backward()
        optimizer.step()
    assert w.tolist() == pytest.approx([1.0, -0.25], abs=0.05)


def surrogate(advantage: Tensor, split: bool, factor: float = 0.6, **keys: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradient on the surrogate, and the last metrics, of a group in one micro-batch or in two."""
    algorithm = made("tdm-r1", surrogate_preference_beta=10.0, **keys)
    turn = next(turn for turn in algorithm.turns(0) if turn.network == "surrogate")
    networks = Networks(surrogate=factor)
    networks.trained = "surrogate"
    whole = path(4)
    whole.advantage = advantage
    halves = [half(whole, k) for k in (slice(0, 2), slice(2, 4))] if split else [whole]
    losses, metrics = [], {}
    for points in zip(*map(turn.points, halves), strict=True):
        assert turn.precompute is not None
        said = turn.precompute(points, networks) if split else [None]
        for point, peers in zip(points, said, strict=True):
            point.peers = peers
            loss, metrics = turn.loss(point, networks)
            losses.append(loss)
    return torch.autograd.grad(torch.stack(losses).mean(), networks.factors["surrogate"])[0], metrics


def half(whole: Rollout, part: slice) -> Rollout:
    cut: Callable[[Step], Step] = lambda s: Step(s.index, s.t, s.s, s.s1, s.ceiling, s.x[part], s.x1[part], s.logp[part], s.dtype)  # noqa: E731
    return rollout(whole.advantage[part], whole.ids[part], steps=[cut(s) for s in whole.steps], memo=ConditionMemo())


def test_a_group_in_two_micro_batches_teaches_the_surrogate_the_same() -> None:
    advantage = torch.tensor([-1.0, -0.5, 0.5, 1.0])
    whole, parts = surrogate(advantage, split=False), surrogate(advantage, split=True)
    torch.testing.assert_close(whole[0], parts[0])
    assert whole[0] != 0


def test_a_surrogate_that_has_run_away_is_pulled_no_further() -> None:
    advantage = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    _, near = surrogate(advantage, split=False, factor=0.5001, surrogate_clip_range=1e9)
    _, far = surrogate(advantage, split=False, factor=3.0, surrogate_clip_range=1e9)
    assert not near["clip_frac"].any() and far["clip_frac"].any() and not far["clip_frac"].all()
