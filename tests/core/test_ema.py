"""EMA schedules against the references' numbers."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from flow_factory.config import TRAIN_CONFIGS
from flow_factory.core.ema import RAMPS, Ramp, Schedule, decay_after, dgpo_ema_ref, ema_decay, initial_share, ramp, reported_weights

GOLDEN = Path(__file__).parents[1] / "golden"
NFT_1, NFT_2 = {"flat_steps": 0, "ramp_rate": 0.001}, {"flat_steps": 75, "ramp_rate": 0.0075}


@pytest.mark.parametrize(
    ("key", "schedule", "decay", "extras"),
    [
        ("ff_constant", "constant", 0.9, {}),
        ("ff_power", "power", 0.995, {"warmup_steps": 10}),
        ("ff_linear", "linear", 0.999, {"initial_decay": 0.0, "warmup_steps": 100}),
        ("ff_piecewise_linear", "piecewise_linear", 0.5, NFT_1),
        ("ff_piecewise_linear_75", "piecewise_linear", 0.999, NFT_2),
        ("ff_cosine", "cosine", 0.999, {"initial_decay": 0.9, "total_steps": 1000}),
        ("ff_warmup_cosine", "warmup_cosine", 0.999, {"initial_decay": 0.9, "warmup_steps": 100, "total_steps": 1000}),
        ("nft_return_decay_0", "constant", 0.0, {}),
        ("nft_return_decay_1", "piecewise_linear", 0.5, NFT_1),
        ("nft_return_decay_2", "piecewise_linear", 0.999, NFT_2),
        ("dgpo_ema_ref_decay", "piecewise_linear", 0.3, NFT_1),
        ("crd_decay_1", "piecewise_linear", 0.5, NFT_1),
        ("crd_decay_2", "piecewise_linear", 0.999, NFT_2),
        ("crd_decay_fast", "piecewise_linear", 0.99, {"flat_steps": 0, "ramp_rate": 0.02}),
        ("crd_decay_0-0.25-0.005-0.999", "piecewise_linear", 0.999, {"initial_decay": 0.25, "ramp_rate": 0.005}),
        ("crd_decay_75-0.0-0.0075-0.999", "piecewise_linear", 0.999, NFT_2),
    ],
)
def test_decay_matches_the_reference(key: str, schedule: Schedule, decay: float, extras: dict[str, Any]) -> None:
    with np.load(GOLDEN / "14_ema.npz") as g:
        np.testing.assert_allclose([ema_decay(schedule, int(k), decay, **extras) for k in g["steps"]], g[key], rtol=1e-12)


@pytest.mark.parametrize(
    ("key", "schedule", "decay", "interval"),
    [
        ("ema_flow_grpo", "power", 0.9, 4),
        ("ema_flow_grpo_int1", "power", 0.9, 1),
        ("ema_ff_power_int4", "power", 0.995, 4),
        ("ema_ff_const_int1", "constant", 0.9, 1),
    ],
)
def test_averaged_parameters_match_the_reference(key: str, schedule: Schedule, decay: float, interval: int) -> None:
    """The decay is that of the step's number k, not of the count of updates, where only every `interval`-th step updates."""
    with np.load(GOLDEN / "14_ema.npz") as g:
        average = np.zeros(3)
        for k, (weights, expected) in enumerate(zip(g["param_sequence"], g[key], strict=True)):
            if (k + 1) % interval == 0:
                average += (1 - ema_decay(schedule, k, decay)) * (weights - average)
            np.testing.assert_allclose(average, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("key", "decay"), [
    ("crd_decay_0-0.25-0.005-0.999", ramp("0-0.25-0.005-0.999")), ("crd_decay_75-0.0-0.0075-0.999", ramp("75-0.0-0.0075-0.999")),
    ("crd_decay_1", ramp(1)), ("crd_decay_2", ramp("2")), ("crd_decay_fast", ramp("fast")), ("dgpo_ema_ref_decay", dgpo_ema_ref()),
    ("nft_return_decay_0", ramp(0)), ("nft_return_decay_1", ramp(1)), ("nft_return_decay_2", ramp(2)),
])  # fmt: skip
def test_a_ramp_is_the_references(key: str, decay: Ramp) -> None:
    with np.load(GOLDEN / "14_ema.npz") as g:
        np.testing.assert_allclose([decay(int(k)) for k in g["steps"]], g[key], rtol=1e-12)


def test_ramps_have_names_numbers_and_their_own_words() -> None:
    assert [ramp(name) for name in RAMPS] == [ramp(k) for k in range(7)] == [ramp(str(k)) for k in range(7)]
    assert ramp("10-0-1e-3-.5") == Ramp(10, 0.0, 0.001, 0.5)
    assert [ramp("offline")(k) for k in (0, 9)] == [1.0, 1.0] and [ramp("none")(k) for k in (0, 9)] == [0.0, 0.0]
    assert [ramp("5-0.2-0.1-0.35")(k) for k in (0, 5, 6, 9)] == pytest.approx([0.2, 0.2, 0.3, 0.35])


@pytest.mark.parametrize(("text", "message"), [
    ("quick", "known: none, slow"), (7, "0 to 6"), (-1, "0 to 6"), ("1-2-3", "start_step-start"), ("0.5-0-0-1", "start_step"),
    ("0-0--1-1", "start_step"), ("0-0-0.1-1.5", "start <= cap <= 1"), ("0-0.9-0.1-0.5", "got start 0.9 and cap 0.5"), ("", "no decay ''"),
])  # fmt: skip
def test_a_decay_that_is_none_says_what_would_be(text: str | int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ramp(text)


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_decay_stays_a_share_that_never_falls(schedule: Schedule, steps: int) -> None:
    extras: dict[str, Any] = {"initial_decay": 0.3, "warmup_steps": steps, "total_steps": steps + 3, "flat_steps": steps}
    decays = [ema_decay(schedule, k, 0.9, **extras) for k in range(1000)]
    assert all(0 <= a <= b <= 0.9 for a, b in zip(decays, decays[1:], strict=False)) and decays[-1] == pytest.approx(0.9)


def test_an_unknown_schedule_is_an_error() -> None:
    with pytest.raises(ValueError, match="no EMA schedule 'step'; known: constant"):
        ema_decay("step", 0, 0.9)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("interval", [1, 3, 10])
@pytest.mark.parametrize("epochs", [0, 1, 9, 20])
def test_the_share_of_the_first_weights_is_that_of_a_simulated_average(schedule: Schedule, interval: int, epochs: int) -> None:
    """What is 1 at the start and trained to 0 at once leaves the share."""
    keys = {"ema_decay": 0.9, "ema_decay_schedule": schedule, "ema_update_interval": interval, "max_epochs": 20, "warmup_steps": 5}
    train = TRAIN_CONFIGS["grpo"](**keys, initial_decay=0.2, flat_steps=2, ramp_rate=0.1)
    average = np.ones(1)
    for done in range(1, epochs + 1):
        if (decay := decay_after(train, done)) is not None:
            average = decay * average + (1 - decay) * np.zeros(1)
    assert initial_share(train, epochs) == pytest.approx(average[0])


def test_a_run_says_how_much_of_the_first_weights_it_evaluates() -> None:
    train = TRAIN_CONFIGS["grpo"](max_epochs=20)
    assert initial_share(train, 20) == pytest.approx(10 / 19 * 20 / 29)
    assert "(ema_decay: 0.995, less in the first epochs); at the end, after 20 epochs, 36 % of it is still" in reported_weights(train)
    once = TRAIN_CONFIGS["grpo"](max_epochs=1, ema_update_interval=1, ema_decay=0.9, ema_decay_schedule="constant")
    assert "updated every epoch (ema_decay: 0.9); at the end, after 1 epoch, 90 % of it is still the initial" in reported_weights(once)
    assert "; after 100 epochs, 11 %" in reported_weights(TRAIN_CONFIGS["grpo"]())
    alone = TRAIN_CONFIGS["grpo"](ema_decay=0)
    assert "themselves" in reported_weights(alone) and [initial_share(alone, n) for n in (0, 1)] == [1, 0]
