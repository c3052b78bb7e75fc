"""Windows and subsets of steps against the references, and that they are keyed, contiguous and never empty."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from flow_factory.core.randomness import choose_steps
from flow_factory.core.step_selection import SlidingWindow, random_fraction, random_window, stratified
from tests.vectors import golden

REFERENCES = {
    "mix_progressive_overlap": (16, SlidingWindow(4, "progressive", 3, roll_back=True, shrink=True)),
    "mix_progressive_clip": (16, SlidingWindow(4, "progressive", 2, stride=4, roll_back=False, shrink=True)),
    "mix_exp_decay": (25, SlidingWindow(4, "exp_decay", 5, roll_back=True, shrink=True)),
    "mix_decay": (16, SlidingWindow(4, "decay", 6, roll_back=False, shrink=True, fewest=1)),
}
KINDS = ["progressive", "decay", "exp_decay", "random"]


def as_range(window: tuple[int, ...]) -> tuple[int, int]:
    """(start, length) of consecutive steps."""
    assert all(b == a + 1 for a, b in pairwise(window))
    return window[0], len(window)


@pytest.mark.parametrize("name", REFERENCES)
def test_sliding_windows_are_mixgrpos_without_its_empty_ones(name: str) -> None:
    steps, sliding = REFERENCES[name]
    theirs = [(start, length) for start, length in golden("15_windows")[name].tolist() if length]
    ours = [as_range(sliding.at(range(steps), 0, epoch)) for epoch in range(80)]
    assert ours[: len(theirs)] == theirs
    if not sliding.roll_back and len(theirs) < 80:
        assert set(ours[len(theirs) :]) == {theirs[-1]}, "it stays at the last place"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shrink", [True, False])
@pytest.mark.parametrize("roll_back", [True, False])
def test_a_window_is_never_empty_and_reaches_every_step(kind: str, shrink: bool, roll_back: bool) -> None:
    candidates = tuple(range(2, 25))
    for size, stride in ((1, 1), (4, 1), (4, 3), (4, 4), (23, 1), (30, 2)):
        sliding = SlidingWindow(size, kind, 4, stride, roll_back, shrink)  # type: ignore[arg-type]
        windows = [sliding.at(candidates, 42, epoch) for epoch in range(200)]
        assert all(windows) and set().union(*windows) == set(candidates)
        lengths = {as_range(window)[1] for window in windows}
        assert max(lengths) == min(size, 23) and (shrink or kind == "random" or len(lengths) == 1)
        if roll_back and kind != "random":
            assert windows[0] in windows[sum(sliding.stay(start, 23) for start in sliding.places(23)) :]


def test_the_papers_windows_are_full_and_end_with_the_last_step() -> None:
    sliding = SlidingWindow(4, epochs=1, stride=3)
    assert [sliding.at(range(9), 0, epoch) for epoch in range(4)] == [(0, 1, 2, 3), (3, 4, 5, 6), (5, 6, 7, 8), (0, 1, 2, 3)]


def test_decay_shortens_the_stay_towards_data() -> None:
    linear, exponential = SlidingWindow(4, "decay", 20), SlidingWindow(4, "exp_decay", 20, threshold=2, rate=0.5)
    assert [linear.stay(start, 10) for start in (0, 5, 9)] == [20, 12, 6], "from 20 to a quarter of it"
    assert [exponential.stay(start, 20) for start in (0, 2, 3, 6, 16)] == [20, 20, 13, 3, 1]


def test_random_windows_are_flow_grpo_fasts() -> None:
    """The same places, each equally likely, of a range (0, 5) and size 3; the draws are others: keyed."""
    theirs = {(a, b - a) for a, b in golden("15_windows")["fast_window_seed0to19"].tolist()}
    ours = [as_range(random_window(range(5), 3, 42, epoch)) for epoch in range(900)]
    starts, counts = np.unique([start for start, _ in ours], return_counts=True)
    assert set(ours) == theirs and starts.tolist() == [0, 1, 2] and counts.min() > 240
    assert [0, 1 + random_window(range(9), None, 42, 0)[-1]] == golden("15_windows")["fast_window_size0"].tolist()


def test_mixgrpos_random_window_is_the_same_thing() -> None:
    theirs = set(map(tuple, golden("15_windows")["mix_random"].tolist()))
    sliding = SlidingWindow(4, "random")
    ours = {as_range(sliding.at(range(16), 42, epoch)) for epoch in range(400)}
    assert theirs <= ours == {(start, 4) for start in range(13)}
    assert sliding.at(range(16), 42, 7, 3) == random_window(range(16), 4, 42, 7, 3)


def test_a_group_has_a_choice_of_its_own_and_no_state_matters() -> None:
    for choose in (lambda *key: random_window(range(20), 3, *key), lambda *key: choose_steps(range(20), 3, *key)):
        by_group = [choose(42, 5, group) for group in range(40)]
        torch.manual_seed(1)
        assert [choose(42, 5, group) for group in reversed(range(40))] == by_group[::-1]
        assert len(set(by_group)) > 10 and choose(42, 5) != choose(42, 6)
    assert [choose_steps(range(9), 2, 42, epoch) for epoch in range(2)] == [(0, 8), (1, 2)], "as before there were groups"


@pytest.mark.parametrize(("steps", "fraction", "count"), [(9, 0.6, 5), (10, 0.7, 7), (5, 1.0, 5), (5, 0.2, 1), (100, 0.29, 29)])
def test_a_random_fraction_is_dancegrpos(steps: int, fraction: float, count: int) -> None:
    """int((n - 1) fraction) of the steps, any of them."""
    draws = [random_fraction(range(steps), fraction, 42, 0, group) for group in range(300)]
    assert all(len(d) == count and list(d) == sorted(set(d)) for d in draws) and set().union(*draws) == set(range(steps))


@pytest.mark.parametrize(("groups", "size"), [(8, 1), (20, 1), (7, 3), (9, 9), (1, 2)])
def test_an_epochs_groups_use_every_step_as_often_and_any_group_any_step(groups: int, size: int) -> None:
    candidates, seen = (0, 1, 2, 4, 5, 6, 7, 8, 11), set[int]()
    for epoch in range(40):
        dealt = [stratified(candidates, size, 42, epoch, group) for group in range(groups)]
        assert all(list(d) == sorted(set(d)) and len(d) == size for d in dealt)
        counts = [sum(step in d for d in dealt) for step in candidates]
        assert max(counts) - min(counts) <= 1 and sum(counts) == groups * size
        seen |= set(dealt[0])
    assert seen == set(candidates), "a group's place in the epoch is tied to no step"
    assert stratified(candidates, None, 42, 0, 3) == candidates


def test_candidates_may_have_gaps() -> None:
    assert random_window((1, 3, 7), 2, 42, 0) in ((1, 3), (3, 7))
    assert SlidingWindow(2, epochs=1).at((1, 3, 7), 0, 1) == (3, 7)


def test_what_cannot_be_chosen_is_an_error() -> None:
    for size in (0, 6):
        with pytest.raises(ValueError, match=f"a window of {size} steps does not fit the 5 candidate steps"):
            random_window(range(5), size, 42, 0)
        with pytest.raises(ValueError, match=f"cannot deal {size} of the 5 candidate steps"):
            stratified(range(5), size, 42, 0, 0)
    for fraction in (0.1, 1.5):
        with pytest.raises(ValueError, match=f"a fraction of {fraction} of the 5 candidate steps"):
            random_fraction(range(5), fraction, 42, 0)
    with pytest.raises(ValueError, match="size, stride and epochs of at least 1"):
        SlidingWindow(0).at(range(5), 0, 0)
    with pytest.raises(ValueError, match="no window schedule 'cyclic'; known: progressive"):
        SlidingWindow(2, "cyclic").at(range(5), 0, 0)  # type: ignore[arg-type]
