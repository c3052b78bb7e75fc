"""Nobody waits in a collective for work that is longer than a step; a death is noticed at once, and told with what was being done."""

import re
import signal
from pathlib import Path

import pytest

from tests.test_faults import SETTINGS, faulty, on
from tests.test_resume import assert_same
from tests.tiny.several import several

pytestmark = pytest.mark.slow

LIMIT, LONG = 6, "8"
"""Seconds that a collective may take, and that each of the slow works takes."""
SLOW = {
    "encoding": "1 flow_factory.models.base:ModelAdapter.encode 1 dawdle",
    "evaluating": "1 flow_factory.rewards.jpeg:JpegCompressibility.__call__ 1 dawdle",
    "scoring": "0 flow_factory.trainer:score_groups 1 dawdle",
    "writing a state": "1 flow_factory.state_files:_write_rows 1 dawdle",
}
MORE = SLOW | {
    "loading": "1 flow_factory.train:open_adapter 1 dawdle",
    "building": "0 flow_factory.train:build_policy 1 dawdle",
    "trackers": "0 flow_factory.train:begin 1 dawdle",
    "rolling out": "1 flow_factory.trainer:Trainer.roll_out 1 dawdle",
    "drawing test rows": "0 flow_factory.evaluation:Evaluator._draw 3 dawdle",
    "logging": "0 flow_factory.metrics:MetricsFile.log 2 dawdle",
    "writing weights": "0 flow_factory.saver:save_model 1 dawdle",
}
"""Where one of several processes takes longer than a collective may."""
KEYS = (f"distributed_timeout={LIMIT}", "train.max_epochs=2", "eval.eval_freq=2", "train.unique_sample_num_per_epoch=4")


@pytest.mark.parametrize(
    ("processes", "engine", "slow"),
    [
        pytest.param(2, "ddp", SLOW, id="2"),
        pytest.param(4, "ddp", MORE, id="4", marks=pytest.mark.exhaustive),
        pytest.param(2, "fsdp2", MORE, id="fsdp2", marks=pytest.mark.exhaustive),
    ],
)
def test_work_that_is_longer_than_a_collective_may_take_is_waited_for(
    tmp_path: Path, processes: int, engine: str, slow: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAWDLES", LONG)
    run = faulty(tmp_path, "run", ";".join(slow.values()), on(engine), f"num_processes={processes}", *KEYS)
    assert run.code == 0, run.said
    several(tmp_path, processes, {"unbroken": [*SETTINGS, on(engine), *KEYS]})
    assert_same(run.folder, run.folder.parent / "unbroken")


PHASES = {
    "loading": ("1 flow_factory.train:open_adapter 1 kill", "loading the checkpoint"),
    "encoding": ("1 flow_factory.models.base:ModelAdapter.encode 2 kill", "encoding .*"),
    "evaluating": ("1 flow_factory.evaluation:Evaluator._draw 1 kill", "the eval phase"),
    "scoring": ("1 flow_factory.rewards.jpeg:JpegCompressibility.__call__ 1 kill", "scoring with 'size'"),
    "learning": ("1 flow_factory.learner:Learner.update 1 kill", "the optimise phase"),
    "saving": ("1 flow_factory.saver:collect 1 kill", "saving"),
    "the first one": ("0 flow_factory.trainer:score_groups 1 kill", "the reward phase"),
    "beside one that hangs": (
        "0 flow_factory.learner:Learner.update 1 hang;1 flow_factory.learner:Learner.update 1 kill",
        "the optimise phase",
    ),
}


@pytest.mark.parametrize(
    "place", [p if p in ("scoring", "beside one that hangs") else pytest.param(p, marks=pytest.mark.exhaustive) for p in PHASES]
)
def test_a_death_ends_all_and_is_told_with_what_the_process_was_doing(tmp_path: Path, place: str) -> None:
    """Without any limit that would end it."""
    fault, at = PHASES[place]
    run = faulty(tmp_path, "run", fault, "num_processes=2", "distributed_timeout=1000000", "eval.eval_freq=2")
    assert run.code == 128 + signal.SIGKILL
    rank = "0" if place == "the first one" else "1"
    *before, last = run.complaints
    assert re.fullmatch(f"error: process {rank} of 2 was killed by SIGKILL, at: {at}", last), run.said
    assert all(re.fullmatch(f"error: process {rank} of 2 has died, at: {at}, since \\d+ s", line) for line in before), run.said
    assert len(before) == 1 or place != "beside one that hangs"


def test_a_collective_that_one_process_does_not_come_to_says_which_and_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAWDLES", "1000000")
    fault = "1 flow_factory.learner:Learner.update 1 dawdle"
    run = faulty(tmp_path, "run", fault, "num_processes=2", f"distributed_timeout={LIMIT}", "eval.eval_freq=0")
    assert run.code == 1
    first, last = run.complaints
    missing = "process 1 of 2 was at: the optimise phase, since \\d+ s"
    assert re.fullmatch(f"error: a collective has not ended within distributed_timeout: {LIMIT} s; {missing}", first)
    assert last == "error: process 0 of 2 stopped with exit code 1; its message is above"


def test_a_process_that_a_watchdog_aborts_is_told_with_where_the_others_were(tmp_path: Path) -> None:
    """As NCCL's does where a collective takes too long."""
    fault = "0 flow_factory.rewards.scoring:RewardSet._call 1 abort;1 flow_factory.trainer:score_groups 1 hang"
    run = faulty(tmp_path, "run", fault, "num_processes=2", "eval.eval_freq=0")
    assert run.code == 128 + signal.SIGABRT
    at, other = "scoring with 'size'", "the (rollout|reward) phase"
    assert re.fullmatch(f"error: process 0 of 2 was killed by SIGABRT, at: {at}; process 1 was at: {other}", run.complaints[-1])
