"""A run with rewards beside the sampling: the same scores, advantages and weights as in line, to the bit; and nothing hangs."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from flow_factory.config import load_config
from flow_factory.train import build
from flow_factory.utils.errors import RewardError, UserError
from flow_factory.utils.signals import Interrupted
from tests.rewards.beside import HERE, Waits, groups, loaded, seeded
from tests.tiny.run import logged, tiny, trained, write_run
from tests.tiny.side_by_side import side_by_side


def beside_yaml(folder: Path, beside: bool) -> None:
    text = write_run(folder).read_text().partition("rewards:")[0]
    entries = "".join(
        f"- {{reward_model: '{HERE}:{cls}', name: {cls.lower()}, batch_size: 4, async_reward: {str(beside).lower()}, device: cpu}}\n"
        for cls in ("Net", "Ranks")
    )
    (folder / "tiny.yaml").write_text(f"{text}rewards:\n{entries}")


@pytest.mark.exhaustive
def test_an_epoch_and_an_evaluation_are_those_in_line(tmp_path: Path) -> None:
    found = []
    for name in ("in_line", "beside"):
        (tmp_path / name).mkdir()
        beside_yaml(tmp_path / name, name == "beside")
        run = tiny(tmp_path / name, "train.unique_sample_num_per_epoch=3", "train.gradient_step_per_epoch=1", "eval.group_size=2")
        metrics, evaluated = seeded(lambda run=run: (run.trainer.epoch(), run.evaluators[0].run()[0]))
        kept_ = {k: v for k, v in (metrics | evaluated).items() if not k.startswith(("time/", "perf/")) and "seconds" not in k}
        shown = [(s.prompt, s.media.tobytes(), s.rewards) for s in run.trainer.shown]
        found.append((kept_, shown, trained(run), torch.get_rng_state().tolist()))
        assert len(run.context.rewards.executors) == 2 * (name == "beside")
    (a, shown_a, weights_a, state_a), (b, shown_b, weights_b, state_b) = found
    assert a == b and shown_a == shown_b and state_a == state_b
    assert all(torch.equal(weights_a[name], p) for name, p in weights_b.items())


@pytest.mark.parametrize("part", ["epoch", "evaluation"])
def test_samples_are_drawn_while_rewards_are_asked(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reward's first call ends when the last sample is drawn."""
    run = tiny(tmp_path, f"rewards.reward_model={HERE}.Waits", "rewards.async_reward=true", "rewards.batch_size=2", "eval.eval_freq=1")
    drawn: list[int] = []
    holder, name, many = (run.trainer.collector, "sample", 4) if part == "epoch" else (run.evaluators[0], "_draw", 2)
    draw = getattr(holder, name)
    monkeypatch.setattr(holder, name, lambda *args: (drawn.append(1), draw(*args))[1])
    monkeypatch.setattr(Waits, "until", staticmethod(lambda: len(drawn) >= many))
    run.trainer.epoch() if part == "epoch" else run.evaluators[0].run()
    assert len(drawn) == many


def test_a_reward_that_fails_or_is_slow_ends_the_run_in_its_line(tmp_path: Path) -> None:
    keys = ("rewards.async_reward=true", "rewards.batch_size=4", "eval.eval_freq=0")
    with pytest.raises(RewardError, match=r"^reward 'size' failed on 4 samples of row \d+: ValueError: the model is gone \(\S+:\d+, in __"):
        tiny(tmp_path, f"rewards.reward_model={HERE}.Fails", *keys)()
    slow = loaded(("Waits", {"max_seconds": 0.1}), beside=True)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RewardError, match="longer than its max_seconds: 0.1"):
        patch.setattr(Waits, "until", staticmethod(lambda: False))
        try:
            slow.score(*groups(2, 2))
        finally:
            patch.setattr(Waits, "until", staticmethod(lambda: True))


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.exhaustive)])
def test_a_signal_while_scores_are_outstanding_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In its second epoch, when all is drawn and the reward hangs; the state after the first one is kept."""
    run = tiny(tmp_path, f"rewards.reward_model={HERE}.Waits", "rewards.async_reward=true", "eval.eval_freq=0", "rewards.batch_size=4")
    sent: list[int] = []
    over: list[int] = []

    def until() -> bool:
        hangs = run.context.progress.epoch == 1
        if hangs and not sent:
            sent.append(1)
            os.kill(os.getpid(), getattr(signal, name))
        return not hangs or bool(over)

    monkeypatch.setattr(Waits, "until", staticmethod(until))
    try:
        with pytest.raises(Interrupted, match=name):
            run()
        assert (run.folder / "checkpoints" / "epoch_1" / "state" / "progress.json").is_file()
        assert [len(executor.unfinished) for executor in run.context.rewards.executors.values()] <= [1], "only what is under way goes on"
    finally:
        over.append(1)


@pytest.mark.exhaustive
def test_what_was_asked_when_a_run_is_stopped_is_asked_again_and_it_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    keys = ("rewards.async_reward=true", "rewards.batch_size=3", "train.unique_sample_num_per_epoch=3", "eval.eval_freq=0",
            "log.save_model_only=false", "log.save_freq=1", "train.max_epochs=1", f"rewards.reward_model={HERE}.Waits")  # fmt: skip
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name)
    whole = tiny(tmp_path / "whole", *keys)
    whole()
    cut, over = tiny(tmp_path / "cut", *keys), []
    answered: list[int] = []

    def until() -> bool:
        answered.append(1)
        return len(answered) < 3 or bool(over)

    sample, drawn = cut.trainer.collector.sample, []

    def stopped(*args: Any) -> Any:
        drawn.append(1)
        if len(drawn) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return sample(*args)

    cut.trainer.collector.sample = stopped  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Waits, "until", staticmethod(until))
        try:
            with pytest.raises(Interrupted):
                cut()
        finally:
            over.append(1)
    done = cut.trainer.collector.done_so_far()
    assert done is not None and done.taken < len(done.rollouts) == 6 and len(done.ids) == 2 * done.taken
    assert all(len(rollout.media) == 2 for rollout in done.rollouts[done.taken :]), "rewards may ask for these pictures again"
    again = tiny(tmp_path / "cut", *keys, "model.resume_path=auto")
    again()
    assert logged(again.folder) == logged(whole.folder)
    assert all(torch.equal(trained(whole)[name], p) for name, p in trained(again).items())


# -- several processes ----------------------------------------------------------------------------------------------------------------


def _beside(rank: int, processes: int, rows: int) -> None:
    said: dict[str, Any] = {}
    for name, more in {
        "in_line": (),
        "beside": ("rewards.async_reward=true",),
        "fails": ("rewards.async_reward=true", "rewards.fails=true"),
    }.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        keys = (
            f"run_name={name}",
            f"num_processes={processes}",
            f"train.unique_sample_num_per_epoch={rows}",
            f"rewards.reward_model={HERE}.Lags",
        )
        run = build(
            load_config("tiny.yaml", [*keys, "rewards.batch_size=2", "eval.group_size=2", "train.gradient_step_per_epoch=1", *more])
        )
        try:
            run()
        except UserError as error:
            said[name] = str(error)
    Path(f"said.{rank}.json").write_text(json.dumps(said))


@pytest.mark.exhaustive
@pytest.mark.parametrize("rows", [1, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_processes_that_are_not_equally_fast_stay_in_step(tmp_path: Path, rows: int) -> None:
    """With one row its group is shared, and pictures go from process to process."""
    write_run(tmp_path)
    side_by_side(2, tmp_path, _beside, 2, rows)
    in_line, beside = (tmp_path / "save" / name for name in ("in_line", "beside"))
    assert logged(in_line) == logged(beside)
    said = [json.loads((tmp_path / f"said.{rank}.json").read_text()) for rank in range(2)]
    assert [list(one) for one in said] == [["fails"]] * 2 and any("the model is gone" in one["fails"] for one in said)
