"""A draw belongs to its seed, purpose and key alone."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from flow_factory.core.randomness import choose_steps, generator, normal

GOLDEN = Path(__file__).parents[1] / "golden"

FROZEN: dict[str, Any] = {
    "sde": [0.543519, 1.082788, 1.282954, 0.501339],
    "init": [1.0744, -0.266798, 0.544021, 0.23257],
    "order": [4, 1, 5, 2, 6, 0, 7, 3],
    "steps": [(0, 8), (1, 2), (1, 7), (1, 2)],
}
"""Of (seed 42, 0, 0, 0), of (2**40, 7, 123456789012), of (42, 3), of epochs 0 to 3."""


def draw(*key: int, purpose: str = "sde", seed: int = 42, shape: tuple[int, ...] = (4,)) -> torch.Tensor:
    return normal(shape, torch.float32, "cpu", seed, purpose, *key)


def test_a_draw_does_not_depend_on_what_was_drawn_before() -> None:
    alone = draw(3, 17, 5, shape=(2, 8))
    torch.manual_seed(1)
    draw(3, 16, 5), torch.randn(100), draw(3, 17, 4)
    assert torch.equal(draw(3, 17, 5, shape=(2, 8)), alone)


def test_each_part_of_the_key_counts() -> None:
    variants = [draw(1, 2, 3), draw(1, 2, 4), draw(1, 3, 2), draw(2, 1, 3), draw(1, 2), draw(1, 2, 3, 0), draw(0, 1, 2, 3), draw(-1, 2, 3)]
    variants += [draw(1, 2, 3, purpose="init"), draw(1, 2, 3, purpose="sde2"), draw(1, 2, 3, seed=43), draw(1, 2, 3, seed=42 + 2**32)]
    assert all(not torch.equal(a, b) for a, b in combinations(variants, 2))


@pytest.mark.slow
def test_a_hundred_thousand_keys_give_as_many_draws() -> None:
    """A 32-bit seed, which is all that `manual_seed` keeps on the CPU, collides here two times in three."""
    words = torch.empty(1, dtype=torch.int64)
    seen = {
        (int(words.random_(generator=(g := generator(0, "sde", i // 10, i % 10)))), int(words.random_(generator=g))) for i in range(100_000)
    }
    assert len(seen) == 100_000


def test_draws_of_neighbouring_keys_are_independent_standard_normals() -> None:
    x = torch.stack([draw(0, i, 0, shape=(512,)) for i in range(400)]).double()
    assert abs(x.mean()) < 5 / x.numel() ** 0.5 and abs(x.var() - 1) < 5 * (2 / x.numel()) ** 0.5
    distances = [
        float((column.sort().values.unsqueeze(0) - Normal(0.0, 1.0).icdf((torch.arange(400) + 0.5) / 400)).abs().max()) for column in x.T
    ]
    assert np.median(distances) < 0.6, "over keys, at a fixed place, the values are normal too"
    correlation = x @ x.T / x.shape[1] - torch.eye(400)
    assert abs(correlation[~torch.eye(400, dtype=torch.bool)].std() - 512**-0.5) < 2e-3
    assert abs((x[1:] * x[:-1]).mean()) < 5 / x.numel() ** 0.5 and abs((x[1:, :-1] * x[:-1, 1:]).mean()) < 5 / x.numel() ** 0.5


def test_the_keying_never_changes() -> None:
    """Frozen: a resumed run must draw what the run that it continues would have drawn."""
    torch.testing.assert_close(draw(0, 0, 0), torch.tensor(FROZEN["sde"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(draw(7, 123456789012, purpose="init", seed=2**40), torch.tensor(FROZEN["init"]), rtol=1e-5, atol=1e-6)
    assert torch.randperm(8, generator=generator(42, "order", 3)).tolist() == FROZEN["order"]
    assert [choose_steps(range(9), 2, 42, epoch) for epoch in range(4)] == FROZEN["steps"]


def test_normals_are_drawn_in_float32_and_then_cast() -> None:
    x = normal((3, 2), torch.bfloat16, torch.device("cpu"), 42, "sde", 1)
    assert x.dtype == torch.bfloat16 and torch.equal(x, draw(1, shape=(3, 2)).bfloat16())


def test_chosen_steps_are_sorted_distinct_candidates_and_equally_likely() -> None:
    candidates = (7, 1, 3, 5, 2)
    draws = [choose_steps(candidates, 2, 42, epoch) for epoch in range(2000)]
    assert all(list(d) == sorted(set(d)) and len(d) == 2 and set(d) <= set(candidates) for d in draws)
    counts = np.unique([",".join(map(str, d)) for d in draws], return_counts=True)[1]
    assert len(counts) == 10 and counts.min() > 130 and counts.max() < 270


def test_chosen_steps_cover_what_the_public_implementation_draws() -> None:
    """It takes sde_steps[randperm(seed + epoch)[:k]]: k distinct candidates, in any order.

    Ours are other draws from the same subsets, sorted, and keyed: with seed + epoch, epoch 1 of seed 42 is epoch 0 of seed 43. The file's
    sliding and random windows (MixGRPO, Flow-GRPO-Fast) are no option of `sde_steps`: there a window is written out as the candidates.
    """
    with np.load(GOLDEN / "15_windows.npz") as g:
        theirs, levels = {tuple(sorted(row)) for row in g["ff_current_sde_steps_seed42to53"].tolist()}, g["ff_noise_levels_seed42"]
    ours = {choose_steps((1, 2, 3, 5), 2, 42, epoch) for epoch in range(100)}
    assert theirs <= ours == set(combinations((1, 2, 3, 5), 2))
    assert tuple(np.flatnonzero(levels).tolist()) in ours, "the noise level is 0 outside of the subset"


@pytest.mark.parametrize("k", [None, 4])
def test_all_candidates(k: int | None) -> None:
    assert choose_steps((5, 1, 2, 3), k, 42, 0) == (1, 2, 3, 5)


@pytest.mark.parametrize("k", [5, -1])
def test_a_number_that_cannot_be_chosen_is_an_error(k: int) -> None:
    with pytest.raises(ValueError, match=f"cannot choose {k} of the 4"):
        choose_steps((1, 2, 3, 5), k, 42, 0)
