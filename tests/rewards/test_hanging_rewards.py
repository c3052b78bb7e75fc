"""Rewards that hang, fail late or tell nothing apart: the run ends in a line and keeps what it has, or says what it does not learn."""

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from flow_factory.config import load_config
from flow_factory.hparams import RewardArguments
from flow_factory.rewards import PointwiseRewardModel
from flow_factory.rewards.constant_rewards import ConstantRewards
from flow_factory.rewards.isolation import within
from flow_factory.rewards.scoring import RewardSet, load_rewards
from flow_factory.runs.resume import find_start
from flow_factory.types import Row
from flow_factory.utils.errors import RewardError
from flow_factory.utils.signals import Interrupted
from tests.rewards.reward_set import pictures
from tests.tiny.run import ff_train, tiny, write_run

HERE = __name__


class Late(PointwiseRewardModel):
    """Hangs, fails or is interrupted in the call of the number `at`, counted from 0."""

    required_fields = ("prompt", "image")
    calls = 0

    def __call__(self, prompt: list[str], image: list) -> list[float]:
        type(self).calls += 1
        if type(self).calls - 1 == self.config.extra_kwargs.get("at", 0):
            {"hang": hang, "raise": fail, "signal": interrupt}[self.config.extra_kwargs["what"]]()
        return [float(torch.rand(())) for _ in image]


HANGING, END = threading.Event(), threading.Event()
"""A call hangs; and the test ends, until when it does."""


@pytest.fixture(autouse=True)
def _end() -> Iterator[None]:
    HANGING.clear()
    END.clear()
    yield
    END.set()
    for thread in threading.enumerate():
        if thread.name == "reward":
            thread.join()


def hang() -> None:
    HANGING.set()
    assert END.wait(600), "the call was waited for"


def fail() -> None:
    raise OSError("server down")


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    hang()


class Constant(PointwiseRewardModel):
    def __call__(self, image: list) -> list[float]:
        return [0.5] * len(image)


def rewarding(name: str, **keys: Any) -> RewardSet:
    extra = {k: keys.pop(k) for k in ("what", "at") if k in keys}
    Late.calls = 0
    config = RewardArguments(name="it", reward_model=f"{HERE}:{name}", extra_kwargs=extra, **keys)
    return load_rewards([config], None, Accelerator(cpu=True))[0]


def test_a_call_that_hangs_ends_at_its_limit_and_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = sys._current_frames
    monkeypatch.setattr(sys, "_current_frames", lambda: HANGING.wait() and frames())  # a busy machine begins the call after its limit
    with pytest.raises(
        RewardError, match=r"reward 'it' failed on 2 samples of row 3: it took longer than its max_seconds: 0.2 \(\S+:\d+, in hang\)"
    ):
        rewarding("Late", what="hang", max_seconds=0.2).score([Row(3, "x")], [pictures(2)])
    assert [t.daemon for t in threading.enumerate() if t.name == "reward"] == [True], "the process need not wait for it"


def test_a_call_within_its_limit_finds_torch_as_its_caller_has_it() -> None:
    def look() -> tuple[Any, ...]:
        return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), threading.current_thread().name

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert within(5.0, look, "it", HERE) == (*look()[:3], "reward")
        assert within(None, look, "it", HERE) == look()
    assert within(5.0, look, "it", HERE)[:2] == (True, False)
    with pytest.raises(OSError, match="server down"):
        within(5.0, fail, "it", HERE)


@pytest.mark.parametrize("limit", [(), ("rewards.max_seconds=50",)])
def test_a_signal_while_a_reward_hangs_keeps_the_state(tmp_path: Path, limit: tuple[str, ...]) -> None:
    Late.calls = 0
    keys = (f"rewards.reward_model={HERE}.Late", "rewards.what=signal", "rewards.at=1", "eval.eval_freq=0", *limit)
    run = tiny(tmp_path, *keys)
    with pytest.raises(Interrupted):
        run()
    assert (run.folder / "checkpoints" / "epoch_1" / "state" / "progress.json").is_file()


def test_a_reward_that_fails_leaves_the_state_of_the_epochs_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Late.calls = 0
    reward = (f"rewards.reward_model={HERE}.Late", "rewards.what=raise", "rewards.at=1")
    keys = (*reward, "train.learning_rate=7e-4", "train.max_epochs=5", "run_name=my slower", "eval.eval_freq=0")
    run = tiny(tmp_path, *keys)
    with pytest.raises(RewardError, match="OSError: server down"):
        run()
    assert (run.folder / "checkpoints" / "epoch_1" / "state" / "progress.json").is_file()
    assert "the state after epoch 1 is saved; resume with: ff-train '" in caplog.text
    command, file, *overrides = shlex.split(caplog.text.partition("; resume with: ")[2].splitlines()[0])
    resumed = load_config(Path(file), overrides)
    assert command == "ff-train" and resumed == load_config(tmp_path / "tiny.yaml", [*keys, f"model.resume_path={run.folder}"])
    assert find_start(resumed).resumes


@pytest.mark.slow
def test_a_reward_that_tells_nothing_apart_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tiny(tmp_path, f"rewards.reward_model={HERE}.Constant", "eval.eval_freq=0")
    with caplog.at_level(logging.WARNING):
        summary = run()
    said = [r.getMessage() for r in caplog.records if "one score" in r.getMessage()]
    assert len(said) == 1 and said[0].startswith("reward 'size': in this epoch all samples of each of the 2 groups had one score, so every")
    assert "nothing was learned from size: in every epoch all samples of a group had the same score" in summary


def test_silence_is_said_at_first_and_then_ever_more_seldom() -> None:
    silence, names, weights = ConstantRewards(), ("a", "b", "watched"), (1.0, 2.0, 0.0)
    said = {k: silence.look(names, weights, (True, False, False), 4) for k in range(1, 1001)}
    assert [k for k, line in said.items() if line] == [1, 10, 100, 1000]
    assert said[10] == "reward 'b': in the last 10 epochs all samples of each of the 4 groups had one score, so nothing was learned from it"
    assert (
        silence.look(names, weights, (False, True, True), 4) is not None and silence.look(names, weights, (False, False, True), 4) is None
    )


def test_what_a_reward_says_went_wrong_is_said_once_an_epoch(caplog: pytest.LogCaptureFixture) -> None:
    class_of = rewarding("Constant")
    for reward in class_of.rewards:
        reward.model.__class__ = Complains
    for _ in range(3):
        class_of.score([Row(0, "x")], [pictures(2)])
    class_of.finish_epoch()
    (said,) = [r.getMessage() for r in caplog.records]
    assert said == "reward 'it' reported an error 3 times in these 6 samples, last: server down"
    class_of.score([], [])
    class_of.finish_epoch()
    assert len(caplog.records) == 1


class Complains(Constant):
    def __call__(self, image: list) -> Any:
        from flow_factory.rewards import RewardModelOutput

        return RewardModelOutput([0.0] * len(image), {"error": "server\n down"})


@pytest.mark.parametrize("value", ["0", "-1", "soon"])
def test_a_limit_is_a_number_of_seconds(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match="rewards.max_seconds"):
        load_config(write_run(tmp_path), [f"rewards.max_seconds={value}"])


HANGS = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from flow_factory.rewards import PointwiseRewardModel

class Hangs(PointwiseRewardModel):
    def __call__(self, image):
        pool = ThreadPoolExecutor()
        return list(pool.map(lambda i: time.sleep(3600), image))

class Leaves(PointwiseRewardModel):
    def __call__(self, image):
        sys.exit(0)
"""


@pytest.mark.slow
def test_the_command_ends_although_threads_of_a_reward_do_not(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "mine.py").write_text(HANGS)
    done = ff_train("tiny.yaml", "rewards.reward_model=mine.Hangs", "rewards.max_seconds=1", "eval.eval_freq=0", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: reward 'size' failed on 8 samples of row" in done.stderr and "longer than its max_seconds: 1" in done.stderr
    done = ff_train("tiny.yaml", "rewards.reward_model=mine.Leaves", "run_name=two", "eval.eval_freq=0", cwd=tmp_path)
    assert done.returncode == 1 and "it ended the program, by SystemExit(0)" in done.stderr and "mine.py:13" in done.stderr
