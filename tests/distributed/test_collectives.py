"""Two processes on a CPU fail as one does, and say so once; what they do when all is well is test_same_run's."""

import re
import signal
import sys
from pathlib import Path

import pytest

from tests.tiny.patience import output, until
from tests.tiny.run import ff_train, started, write_run

pytestmark = pytest.mark.slow

SETTINGS = ("train.unique_sample_num_per_epoch=4", "train.adam_epsilon=1e-3", "train.kl_beta=0.1", "log.save_model_only=false")
REWARD = """\
import os
import signal

from flow_factory.rewards.jpeg import JpegCompressibility


class Absent(JpegCompressibility):
    def __init__(self, *given):
        super().__init__(*given)
        if os.environ.get("RANK") == "1":
            raise RuntimeError("the judge of process 1 is out")


class Leaves(JpegCompressibility):
    def __call__(self, **asked):
        self.calls = getattr(self, "calls", 0) + 1
        if os.environ.get("RANK") == "1" and self.calls == 2:
            raise RuntimeError("the judge of process 1 is out")
        return super().__call__(**asked)


class Told(JpegCompressibility):
    def __call__(self, **asked):
        if os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__call__(**asked)
"""


@pytest.mark.parametrize("reward", [pytest.param("Leaves", marks=pytest.mark.exhaustive), "Absent"])
def test_a_process_that_fails_is_shown_once(tmp_path: Path, reward: str) -> None:
    write_run(tmp_path)
    (tmp_path / "mine.py").write_text(REWARD)
    one = f"rewards.reward_model=mine.{reward}"  # of an epoch, each process scores four pictures in a call
    done = ff_train("tiny.yaml", "--num_processes", "2", one, "eval.eval_freq=0", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("RuntimeError: the judge of process 1 is out") == 1, done.stderr
    assert "error: process 1 of 2 stopped with exit code 1; its message is above" in done.stderr
    assert "Traceback" not in done.stderr and "another process" not in done.stderr, done.stderr
    kept = [tmp_path / "save/run/checkpoints/epoch_1/state/progress.json"] if reward == "Leaves" else []
    assert list(tmp_path.glob("save/run/checkpoints/*/state/progress.json")) == kept
    assert done.stderr.count("the state after epoch 1 is saved; resume with: ff-train ") == len(kept)


def test_what_all_processes_find_wrong_is_said_once(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = ff_train("tiny.yaml", "--num_processes", "2", "model.target_modules=attn.to_w", "scheduler.seed=7", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("fits no linear layer") == 1, done.stderr
    assert done.stderr.count("note: scheduler.seed") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.exhaustive  # test_launch has one where all processes get it
def test_sigterm_stops_all_where_a_resumed_run_goes_on(tmp_path: Path) -> None:
    write_run(tmp_path)
    command = [sys.executable, "-m", "flow_factory", "tiny.yaml", *SETTINGS, "train.max_epochs=500", "--num_processes", "2"]
    metrics = tmp_path / "save/run/metrics.jsonl"
    with started(command, tmp_path) as run:
        until(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, run, tmp_path)
        run.send_signal(signal.SIGTERM)
        _, said = output(run, tmp_path)
    assert run.returncode == 130, said
    assert len(re.findall("(?:SIGTERM|another process was interrupted): stopped before epoch", said)) == 1, said  # whoever is first
    assert "Traceback" not in said
    (saved,) = (tmp_path / "save/run/checkpoints").glob("epoch_*")
    assert (saved / "state" / "progress.json").is_file()


def test_a_signal_that_reaches_one_process_stops_all(tmp_path: Path) -> None:
    """In the first evaluation, where the reward is called first; what was not evaluated then is when the run goes on."""
    write_run(tmp_path)
    (tmp_path / "mine.py").write_text(REWARD)
    done = ff_train("tiny.yaml", "--num_processes", "2", "rewards.reward_model=mine.Told", cwd=tmp_path)
    assert done.returncode == 130, done.stderr
    (saved,) = (tmp_path / "save/run/checkpoints").glob("epoch_*/state/progress.json")
    assert saved.parts[-3] == "epoch_0" and (tmp_path / "save/run/metrics.jsonl").read_text() == ""
