"""Advantages against every reference's numbers, missing scores, and what normalisation must leave alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flow_factory.core.advantage import AGGREGATIONS, EPSILON, gdpo, group_advantage

GOLDEN = Path(__file__).parents[1] / "golden"
ONE = torch.ones(1)


@pytest.fixture(scope="module")
def single() -> dict[str, Tensor]:
    """`06`: one reward, 5 groups of 4 (one constant, one nearly so, one with an outlier), put in group order."""
    with np.load(GOLDEN / "06_advantages.npz") as g:
        order = np.argsort(g["group_ids"], kind="stable")
        return {k: torch.from_numpy(a[order].reshape(5, 4)).double() for k, a in g.items() if a.shape == (20,)}


@pytest.fixture(scope="module")
def several() -> dict[str, Tensor]:
    """`12`: three rewards of very different scale, 4 groups of 4."""
    with np.load(GOLDEN / "12_gdpo.npz") as g:
        arrays = {k: torch.from_numpy(a.reshape(4, 4)).double() for k, a in g.items() if a.shape == (16,)}
        return arrays | {"weights": torch.from_numpy(g["weights"])}


def three_rewards(several: dict[str, Tensor]) -> Tensor:
    return torch.stack([several[f"reward_{k}"] for k in "abc"], -1)


def random_rewards(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, rel: float = 2e-6) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rel, atol=rel)


@pytest.mark.parametrize("reference", ["flow_grpo_new", "nft"])
@pytest.mark.parametrize("std", ["global_std", "group_std"])
def test_one_reward_is_flow_grpos_advantage(single: dict[str, Tensor], reference: str, std: str) -> None:
    advantage, _ = group_advantage(single["rewards"][..., None], ONE, global_std=std == "global_std")
    assert advantage.dtype == torch.float32
    close(advantage, single[f"{reference}_{std}"])


@pytest.mark.parametrize(
    ("key", "global_std", "ddof", "epsilon", "floor"),
    [
        ("ff_sum_global_std_distributed_k_repeat", True, 0, 0.0, 1e-6),
        ("ff_sum_group_std_group_contiguous", False, 0, 0.0, 1e-6),
        ("dance_group_std", False, 1, 1e-8, 0.0),
        ("mix_trim0", False, 1, 1e-8, 0.0),
        ("verl_global_std", True, 1, 1e-4, 0.0),
    ],
)
def test_the_other_references_differ_in_the_denominator_only(
    single: dict[str, Tensor], key: str, global_std: bool, ddof: int, epsilon: float, floor: float
) -> None:
    """Flow-Factory floors the std, others take ddof 1: the same advantage after that one factor."""
    rewards = single["rewards"]
    advantage, _ = group_advantage(rewards[..., None], ONE, global_std)
    spread = rewards if not global_std else rewards.flatten().expand(5, -1)
    ours, theirs = (
        spread.std(1, correction=0, keepdim=True) + EPSILON,
        spread.std(1, correction=ddof, keepdim=True).clamp(min=floor) + epsilon,
    )
    live = rewards.amax(1) > rewards.amin(1)
    close((advantage * ours)[live], (single[key] * theirs)[live], 1e-5 if ddof == 0 else 1e-4)


def test_several_rewards_sum(several: dict[str, Tensor]) -> None:
    rewards, weights = three_rewards(several), several["weights"]
    std = (rewards * weights).sum(-1).std(correction=0)
    close(group_advantage(rewards, weights)[0] * (std + EPSILON) / std, several["ff_sum_global"])


def test_gdpo_is_nvidias(several: dict[str, Tensor]) -> None:
    close(gdpo(three_rewards(several), several["weights"])[0], several["nvlabs_gdpo_abc"])


def test_the_public_gdpo_is_nvidias_up_to_the_epsilons(several: dict[str, Tensor]) -> None:
    """It takes ddof 0 and floors at 1e-6; per reward and over the batch these are factors: sqrt(15 / 16) remains, and 1e-4 of the stds."""
    advantage, _ = gdpo(three_rewards(several), several["weights"])
    close(advantage / (15 / 16) ** 0.5, several["ff_gdpo"], 1e-3)


@pytest.mark.parametrize("global_std", [True, False])
def test_gdpo_of_one_reward_falls_back(several: dict[str, Tensor], global_std: bool) -> None:
    rewards = three_rewards(several)
    first = gdpo(rewards, torch.tensor([1.0, 0.0, 0.0]), global_std)[0]
    assert torch.equal(first, group_advantage(rewards[..., :1], ONE, global_std)[0])


def test_the_fallback_is_nvidias_up_to_ddof(several: dict[str, Tensor]) -> None:
    a = several["reward_a"]
    advantage, _ = gdpo(a[..., None], ONE, global_std=False)
    ours, theirs = (a.std(1, correction=ddof, keepdim=True) + EPSILON for ddof in (0, 1))
    close(advantage * ours, several["nvlabs_gdpo_a"] * theirs)


@pytest.mark.parametrize("name", AGGREGATIONS)
@pytest.mark.parametrize("global_std", [True, False])
def test_advantages_sum_to_zero_in_each_group(name: str, global_std: bool) -> None:
    advantage, _ = AGGREGATIONS[name](random_rewards(6, 5, 3), torch.tensor([1.0, -2.0, 0.3]), global_std)
    assert advantage.sum(1).abs().max() < 1e-6


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_advantages_ignore_the_scale_and_offset_of_a_reward(name: str) -> None:
    """For group statistics and as epsilon vanishes."""
    rewards, weights = random_rewards(6, 5, 2) * 1e4, torch.tensor([1.0, 0.5])
    advantage, _ = AGGREGATIONS[name](rewards, weights, False)
    close(AGGREGATIONS[name](rewards * 100 - 7, weights, False)[0], advantage, 1e-6)


def test_gdpo_decouples_the_scales_and_the_sum_does_not() -> None:
    rewards, weights = random_rewards(6, 5, 2) * 1e4, torch.tensor([1.0, 1.0])
    grown = rewards * torch.tensor([1.0, 1000.0])
    close(gdpo(grown, weights)[0], gdpo(rewards, weights)[0], 1e-5)
    assert (group_advantage(grown, weights)[0] - group_advantage(rewards, weights)[0]).abs().max() > 0.1


@pytest.mark.parametrize("name", AGGREGATIONS)
@pytest.mark.parametrize("global_std", [True, False])
@pytest.mark.parametrize("constant", [0.1, 1e6 + 0.1])
def test_a_constant_group_gets_exactly_zero(name: str, global_std: bool, constant: float) -> None:
    """0.1 * 3 / 3 is not 0.1: the mean of equal scores may be off by a rounding."""
    rewards = random_rewards(4, 3, 2)
    rewards[1] = constant
    advantage, metrics = AGGREGATIONS[name](rewards, torch.tensor([1.0, 0.7]), global_std)
    assert not advantage[1].any() and advantage[[0, 2, 3]].all()
    assert metrics["zero_variance_share"] == 0.25 and metrics["missing_scores"] == 0


def test_a_large_mean_does_not_spoil_a_small_spread() -> None:
    """The mean of squares less the square of the mean would lose everything here in float32, and raises in a reference."""
    rewards = 1000 + 0.05 * random_rewards(8, 6, 1)
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(correction=0) + EPSILON)
    close(group_advantage(rewards, ONE)[0], expected[..., 0], 1e-6)


def test_sum_leaves_a_sample_with_a_missing_score_out_of_every_statistic() -> None:
    rewards, weights = random_rewards(3, 4, 2), torch.tensor([1.0, 0.5])
    rewards[0, 1, 1] = torch.nan
    rewards[2, 3] = torch.tensor([torch.inf, torch.nan])
    total = (rewards * weights).sum(-1)
    kept = total[total.isfinite()]
    for global_std in (True, False):
        advantage, metrics = group_advantage(rewards, weights, global_std)
        assert advantage[0, 1] == 0 and advantage[2, 3] == 0 and advantage.isfinite().all()
        rest = total[0, [0, 2, 3]]
        std = (kept if global_std else rest).std(correction=0)
        close(advantage[0, [0, 2, 3]], (rest - rest.mean()) / (std + EPSILON))
        assert metrics["missing_scores"] == 3 and metrics["unscored_samples"] == 2


def test_gdpo_leaves_a_missing_score_out_of_its_own_reward_only() -> None:
    rewards, weights = random_rewards(3, 4, 2), torch.tensor([1.0, 0.5])
    rewards[0, 1, 1] = torch.nan
    rewards[1, 2] = torch.nan
    advantage, metrics = gdpo(rewards, weights)
    inner = (rewards - rewards.nanmean(1, keepdim=True)) / torch.tensor(np.nanstd(rewards, 1, ddof=1, keepdims=True) + EPSILON)
    total = (inner.nan_to_num(0) * weights).sum(-1)
    scored = torch.ones(3, 4, dtype=torch.bool).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(False))
    expected = ((total - total[scored].mean()) / (total[scored].std() + EPSILON)).where(scored, 0.0)
    close(advantage, expected)
    assert advantage[0, 1] != 0 and advantage[1, 2] == 0
    assert metrics["missing_scores"] == 3 and metrics["unscored_samples"] == 1


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_watched_reward_may_miss_anything(name: str) -> None:
    rewards, weights = random_rewards(3, 4, 3), torch.tensor([1.0, 0.0, 0.5])
    expected, _ = AGGREGATIONS[name](rewards[..., [0, 2]], weights[[0, 2]], True)
    rewards[..., 1] = torch.nan
    advantage, metrics = AGGREGATIONS[name](rewards, weights, True)
    assert torch.equal(advantage, expected) and metrics["missing_scores"] == 0


@pytest.mark.parametrize("name", AGGREGATIONS)
@pytest.mark.parametrize("global_std", [True, False])
def test_a_group_with_fewer_than_two_scores_gets_zero(name: str, global_std: bool) -> None:
    rewards = random_rewards(3, 4, 2)
    rewards[0, 1:], rewards[1] = torch.nan, torch.nan
    advantage, metrics = AGGREGATIONS[name](rewards, torch.ones(2), global_std)
    assert not advantage[:2].any() and advantage[2].all() and metrics["zero_variance_share"] == pytest.approx(2 / 3)
    nothing, _ = AGGREGATIONS[name](torch.full((2, 3, 2), torch.nan), torch.ones(2), global_std)
    assert not nothing.any()


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_the_caller_keeps_its_rewards_and_the_order_of_groups_does_not_matter(name: str) -> None:
    rewards, order = random_rewards(5, 4, 2), torch.tensor([3, 1, 4, 0, 2])
    before = rewards.clone()
    advantage, _ = AGGREGATIONS[name](rewards, torch.ones(2), True)
    close(AGGREGATIONS[name](rewards[order], torch.ones(2), True)[0], advantage[order], 1e-6)
    assert torch.equal(rewards, before)
