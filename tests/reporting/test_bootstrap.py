"""Intervals of means over pairs of prompt and noise, and win rates."""

import numpy as np
import pytest

from flow_factory.reporting.bootstrap import estimate, wins

NUMBERS = np.random.default_rng(3)


def test_independent_prompts_have_the_interval_of_the_normal_law() -> None:
    scores = NUMBERS.normal(2.0, 1.0, (400, 1))
    half = 1.96 * scores.std(ddof=1) / np.sqrt(400)
    found = estimate(scores)
    assert found.mean == pytest.approx(scores.mean())
    assert (found.mean - found.low, found.high - found.mean) == (pytest.approx(half, rel=0.1), pytest.approx(half, rel=0.1))


def test_more_noises_of_the_same_prompts_tell_nothing_more_about_prompts() -> None:
    """A prompt's score that does not depend on the noise: eight noises of it have the interval of one."""
    of_prompts = NUMBERS.normal(0.0, 1.0, (60, 1))
    assert estimate(of_prompts.repeat(8, 1)) == pytest.approx(estimate(of_prompts))


def test_pairs_take_out_what_prompts_differ_in() -> None:
    prompts, noise = NUMBERS.normal(0.0, 10.0, (50, 1)), NUMBERS.normal(0.0, 0.1, (2, 50, 4))
    before, after = prompts + noise[0], prompts + noise[1] + 0.5
    paired = estimate(after - before)
    assert 0.4 < paired.low < 0.5 < paired.high < 0.6
    assert estimate(after).low < estimate(before).high, "the means alone tell nothing"


def test_a_single_prompt_has_the_interval_of_its_noises_and_a_single_pair_has_none() -> None:
    scores = NUMBERS.normal(0.0, 1.0, (1, 40))
    assert estimate(scores) == estimate(scores.T) and estimate(scores).low < estimate(scores).high
    assert np.isnan(estimate(scores[:, :1]).low) and estimate(scores[:, :1]).mean == scores[0, 0]


def test_missing_scores_are_left_out_and_never_numbers() -> None:
    scores = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, np.nan]])
    found = estimate(scores)
    assert found.mean == 3.0 and 1.0 <= found.low <= found.high <= 4.0
    assert all(np.isnan(estimate(np.full((3, 2), np.nan))))


def test_the_same_scores_have_the_same_interval() -> None:
    scores = NUMBERS.normal(0.0, 1.0, (20, 3))
    assert estimate(scores) == estimate(scores.copy())


def test_a_tie_is_half_a_win() -> None:
    before, after = np.array([[0.0, 1.0, 2.0, np.nan]]), np.array([[1.0, 1.0, 1.0, 1.0]])
    assert wins(before, after).tolist()[0][:3] == [1.0, 0.5, 0.0] and np.isnan(wins(before, after)[0, 3])
    assert estimate(wins(before, after)).mean == 0.5
