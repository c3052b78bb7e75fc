"""Nobody waits in a collective for work that is longer than a step; a death is noticed at once, and told with what was being done."""

import re
import signal
from pathlib import Path

import pytest

from tests.commands.test_faults import SETTINGS, faulty, on
from tests.runs.test_resume import assert_same
from tests.tiny.several import several

pytestmark = pytest.mark.slow

SLOW = {
    "encoding": "1 flow_factory.models.base:ModelAdapter.encode 1 dawdle",
    "evaluating": "1 flow_factory.rewards.jpeg:JpegCompressibility.__call__ 1 dawdle",
    "scoring": "0 flow_factory.training.rollout_scoring:RolloutScoring._submit 1 dawdle",
    "writing a state": "1 flow_factory.checkpoints.state_files:_write_rows 1 dawdle",
}
ALL = SLOW | {
    "loading": "1 flow_factory.train:open_adapter 1 dawdle",
    "building": "0 flow_factory.training.model_setup:build_policy 1 dawdle",
    "loading weights": "1 flow_factory.training.model_setup:load_weights 1 dawdle",
    "trackers": "0 flow_factory.train:begin 1 dawdle",
    "logging": "0 flow_factory.reporting.metrics:MetricsFile.log 2 dawdle",
    "writing weights": "0 flow_factory.training.saver:save_model 1 dawdle",
    "the end of the save before": "1 flow_factory.training.saver:Saver.wait 2 dawdle",
}
"""Where one of several processes works until the others wait for it, and could go on for hours."""
ALONE = {
    "rolling out": "1 flow_factory.training.rollout:RolloutCollector.sample 3 dawdle",
    "drawing test rows": "0 flow_factory.training.evaluation:Evaluator._draw 2 dawdle",
    "looking back": "1 flow_factory.training.learner:Learner.compute_kept_velocities 1 dawdle",
}
"""The same, but for engines that do this together, step by step."""


@pytest.mark.parametrize(
    ("processes", "engine", "slow"),
    [
        pytest.param(2, "ddp", SLOW | {"looking back": ALONE["looking back"]}, id="2"),
        pytest.param(4, "ddp", ALL | ALONE, id="4", marks=pytest.mark.exhaustive),
        pytest.param(2, "fsdp2", ALL, id="fsdp2", marks=pytest.mark.exhaustive),
        pytest.param(2, "zero3", ALL, id="zero3", marks=pytest.mark.exhaustive),
    ],
)
def test_the_work_of_one_process_is_waited_for_without_limit(tmp_path: Path, processes: int, engine: str, slow: dict[str, str]) -> None:
    keys = (on(engine), f"num_processes={processes}", "train.unique_sample_num_per_epoch=4", "eval.eval_freq=2")
    run = faulty(tmp_path, "run", ";".join(slow.values()), *keys)
    assert run.code == 0, run.said
    several(tmp_path, processes, {"unbroken": [*SETTINGS, *keys]})
    assert_same(run.folder, run.folder.parent / "unbroken")


PHASES = {
    "loading": ("1 flow_factory.train:open_adapter 1 kill", "loading the checkpoint"),
    "encoding": ("1 flow_factory.models.base:ModelAdapter.encode 2 kill", "encoding .*"),
    "evaluating": ("1 flow_factory.training.evaluation:Evaluator._draw 1 kill", "the eval phase"),
    "scoring": ("1 flow_factory.rewards.jpeg:JpegCompressibility.__call__ 1 kill", "scoring with 'size'"),
    "learning": ("1 flow_factory.training.learner:Learner.update 1 kill", "the optimise phase"),
    "saving": ("1 flow_factory.training.saver:collect 1 kill", "saving"),
    "the first one": ("0 flow_factory.training.rollout_scoring:RolloutScoring._submit 1 kill", "the rollout phase"),
    "beside one that hangs": (
        "0 flow_factory.training.learner:Learner.update 1 hang;1 flow_factory.training.learner:Learner.update 1 kill",
        "the optimise phase",
    ),
}


@pytest.mark.parametrize("place", [p if p == "scoring" else pytest.param(p, marks=pytest.mark.exhaustive) for p in PHASES])
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


def test_a_collective_that_one_process_does_not_come_to_says_which_and_where_it_was(tmp_path: Path) -> None:
    fault = "0 flow_factory.training.learner:Learner.update 1 impatient;1 flow_factory.training.learner:Learner.update 1 hang"
    run = faulty(tmp_path, "run", fault, "num_processes=2", "distributed_timeout=1000", "eval.eval_freq=0")
    assert run.code == 1
    first, last = run.complaints
    missing = "process 1 of 2 was at: the optimise phase, since \\d+ s"
    assert re.fullmatch(f"error: a collective has not ended within distributed_timeout: 1000 s; {missing}", first)
    assert last == "error: process 0 of 2 stopped with exit code 1; its message is above"


@pytest.mark.exhaustive
def test_a_process_that_a_watchdog_aborts_is_told_with_where_the_others_were(tmp_path: Path) -> None:
    """As NCCL's does where a collective takes too long."""
    fault = "0 flow_factory.rewards.stream:call_reward 1 abort;1 flow_factory.training.rollout_scoring:RolloutScoring._submit 1 hang"
    run = faulty(tmp_path, "run", fault, "num_processes=2", "eval.eval_freq=0")
    assert run.code == 128 + signal.SIGABRT
    at, other = "scoring with 'size'", "the (rollout|reward) phase"
    assert re.fullmatch(f"error: process 0 of 2 was killed by SIGABRT, at: {at}; process 1 was at: {other}", run.complaints[-1])
