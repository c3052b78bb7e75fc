"""A pipeline that fails on a row, while it encodes or draws it, is one line with the row's place; the program's own errors are traces."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ChromaPipeline

from flow_factory.training.rollout import RolloutCollector
from flow_factory.utils.errors import RowError, RunError, UserError
from tests.tiny.pipelines import saved
from tests.tiny.run import TEST, TRAIN, tiny

LOST = "[pair.cc:547] Connection closed by peer [127.0.0.1]:4711"


class Picky:
    """The pipeline's look at its inputs, which fails on some prompts."""

    def __init__(self, look: Callable[..., None]):
        self.look, self.prompts, self.error = look, list[str](), Exception()

    def __call__(self, pipe: Any, prompt: Any, *args: Any, **kwargs: Any) -> None:
        given = [prompt] if isinstance(prompt, str) else prompt
        if any(p in self.prompts for p in given):
            raise self.error
        self.look(pipe, prompt, *args, **kwargs)


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> Picky:
    one = Picky(ChromaPipeline.check_inputs)
    monkeypatch.setattr(ChromaPipeline, "check_inputs", lambda *args, **kwargs: one(*args, **kwargs))
    return one


def run_of(folder: Path, *overrides: str) -> Any:
    model = ("model.model_type=diffusers", f"model.model_name_or_path={saved('chroma')}", "train.max_sequence_length=32")
    return tiny(folder, *model, "train.ema_decay=0", "train.unique_sample_num_per_epoch=6", *overrides)


def test_a_row_that_cannot_be_encoded_is_named(tmp_path: Path, picky: Picky) -> None:
    for error in (ValueError("no such\nword"), AssertionError("odd"), KeyError("x"), ZeroDivisionError("0")):
        picky.prompts, picky.error = [TRAIN[1]], error
        first = str(error).splitlines()[0]
        with pytest.raises(UserError) as caught:
            run_of(tmp_path)
        place = rf"{tmp_path}/data/train.jsonl:2: ChromaPipeline cannot encode this row: {first} \(test_failing_rows.py:\d+, in __call__\)"
        assert re.fullmatch(place, str(caught.value)) and not isinstance(caught.value, RunError), caught.value


@pytest.mark.slow
def test_a_row_that_cannot_be_drawn_is_named_and_the_state_is_kept(
    tmp_path: Path, picky: Picky, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, "eval.eval_freq=2")
    picky.prompts, picky.error = [TEST[2]], IndexError("out of range")
    with pytest.raises(RowError, match=r"data/test.jsonl:3: ChromaPipeline cannot draw this row: out of range \(test_failing_rows"):
        run.evaluate()
    picky.error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        run.evaluate()
    picky.error = RuntimeError(LOST)
    with pytest.raises(RuntimeError, match="pair.cc"):
        run.evaluate()
    picky.prompts, picky.error, roll_out = [], IndexError("out of range"), RolloutCollector.__call__

    def later(self: RolloutCollector, epoch: int) -> Any:
        picky.prompts = [TRAIN[4]] if epoch else []
        return roll_out(self, epoch)

    monkeypatch.setattr(RolloutCollector, "__call__", later)
    with pytest.raises(RowError, match=r"data/train.jsonl:5: ChromaPipeline cannot draw this row: out of range"):
        run()
    assert (run.folder / "checkpoints" / "epoch_1" / "state" / "progress.json").is_file()
    assert f"the state after epoch 1 is saved; resume with: ff-train {run.folder}/config.yaml model.resume_path={run.folder}" in caplog.text


def test_an_error_of_the_programs_own_is_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny(tmp_path, "eval.eval_freq=0")
    monkeypatch.setattr("flow_factory.core.sampling.DYNAMICS", {})  # ours is the last frame
    with pytest.raises(KeyError, match="ODE"):
        run()
