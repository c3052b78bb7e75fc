"""Training noise levels: of given uniforms against the references, and what a range, a shift and a key must do."""

import pytest
import torch
from torch import Tensor

from flow_factory.config.algorithms import index_window
from flow_factory.core.timesteps import (
    PairTimeSampler,
    Strategy,
    TimeSampler,
    discrete,
    logit_normal,
    lookup,
    shifted,
    stratified,
    training_schedule,
    truncated_logit_normal,
    uniform,
)
from tests.vectors import close, golden

REL = 2e-5  # float32 references
DISCRETE: list[Strategy] = ["discrete", "discrete_with_init", "discrete_wo_init"]
STRATEGIES: list[Strategy] = [*DISCRETE, "uniform", "logit_normal"]
SIGMAS = torch.tensor([1.0, 0.96, 0.9, 0.82, 0.72, 0.6, 0.46, 0.3, 0.15, 0.05, 0.0])


@pytest.fixture(scope="module")
def g() -> dict[str, Tensor]:
    return golden("13_time_samplers")


@pytest.mark.parametrize("shift", [1, 3])
def test_logit_normal_is_awms(g: dict[str, Tensor], shift: int) -> None:
    s = logit_normal(stratified(g["u"].double(), g["perm"]), (0.0, 0.99), shift)
    close(1000 * s, g[f"awm_logit_normal_shift{shift}"][:, 0].double(), REL)
    close(1000 * s, g[f"ff_jan26_logit_normal_shift{shift}_strat1"].double(), REL)
    independent = logit_normal(torch.special.ndtr(g["n"].double()), (0.0, 0.99), shift)
    close(1000 * independent, g[f"ff_jan26_logit_normal_shift{shift}_strat0"].double(), REL)


@pytest.mark.parametrize("shift", [1, 3])
def test_uniform_is_awms(g: dict[str, Tensor], shift: int) -> None:
    """Which draws it for every sample; here as columns."""
    u = g["u_TB"].double()
    close(1000 * uniform(stratified(u, u.argsort(0)), (0.0, 0.8), shift), g[f"awm_uniform_shift{shift}"].double(), REL)
    close(1000 * uniform(stratified(g["u"].double(), g["perm"]), (0.0, 0.8), shift), g[f"ff_jan26_uniform_shift{shift}"].double(), REL)


@pytest.mark.parametrize("strategy", DISCRETE)
@pytest.mark.parametrize(("tag", "timestep_range"), [("0.9", (0.0, 0.9)), ("1.0", (0.0, 1.0)), ("0.2r0.8", (0.2, 0.8))])
def test_discrete_is_the_references(g: dict[str, Tensor], strategy: Strategy, tag: str, timestep_range: tuple[float, float]) -> None:
    """The newest public Flow-Factory has another window: by time instead of by index, which a shifted schedule hardly cuts."""
    t = g["sched_timesteps"]
    first, last = index_window(len(t), timestep_range)
    chosen = t[discrete(g["u"], first, last, strategy)]
    assert torch.equal(chosen, g[f"ff_jan26_{strategy}_{tag}"])
    if tag == "0.9":
        assert torch.equal(chosen, g[f"awm_{strategy}"][:, 0])
    low, high = timestep_range
    valid = ((t >= 1000 * (1 - high) - 1e-3) & (t <= 1000 * (1 - low) + 1e-3)).nonzero()
    assert torch.equal(t[discrete(g["u"], int(valid[0]), int(valid[-1]), strategy)], g[f"ff_head_{strategy}_{tag}"])


@pytest.mark.parametrize("name", ["logit_normal_shift{}_strat1", "logit_normal_shift{}_strat0", "uniform_shift{}"])
def test_a_shift_is_towards_noise_unlike_the_newest_public_version(g: dict[str, Tensor], name: str) -> None:
    """There it is towards data since its samplers count from the noisy end, against AWM, SD3 and its own past."""
    plain, moved = (g[f"ff_jan26_{name}".format(shift)] for shift in (1, 3))
    assert (moved > plain).all()
    plain, moved = (g[f"ff_head_{name}".format(shift)] for shift in (1, 3))
    assert (moved < plain).all()


def test_the_median_is_the_shifted_half(g: dict[str, Tensor]) -> None:
    q = logit_normal(g["quantiles_q"], (0.0, 0.99), 3.0)
    close(1000 * q, g["ff_jan26_logit_normal_shift3_quantiles"], 0.02)  # of 20000 draws
    assert (g["ff_head_logit_normal_shift3_quantiles"] < 0.8 * 1000 * q).all()
    close(logit_normal(torch.tensor([0.5]), (0.0, 1.0), 3.0), torch.tensor([0.75], dtype=torch.float64))


def test_dpos_levels_are_looked_up_in_the_training_schedule(g: dict[str, Tensor]) -> None:
    t = 1000 * lookup(g["dpo_u"].double(), training_schedule(3.0))
    close(t, g["dpo_t"].double(), REL)
    close(torch.sigmoid(g["dpo_normal"]), g["dpo_u"], 1e-3)
    close(truncated_logit_normal(torch.special.ndtr(g["dpo_normal"].double()), 0.0, 1.0), torch.sigmoid(g["dpo_normal"].double()))
    assert lookup(torch.tensor([0.0, 1.0]), training_schedule()).tolist() == [1.0, 0.001]


def test_strata_are_hit_once_each() -> None:
    u, order = torch.rand(16, 3, dtype=torch.float64), torch.randperm(16)
    parts = (stratified(u, order) * 16).long()
    assert all(sorted(column) == list(range(16)) for column in parts.T.tolist())
    assert parts[:, 0].tolist() == order.tolist()


@pytest.mark.parametrize("strategy", DISCRETE)
def test_as_many_points_as_steps_take_every_step_once(strategy: Strategy) -> None:
    start = 1 if strategy == "discrete_wo_init" else 0
    assert discrete(torch.rand(9 - start), 0, 9, strategy).tolist() == list(range(start, 9))


def test_more_points_than_steps_repeat_and_fewer_stay_in_their_part() -> None:
    assert discrete(torch.rand(8), 2, 5, "discrete").bincount(minlength=5).tolist()[2:] == [3, 3, 2]
    for _ in range(50):
        a, b, c = discrete(torch.rand(3), 0, 9, "discrete").tolist()
        assert 0 <= a < 3 <= b < 6 <= c < 9
    assert discrete(torch.rand(1), 3, 9, "discrete_with_init").tolist() == [3]


@pytest.mark.parametrize(("steps", "share", "window"), [(10, (0.0, 0.7), (0, 7)), (100, (0.0, 0.29), (0, 29)), (14, (0.2, 0.8), (2, 11))])
def test_a_range_counts_steps_without_float_surprises(steps: int, share: tuple[float, float], window: tuple[int, int]) -> None:
    """int(100 * .29) is 28."""
    assert index_window(steps, share) == window


@pytest.mark.parametrize(("strategy", "first", "last", "count"), [
    ("discrete", 0, 0, 1), ("discrete_wo_init", 0, 1, 1), ("discrete_with_init", 0, 1, 2), ("discrete_with_init", 2, 2, 1),
])  # fmt: skip
def test_no_step_to_draw_from_is_an_error(strategy: Strategy, first: int, last: int, count: int) -> None:
    with pytest.raises(ValueError, match="widen timestep_range or sample more steps"):
        discrete(torch.rand(count), first, last, strategy)


@pytest.mark.parametrize("timestep_range", [(0.0, 0.6), (0.3, 0.8), (0.5, 1.0)])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("sampler", [uniform, logit_normal])
def test_levels_stay_in_the_shifted_range_and_pile_up_nowhere(sampler: object, timestep_range: tuple[float, float], shift: float) -> None:
    u, (low, high) = torch.linspace(0, 1, 1001, dtype=torch.float64), timestep_range
    s = sampler(u, timestep_range, shift)  # type: ignore[operator]
    ends = shifted(torch.tensor([1 - high, 1 - low], dtype=torch.float64), shift)
    close(s[[0, -1]], ends, 1e-6)
    assert (s.diff() > 0).all(), "the quantile function of a density without atoms"


def test_shift_is_undone_by_its_inverse() -> None:
    s = torch.linspace(0, 1, 11, dtype=torch.float64)
    close(shifted(shifted(s, 3.0), 1 / 3), s)
    assert (shifted(s, 3.0)[1:-1] > s[1:-1]).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_draw_depends_on_its_key_alone(strategy: Strategy) -> None:
    timesteps, sampler = 1000 * SIGMAS[:-1], TimeSampler(strategy, 4)
    t, s = sampler.draw(timesteps, SIGMAS, 42, 3, 17)
    torch.manual_seed(5)
    again = sampler.draw(timesteps, SIGMAS, 42, 3, 17)
    assert torch.equal(t, again[0]) and torch.equal(s, again[1])
    assert t.dtype == s.dtype == torch.float32 and t.shape == (4,)
    close(t, 1000 * s, 1e-6)
    others = [sampler.draw(timesteps, SIGMAS, *key)[1] for key in ((42, 3, 18), (42, 4, 17), (43, 3, 17), (42, 3), (42, 3, 17, 0))]
    assert sum(torch.equal(s, other) for other in others) <= (1 if strategy.startswith("discrete") else 0)


def test_discrete_levels_are_the_schedules_own_where_its_clock_is_truncated() -> None:
    """UniPC's timesteps are whole numbers: s comes from the table, not from t / 1000."""
    timesteps = (1000 * SIGMAS[:-1] - 0.5).long()
    t, s = TimeSampler("discrete", None, (0.0, 1.0)).draw(timesteps, SIGMAS, 42, 0)
    assert torch.equal(t, timesteps.float()) and torch.equal(s, SIGMAS[:-1])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_keeps_to_its_range(strategy: Strategy) -> None:
    draws = [TimeSampler(strategy, None, (0.0, 0.7), 1.0).draw(1000 * SIGMAS[:-1], SIGMAS, 1, epoch)[1] for epoch in range(100)]
    s = torch.stack(draws)
    lowest = SIGMAS[6] if strategy.startswith("discrete") else 0.3
    assert s.shape == (100, 7) and s.min() >= lowest and s.max() <= 1
    assert (s[:, 0] == 1).all() if strategy == "discrete_with_init" else not (s == 1).all(1).any()
    assert strategy != "discrete_wo_init" or s.max() < 1


@pytest.mark.parametrize(("scheme", "median"), [("logit_normal", 0.5), ("uniform", 0.5)])
def test_pairs_have_levels_of_their_own(scheme: str, median: float) -> None:
    sampler = PairTimeSampler(scheme, (0.0, 1.0))  # type: ignore[arg-type]
    s = torch.stack([sampler.draw(2, 42, 0, pair)[1] for pair in range(2000)])
    assert len(s[:, 0].unique()) > 500 and abs(float(s.median()) - median) < 0.03
    t, s = PairTimeSampler(scheme, (0.0, 0.5), 3.0).draw(500, 42, 1, 7)  # type: ignore[arg-type]
    assert s.min() >= 0.75 - 1e-2
    close(t, 1000 * s, 1e-6)


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ValueError, match="no time sampling 'linear'; known"):
        TimeSampler("linear").draw(1000 * SIGMAS[:-1], SIGMAS, 0, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no weighting scheme 'mode'; known"):
        PairTimeSampler("mode").draw(1, 0, 0)  # type: ignore[arg-type]
