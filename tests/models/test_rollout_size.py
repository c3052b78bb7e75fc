"""Micro-batches of a group that are drawn in one call are what they are one by one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flow_factory.config import ConfigError, load_config, plan_of
from flow_factory.core.condition_memo import ConditionMemo
from flow_factory.core.groups import cut
from flow_factory.training.rollout_size import most_alike, same_samples
from flow_factory.types import Rollout, Row, Step
from tests.conftest import cells
from tests.models.cases import EACH
from tests.models.harness import counted, lora, small
from tests.models.matrix import trainer_of
from tests.tiny.run import logged, tiny, write_run

KINDS = ("flux1", "qwen-image-edit", "wan22-5b-i2v", "ltx2-i2av")
"""Text alone, condition pictures, a picture held in the latents, two modalities; the other cases take turns."""


@cells("name", [(name,) for name in EACH], {(name,) for name in EACH if name not in KINDS})
def test_a_family_draws_two_micro_batches_at_once(name: str, tmp_path: Path) -> None:
    """The same noise, the same samples but for rounding, and a replay in micro-batches that sees them."""
    trainer = trainer_of(name, "grpo", tmp_path)
    _, policy = lora(name)
    rolled: list[list[Rollout]] = []
    calls: list[int] = []
    with small(trainer.context.adapter.pipe):
        for together in (1, 2):
            trainer.collector.together = together
            with counted(policy.components.values()) as forwards:
                rolled.append(trainer.collector(0))
            calls.append(len(forwards))
        assert calls[0] == 2 * calls[1] > 0
        for one, other in zip(*rolled, strict=True):
            assert (one.ids, len(one.media)) == (other.ids, len(other.media))
            for a, b in zip(one.steps, other.steps, strict=True):
                assert a.x.shape == b.x.shape and a.x.stride() == b.x.stride()
                torch.testing.assert_close(a.x1, b.x1, rtol=1e-3, atol=1e-3)
        trainer.judge(rolled[1])
        trainer.context.meter.clear()
        trainer.learner.learn(trainer.groups(rolled[1]))
    (error,) = trainer.context.meter.values["on_policy_error"]
    assert error < 1e-4


def drawn(members: Sequence[int], off: float = 0.0) -> Rollout:
    """Samples whose every value is their number, and a little off."""
    x = torch.tensor([float(m) for m in members])[:, None] + off
    step = Step(0, *torch.ones(4, 1)[:, 0], x, x + 1, x[:, 0], torch.float32, mean=x)
    picture = [Picture(m) for m in members]
    return Rollout(Row(0, "a"), {}, [step], picture, 0, 0, tuple(members), x0=x + 2, memo=ConditionMemo())


class Picture(int):
    def tobytes(self) -> bytes:
        return np.int64(self).tobytes()


def test_what_is_cut_keeps_its_order_and_shares_nothing_that_is_filled_in() -> None:
    parts = cut(drawn(range(6)), 2)
    assert [p.ids for p in parts] == [(0, 1), (2, 3), (4, 5)]
    assert all(map(same_samples, parts, [drawn(p.ids) for p in parts]))
    assert len({id(p.memo) for p in parts}) == len({id(p.frozen) for p in parts}) == 3
    whole = drawn(range(2))
    assert cut(whole, 2) == [whole]


@pytest.mark.parametrize(("exact", "found"), [(12, 6), (7, 3), (4, 2), (3, 1), (0, 1)])
def test_auto_finds_the_most_that_change_no_bit(exact: int, found: int) -> None:
    """Here more than `exact` samples in a call are off in the last bit; 12 samples in micro-batches of 2."""

    def draw(members: Sequence[int]) -> Rollout:
        return drawn(members, off=1e-7 if len(members) > max(exact, 2) else 0.0)

    assert most_alike(draw, 2, 6, lambda same: same, steps_down=True) == found


def test_auto_takes_less_where_memory_ends_and_what_all_processes_can() -> None:
    def draw(members: Sequence[int], most: int = 4) -> Rollout:
        if len(members) > most:
            raise torch.OutOfMemoryError
        return drawn(members)

    assert most_alike(draw, 2, 6, lambda same: same, steps_down=True) == 2
    assert most_alike(draw, 2, 6, lambda same: False, steps_down=True) == 1
    with pytest.raises(torch.OutOfMemoryError):
        most_alike(draw, 2, 6, lambda same: same, steps_down=False)


@pytest.mark.parametrize(
    "change", [{"x1": torch.zeros(2, 1)}, {"logp": torch.zeros(2)}, {"x0": torch.zeros(2, 1)}, {"media": [Picture(7)] * 2}]
)
def test_any_difference_counts(change: dict[str, Any]) -> None:
    other = drawn(range(2))
    for name, value in change.items():
        setattr(other if hasattr(other, name) else other.steps[0], name, value)
    assert not same_samples(drawn(range(2)), other)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["train.rollout_batch_size=3"], "3 does not divide the 4 samples of a group that a process draws, in micro-batches of 2; write 2"),
        (
            ["train.rollout_batch_size=16"],
            "16 does not divide the 4 samples of a group that a process draws, in micro-batches of 2; write 4",
        ),
        (["train.rollout_batch_size=most"], 'wants auto or a whole number of samples from 1, got "most"'),
        (["train.rollout_batch_size=true"], "wants auto or a whole number of samples from 1, got true"),
    ],
)
def test_what_does_not_divide_is_refused(tmp_path: Path, keys: list[str], message: str) -> None:
    file = write_run(tmp_path)
    with pytest.raises(ConfigError) as refused:
        load_config(file, keys)
    assert message in str(refused.value)


@pytest.mark.parametrize(("processes", "rows", "here"), [(1, 2, 2), (2, 2, 2), (2, 1, 1)])
def test_processes_that_share_a_group_draw_their_part_of_it(tmp_path: Path, processes: int, rows: int, here: int) -> None:
    keys = [f"num_processes={processes}", f"train.unique_sample_num_per_epoch={rows}", "train.gradient_step_per_epoch=1"]
    assert plan_of(load_config(write_run(tmp_path), keys)).rolled.of_a_group == here


@pytest.mark.parametrize("size", ["4", "auto"])
def test_a_run_draws_whole_groups(tmp_path: Path, size: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "flow_factory")
    run = tiny(tmp_path, f"train.rollout_batch_size={size}", "train.max_epochs=1", "eval.eval_freq=0")
    run()
    (line,) = (line for line in logged(run.folder) if "train/on_policy_error" in line)
    assert line["train/on_policy_error"] < 1e-4
    assert (f"draws {2 * run.trainer.collector.together} of the 4 samples" in caplog.text) == (size == "auto")
    if size == "auto":
        assert line["train/on_policy_error"] == 0
