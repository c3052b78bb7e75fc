"""What each algorithm trains on: noise, noise levels, guidance, the samples and steps that are chosen."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.core.groups import pick
from flow_factory.core.randomness import normal
from flow_factory.types import Rollout, Step
from tests.points import SCHEDULE, latents, made, rollout

FORWARD = ["nft", "awm", "dpo", "dgpo", "crd"]
EVERY = ["grpo", "grpo-guard", "dppo", *FORWARD]
BY_GROUP = ["dgpo", "crd"]
"""Whose loss compares the samples of a group at one noise level."""
SETTINGS: dict[str, dict[str, Any]] = {"dpo": {"num_train_timesteps": 4}}


def batch(*ids: int, group: int = 0, epoch: int = 0, dtype: torch.dtype = torch.float32) -> Rollout:
    return rollout(torch.linspace(-1, 1, len(ids)), ids, group, epoch, latents(ids).to(dtype), memo=ConditionMemo())


def noises(name: str, rollout: Rollout, **train: Any) -> Tensor:
    """Of all points, (T, n, ...)."""
    return torch.stack([p.noise for p in made(name, **SETTINGS.get(name, {}) | train).points(rollout)])  # type: ignore[misc]


# -- noise ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "train"), [("nft", {}), ("awm", {}), ("crd", {}), ("dgpo", {"use_shared_noise": False})])
def test_a_samples_noise_is_its_own_whatever_its_neighbours(name: str, train: dict[str, Any]) -> None:
    a, b = noises(name, batch(4, 5), **train), noises(name, batch(5, 6, 7), **train)
    assert torch.equal(a[:, 1], b[:, 0])
    assert len(torch.cat([a, b[:, 1:]], 1).flatten(0, 1).flatten(1).unique(dim=0)) == len(a) * 4, "new at each noise level"
    assert torch.equal(a[2, 0], normal((3, 4), torch.float32, "cpu", 42, "train noise", 0, 4, 2)), "keyed by epoch, sample and point"
    assert not torch.equal(a, noises(name, batch(4, 5, epoch=1), **train))
    assert not torch.equal(a, noises(name, batch(4, 5), seed=7, **train))


@pytest.mark.parametrize("name", ["dpo", "dgpo"])
def test_a_group_shares_its_noise_and_has_new_one_at_each_noise_level(name: str) -> None:
    a, b = noises(name, batch(4, 5, group=2)), noises(name, batch(6, 7, group=2))
    assert torch.equal(a, b) and torch.equal(a[:, 0], a[:, 1])
    assert len(a[:, 0].flatten(1).unique(dim=0)) == len(a) > 1
    for other in (batch(4, 5, group=3), batch(4, 5, group=2, epoch=1)):
        assert not (a == noises(name, other)).any()


# -- noise levels ---------------------------------------------------------------------------------------------------------------------


def levels(name: str, rollout: Rollout, per_sample: bool = False, **train: Any) -> Tensor:
    points = list(made(name, per_sample, **SETTINGS.get(name, {}) | train).points(rollout))
    assert all(torch.allclose(p.t, 1000 * p.s) and p.t.shape == p.s.shape for p in points)
    return torch.stack([p.s for p in points])


@pytest.mark.parametrize("name", ["nft", "awm"])
def test_noise_levels_are_the_samples_own_where_the_model_takes_them_and_the_micro_batchs_else(name: str) -> None:
    draw = {"time_sampling_strategy": "uniform", "num_train_timesteps": 3}
    own = levels(name, batch(4, 5), True, **draw)
    assert own.shape == (3, 2) and len(own.unique()) == 6
    assert torch.equal(own[:, 1], levels(name, batch(5, 9), True, **draw)[:, 0])
    shared = levels(name, batch(4, 5), **draw)
    assert shared.shape == (3,) and torch.equal(shared, levels(name, batch(4, 9), **draw))
    assert not (shared == levels(name, batch(6, 7), **draw)).any() and not (shared == levels(name, batch(4, 5, epoch=1), **draw)).any()


@pytest.mark.parametrize("name", [*BY_GROUP, "dpo"])
@pytest.mark.parametrize("per_sample", [True, False])
def test_a_group_that_is_compared_shares_its_noise_levels(name: str, per_sample: bool) -> None:
    draw = {} if name == "dpo" else {"time_sampling_strategy": "uniform", "num_train_timesteps": 4}
    shared = levels(name, batch(4, 5, group=2), per_sample, **draw)
    assert shared.shape == (4,) and torch.equal(shared, levels(name, batch(6, 7, group=2), per_sample, **draw))
    assert not (shared == levels(name, batch(4, 5, group=3), per_sample, **draw)).any()


@pytest.mark.parametrize(("name", "count"), [("nft", 9), ("awm", 9), ("crd", 9), ("dgpo", 6)])
def test_by_default_every_step_of_the_range_comes_once(name: str, count: int) -> None:
    """The first 90 % of ten steps, for DGPO 60 %."""
    assert levels(name, batch(4, 5)).tolist() == SCHEDULE[:count].tolist()
    assert levels(name, batch(4, 5), timestep_range=0.5).tolist() == SCHEDULE[:5].tolist()
    assert levels(name, batch(4, 5), timestep_range=[0.2, 0.5]).tolist() == SCHEDULE[2:5].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORWARD)
def test_points_are_the_noised_final_states_as_many_as_promised(name: str, dtype: torch.dtype) -> None:
    algorithm, given = made(name, **SETTINGS.get(name, {})), batch(4, 5, dtype=dtype)
    assert given.x0 is not None and algorithm.noisy(0, 0) == ()
    points = list(algorithm.points(given))
    assert len(points) == algorithm.size(given) == algorithm.config.points_per_batch(algorithm.scheduler)
    for p in points:
        assert p.x0 is not None and p.x0.dtype == torch.float32 and torch.equal(p.x0, given.x0.float())
        assert torch.equal(p.x, (1 - p.s) * p.x0 + p.s * p.noise), "in float32"
        assert p.memo is given.memo and p.cond is given.cond and p.step is None


def test_a_time_a_sample_noises_each_sample_to_its_own_level() -> None:
    for p in made("nft", True, time_sampling_strategy="uniform", num_train_timesteps=2).points(batch(4, 5)):
        assert p.x0 is not None and p.noise is not None and p.s.shape == (2,) and p.s[0] != p.s[1]
        for k in (0, 1):
            torch.testing.assert_close(p.x[k], torch.lerp(p.x0[k], p.noise[k], p.s[k]))


@pytest.mark.parametrize("name", ["nft", "awm", "dgpo", "crd"])
def test_the_advantage_that_the_loss_sees_is_clipped(name: str) -> None:
    raw = batch(0, 1, 2)
    raw.advantage = torch.tensor([-9.0, 1.0, 9.0])
    (first, *_) = made(name, adv_clip_range=2.0).points(raw)
    expected = {"nft": [-2, 1, 2], "dgpo": [-2, 1, 2], "awm": [-1, 0.5, 1], "crd": [0, 0.75, 1]}
    assert first.advantage.tolist() == expected[name] and raw.advantage.tolist() == [-9, 1, 9]


# -- guidance -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_the_policy_is_trained_as_it_rolled_out_or_without_guidance(name: str) -> None:
    """None: as it rolled out."""
    algorithm = made(name)
    alone = 1.0 if name in FORWARD else None
    reference = 4.5 if name == "crd" else alone
    assert {w: algorithm.guidance(w) for w in ("policy", "old", "ema", "ema_ref", "ref")} == {
        "policy": alone, "old": alone, "ema": alone, "ema_ref": alone, "ref": reference,
    }  # fmt: skip
    if name in BY_GROUP:
        assert made(name, kl_cfg=2.0).guidance("ref") == 2.0
    if name not in FORWARD:
        assert made(name, kl_guidance_scale=2.0).guidance("ref") == 2.0 and made(name, kl_guidance_scale=2.0).guidance("policy") is None


@pytest.mark.parametrize("name", EVERY)
def test_what_rolls_out(name: str) -> None:
    start, later = {"crd": ("sampling", "sampling"), "dgpo": ("policy", "ema_ref")}.get(name, ("policy", "policy"))
    assert (made(name).rolls_out(0), made(name).rolls_out(199), made(name).rolls_out(200)) == (start, start, later)
    if name in ("nft", "awm", "dgpo"):
        kept = "ema_ref" if name == "dgpo" else "old"
        assert made(name, off_policy=True).rolls_out(0) == kept and kept in made(name, off_policy=True).averages
    if name in ("nft", "awm"):
        assert made(name).weights == ("old",) and not made(name).averages, "a copy that is not needed is not kept"


# -- which samples --------------------------------------------------------------------------------------------------------------------


def transition(index: int, *ids: int, with_mean: bool = True) -> Step:
    """Whose every tensor says whose it is."""
    value = 100.0 * index + torch.tensor(ids).float()
    s = torch.tensor(0.5)
    return Step(index, s, s, s, s, value[:, None], value[:, None] + 0.25, value + 0.5, torch.float32, value[:, None] if with_mean else None)


@pytest.mark.parametrize("with_mean", [True, False])
def test_picked_samples_bring_all_that_is_theirs(with_mean: bool) -> None:
    group = []
    for ids in ((10, 11, 12), (13, 14, 15)):
        mine = rollout(torch.tensor(ids).float(), ids, group=3, epoch=2, steps=[transition(k, *ids, with_mean=with_mean) for k in (1, 4)])
        group.append(mine)
    got = pick(group, (4, 0))
    assert (got.ids, got.group, got.epoch, got.x0) == ((14, 10), 3, 2, None) and got.advantage.tolist() == [14, 10]
    assert got.rewards.tolist() == [[14], [10]]
    for step, index in zip(got.steps, (1, 4), strict=True):
        value = torch.tensor([100.0 * index + 14, 100.0 * index + 10])
        assert step.index == index and torch.equal(step.logp, value + 0.5)
        assert torch.equal(step.x[:, 0], value) and torch.equal(step.x1[:, 0], value + 0.25)
        assert step.mean is None if not with_mean else torch.equal(step.mean[:, 0], value)  # type: ignore[index]


@pytest.mark.parametrize(("chosen", "same"), [((0, 3), True), ((0, 1, 2), False), ((2,), False)])
def test_what_was_encoded_for_so_many_samples_serves_as_many(chosen: tuple[int, ...], same: bool) -> None:
    group = [batch(4, 5), batch(6, 7)]
    group[0].memo.full, group[0].frozen[0]["old"], group[0].peers[0] = True, torch.ones(2), torch.ones(2)
    got = pick(group, chosen)
    assert (got.memo is group[0].memo) is same and (same or not got.memo.full)
    assert not got.frozen and not got.peers, "velocities of other samples are not theirs"
    assert got.x0 is not None and torch.equal(got.x0, latents(got.ids))


@pytest.mark.parametrize("name", ["grpo", "nft", "awm", "dgpo", "crd"])
def test_best_of_n_trains_on_both_ends_in_micro_batches_of_the_usual_size(name: str) -> None:
    group = [batch(4, 5), batch(6, 7), batch(8, 9)]
    for mine, advantage in zip(group, ([0.1, 2.0], [-0.2, -1.0], [1.0, 0.0]), strict=True):
        mine.advantage = torch.tensor(advantage)
    chosen = made(name, best_of_n=4, group_size=6, per_device_batch_size=2).select(group)
    assert [c.ids for c in chosen] == [(5, 6), (7, 8)]
    assert made(name, group_size=6, per_device_batch_size=2).select(group) == group


# -- which steps ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grpo", "grpo-guard", "dppo"])
def test_a_window_is_drawn_for_each_group_and_all_of_it_is_trained_on(name: str) -> None:
    algorithm = made(name, scheduler={"step_selection": "window", "num_sde_steps": 3})
    windows = [algorithm.noisy(epoch, group) for epoch in range(5) for group in range(20)]
    assert {w[0] for w in windows} == set(range(7)) and all(w == (w[0], w[0] + 1, w[0] + 2) for w in windows)
    assert windows == [algorithm.kept(epoch, group) for epoch in range(5) for group in range(20)]
    assert algorithm.config.points_per_batch(algorithm.scheduler) == 3


def test_a_sliding_window_is_the_epochs_and_moves() -> None:
    algorithm = made("grpo", scheduler={"step_selection": "sliding", "num_sde_steps": 4, "window_epochs": 2, "window_stride": 3})
    assert all(algorithm.noisy(epoch, group) == algorithm.kept(epoch, 0) for epoch in range(9) for group in range(4))
    assert [algorithm.noisy(epoch, 0)[0] for epoch in range(9)] == [0, 0, 3, 3, 5, 5, 0, 0, 3]
    shrinking = made("grpo", scheduler={"step_selection": "sliding", "num_sde_steps": 4, "window_epochs": 1, "window_shrink": True})
    assert [len(shrinking.noisy(epoch, 0)) for epoch in range(9)] == [4, 4, 4, 4, 4, 4, 3, 2, 1]


def test_a_fraction_leaves_all_steps_stochastic_and_trains_on_some() -> None:
    algorithm = made("grpo", scheduler={"step_selection": "fraction", "sde_fraction": 0.4, "sde_steps": [1, 2, 3, 5, 8]})
    assert {algorithm.noisy(epoch, group) for epoch in range(3) for group in range(9)} == {(1, 2, 3, 5, 8)}
    kept = [algorithm.kept(0, group) for group in range(60)]
    assert all(len(k) == 2 and k[0] < k[1] for k in kept) and set().union(*kept) == {1, 2, 3, 5, 8} and len(set(kept)) == 10
    assert algorithm.config.points_per_batch(algorithm.scheduler) == 2


def test_random_steps_are_the_epochs() -> None:
    algorithm = made("grpo", scheduler={"num_sde_steps": 2})
    assert all(algorithm.noisy(epoch, 0) == algorithm.noisy(epoch, 7) == algorithm.kept(epoch, 3) for epoch in range(9))
    assert len({algorithm.noisy(epoch, 0) for epoch in range(30)}) > 10
