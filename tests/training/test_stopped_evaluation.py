"""A signal or a fault in an evaluation ends it at its next batch; the run that goes on evaluates what was not, and no bit is another."""

import signal
from pathlib import Path
from typing import Any

import pytest

from flow_factory.rewards.jpeg import JpegCompressibility
from flow_factory.training.evaluation import Evaluator
from flow_factory.utils.errors import RewardError
from flow_factory.utils.signals import Interrupted
from tests.runs.test_resume import tensors
from tests.tiny.run import logged, tiny

KEYS = ("log.save_model_only=false", "log.save_freq=1")


@pytest.mark.exhaustive
def test_evaluations_that_were_stopped_are_done_when_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its three: before training, after an epoch, and at the end."""
    tiny(tmp_path, *KEYS, "run_name=unbroken")()
    draw = Evaluator._draw

    def told(self: Evaluator, batch: Any) -> Any:
        if run.context.progress.epoch == stopped:
            signal.raise_signal(signal.SIGTERM)
        return draw(self, batch)

    monkeypatch.setattr(Evaluator, "_draw", told)
    for stopped in (0, 1, 2):
        run = tiny(tmp_path, *KEYS, *(["model.resume_path=auto"] if stopped else []))
        with pytest.raises(Interrupted, match="SIGTERM"):
            run()
        assert (run.folder / "checkpoints" / f"epoch_{stopped}" / "state" / "progress.json").is_file()
    stopped, run = -1, tiny(tmp_path, *KEYS, "model.resume_path=auto")
    assert "before_after.png" in run()
    assert_same(tmp_path / "save/run", tmp_path / "save/unbroken")


def assert_same(run: Path, unbroken: Path) -> None:
    assert logged(run) == logged(unbroken), "no evaluation is missing, doubled or different"
    ended, wanted = (dict(tensors(folder / "checkpoints/epoch_2")) for folder in (run, unbroken))
    assert ended.keys() == wanted.keys() and all(bool((ended[k] == wanted[k]).all()) for k in wanted)


class Late(JpegCompressibility):
    """Fails in the second evaluation."""

    calls = 0

    def __call__(self, **given: Any) -> Any:  # type: ignore[override]
        type(self).calls += 1
        if type(self).calls == 3:  # an evaluation, an epoch, an evaluation
            raise OSError("server down")
        return super().__call__(**given)


def test_a_reward_that_fails_in_an_evaluation_leaves_a_state_that_evaluates_again(tmp_path: Path) -> None:
    Late.calls = 0
    reward = f"rewards.reward_model={__name__}.Late"
    with pytest.raises(RewardError, match="server down"):
        tiny(tmp_path, *KEYS, reward)()
    tiny(tmp_path, *KEYS, reward, "model.resume_path=auto")()
    evaluated = [line["step"] for line in logged(tmp_path / "save/run") if "eval/reward_size_mean" in line]
    assert evaluated == [0, 1, 2]
