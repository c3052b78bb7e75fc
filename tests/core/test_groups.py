"""Which samples and groups stay."""

import pytest
import torch

from flow_factory.core.advantage import group_advantage
from flow_factory.core.groups import best_and_worst, best_of_n, informative

NAN = float("nan")


@pytest.mark.parametrize(("scores", "pair"), [
    ([0.2, 0.9, 0.1, 0.5], (1, 2)), ([1.0, 1.0, 0.0, 0.0], (0, 2)), ([3.0, 3.0, 3.0], None), ([1.0], None),
    ([NAN, 2.0, 1.0, float("inf")], (1, 2)), ([NAN, 2.0, NAN], None), ([NAN, NAN], None),
])  # fmt: skip
def test_a_pair_is_the_best_and_the_worst_and_never_a_tie(scores: list[float], pair: tuple[int, int] | None) -> None:
    assert best_and_worst(torch.tensor(scores)) == pair


@pytest.mark.parametrize(("scores", "keep", "kept"), [
    ([5.0, 1.0, 4.0, 2.0, 3.0, 0.0], 4, [0, 1, 2, 5]), ([5.0, 1.0, 4.0, 2.0], 2, [0, 1]), ([5.0, 1.0, 4.0, 2.0], 4, [0, 1, 2, 3]),
    ([1.0, 1.0, 1.0, 1.0], 2, [0, 3]), ([NAN, 1.0, 3.0, 2.0, NAN, 5.0], 2, [1, 5]),
    ([NAN, NAN], 2, [0, 1]), ([1.0, 3.0, 2.0, 5.0, NAN], 2, [0, 3]),
])  # fmt: skip
def test_best_of_n_keeps_both_ends(scores: list[float], keep: int, kept: list[int]) -> None:
    assert best_of_n(torch.tensor(scores), keep).tolist() == kept


@pytest.mark.parametrize("keep", [0, 3, 8])
def test_best_of_n_wants_an_even_number(keep: int) -> None:
    with pytest.raises(ValueError, match=f"an even number from 2 to 6, not {keep}"):
        best_of_n(torch.zeros(6), keep)


def test_groups_that_teach_nothing_are_dropped() -> None:
    rewards = torch.tensor([[1.0, 2.0], [3.0, 3.0], [NAN, 1.0], [0.0, 4.0], [0.1, 0.1], [2.0, 1.0]])[..., None]
    advantage, metrics = group_advantage(rewards, torch.ones(1))
    assert informative(advantage).tolist() == [0, 3, 5]
    assert len(informative(advantage)) == 6 * (1 - metrics["zero_variance_share"])


@pytest.mark.parametrize(("multiple", "kept"), [(1, [0, 3, 5]), (2, [0, 1, 3, 5]), (3, [0, 3, 5]), (6, [0, 1, 2, 3, 4, 5])])
def test_the_number_of_groups_still_divides(multiple: int, kept: list[int]) -> None:
    advantage = torch.tensor([1.0, 0, 0, -2, 0, 3])[:, None] * torch.tensor([1.0, -1.0])
    assert informative(advantage, multiple).tolist() == kept


def test_no_group_may_be_left_and_a_number_that_cannot_divide_is_an_error() -> None:
    assert informative(torch.zeros(4, 2), 2).tolist() == []
    with pytest.raises(ValueError, match="5 groups are no multiple of 2"):
        informative(torch.zeros(5, 2), 2)
