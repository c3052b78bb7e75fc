"""Rewards beside the sampling: the same scores, advantages and weights as in line, to the bit; and nothing hangs."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import nn

from flow_factory.config import load_config
from flow_factory.hparams import RewardArguments
from flow_factory.rewards import GroupwiseRewardModel, PointwiseRewardModel
from flow_factory.rewards.executors import AHEAD, RewardExecutor
from flow_factory.rewards.isolation import kept
from flow_factory.rewards.scoring import RewardSet, load_rewards
from flow_factory.train import build
from flow_factory.types import Row
from flow_factory.utils.errors import RewardError, UserError
from flow_factory.utils.signals import Interrupted
from tests.rewards.test_reward_scoring import CALLS, colours
from tests.tiny.run import logged, tiny, trained, write_run
from tests.tiny.side_by_side import side_by_side

HERE = __name__
LONG = 60.0
"""Seconds after which a test that would hang fails."""


class Net(PointwiseRewardModel):
    """Sums whose last bits depend on the mode that torch is in, and a draw of each global generator."""

    use_tensor_inputs = True

    def __init__(self, config: RewardArguments, accelerator: Accelerator):
        super().__init__(config, accelerator)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.model = nn.Conv2d(3, 4, 3)

    def __call__(self, image: list, **columns: Any) -> list[float]:
        drawn = float(torch.rand(())) + random.random() + float(np.random.rand())
        return [float(self.model(i[None]).float().sin().mean()) + drawn + torch.is_grad_enabled() for i in image]


class Ranks(GroupwiseRewardModel):
    def __call__(self, image: list, **columns: Any) -> list[float]:
        CALLS.setdefault(self.config.name, []).append(colours(image))
        return [c / len(image) for c in colours(image)]


class Listed(PointwiseRewardModel):
    def __call__(self, image: list, **columns: Any) -> list[float]:
        CALLS.setdefault(self.config.name, []).append(colours(image))
        return [float(c) for c in colours(image)]


class Waits(PointwiseRewardModel):
    """Until the class's `until` is true."""

    until: Callable[[], bool] = staticmethod(lambda: True)

    def __call__(self, image: list, **columns: Any) -> list[float]:
        ends = time.monotonic() + LONG
        while not type(self).until() and time.monotonic() < ends:
            time.sleep(0.005)
        assert time.monotonic() < ends, "nothing went on beside the reward"
        return [float(c) for c in colours(image)]


class Fails(PointwiseRewardModel):
    def __call__(self, image: list, **columns: Any) -> list[float]:
        raise ValueError("the model is gone")


def loaded(*entries: tuple[str, dict[str, Any]], beside: bool) -> RewardSet:
    """Of (class, keys), the names of the entries being their numbers."""
    named = [
        RewardArguments(name=f"r{k}", reward_model=f"{HERE}:{cls}", device="cpu", **{"async_reward": beside} | keys)
        for k, (cls, keys) in enumerate(entries)
    ]
    return load_rewards(named, None, Accelerator(cpu=True))[0]


def groups(rows: int, size: int) -> tuple[list[Row], list[list[Image.Image]]]:
    media = [[Image.new("RGB", (4, 4), (r * size + k, 5, 9)) for k in range(size)] for r in range(rows)]
    return [Row(k, "x") for k in range(rows)], media


def seeded(call: Callable[[], Any]) -> Any:
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    return call()


@pytest.mark.parametrize("seed", range(12))
def test_scores_and_calls_are_those_in_line(seed: int) -> None:
    rng = random.Random(seed)
    sizes, workers = [rng.randint(1, 7) for _ in range(3)], rng.randint(1, 3)
    entries = [
        ("Net", {"batch_size": sizes[0]}), ("Ranks", {}), ("Listed", {"batch_size": sizes[1], "num_workers": workers}),
        ("Listed", {"batch_size": sizes[2], "async_reward": False, "extra_kwargs": {"own": 1}}),
    ]  # fmt: skip
    (rows, media), parts = groups(rng.randint(1, 7), rng.randint(1, 5)), rng.randint(1, 3)

    def scores(beside: bool) -> tuple[torch.Tensor, dict[str, Any], dict[str, float]]:
        CALLS.clear()
        rewards = loaded(*entries, beside=beside)
        stream = rewards.stream()
        with torch.autocast("cpu", torch.bfloat16, enabled=seed % 2 == 0):
            for k in range(0, len(rows), parts):
                stream.add(rows[k : k + parts], media[k : k + parts], last=False)
                stream.take(stream.ready())
            stream.add([], [], last=True)
        table, counts = stream.scores(), rewards.counts
        calls = {name: sorted(c) if workers > 1 else c for name, c in CALLS.items()}
        return table, calls, dict(counts.scored) | {k: v for k, v in rewards.finish_epoch().items() if "missing" in k}

    in_line, beside = seeded(partial(scores, False)), seeded(partial(scores, True))
    assert torch.equal(in_line[0], beside[0]) and in_line[1:] == beside[1:]


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


def test_a_reward_that_fails_is_heard_before_the_others_have_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    over: list[int] = []
    monkeypatch.setattr(Waits, "until", staticmethod(lambda: bool(over)))
    rewards = loaded(("Waits", {}), ("Fails", {}), beside=True)
    try:
        with pytest.raises(RewardError, match="the model is gone"):
            rewards.score(*groups(1, 2))
    finally:
        over.append(1)


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


def test_pictures_of_a_slow_reward_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """More samples wait until it has caught up; meanwhile signals are looked for."""
    open_, most = threading.Event(), []
    monkeypatch.setattr(Waits, "until", staticmethod(open_.is_set))
    rewards = loaded(("Waits", {"batch_size": 1, "num_workers": 2}), beside=True)
    (executor,) = rewards.executors.values()

    def look() -> None:
        most.append(len(executor.unfinished))
        open_.set()

    stream = rewards.stream(look)
    for row, group in zip(*groups(12, 1), strict=True):
        stream.add([row], [group], last=False)
    assert most[0] == AHEAD * 2 + 1 and stream.scores().shape == (12, 1)


def test_an_interrupt_while_more_samples_wait_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    over: list[int] = []
    monkeypatch.setattr(Waits, "until", staticmethod(lambda: bool(over)))
    rewards = loaded(("Waits", {"batch_size": 1}), beside=True)

    def look() -> None:
        raise Interrupted("SIGTERM")

    stream = rewards.stream(look)
    try:
        with pytest.raises(Interrupted), rewards.dropping():
            for row, group in zip(*groups(12, 1), strict=True):
                stream.add([row], [group], last=False)
        (executor,) = rewards.executors.values()
        assert len(executor.unfinished) <= 1, "only what is under way goes on"
    finally:
        over.append(1)


def test_entries_that_share_a_reward_share_its_threads() -> None:
    rewards = loaded(("Listed", {}), ("Listed", {"async_reward": False}), ("Listed", {"num_workers": 3}), ("Ranks", {}), beside=True)
    assert sorted(executor.workers for executor in rewards.executors.values()) == [1, 3] and rewards.beside
    assert not loaded(("Listed", {}), beside=False).executors
    assert not loaded(("Listed", {}), ("Ranks", {"async_reward": False}), beside=True).beside


def test_a_reward_on_a_gpu_has_a_stream_of_its_own_which_waits_for_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the streams: each thread's is of the reward's own device, and the calls run inside it."""
    log: list[Any] = []
    inside = threading.local()

    class Stream:
        def __init__(self, device: torch.device):
            self.device = device

        def wait_stream(self, other: str) -> None:
            log.append((self.device, other))

    @contextmanager
    def current(stream: Stream) -> Iterator[None]:
        inside.stream = stream
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: f"default of {device}")
    monkeypatch.setattr(torch.cuda, "stream", current)
    executor, meet = RewardExecutor(2, torch.device("cuda:1")), threading.Barrier(2, timeout=LONG)
    streams = [future.result(LONG) for future in [executor.submit(lambda: (meet.wait(), inside.stream)[1]) for _ in range(2)]]
    assert streams[0] is not streams[1] and {str(stream.device) for stream in streams} == {"cuda:1"}
    assert log == [(torch.device("cuda:1"), "default of cuda:1")] * 2


def test_calls_side_by_side_do_not_restore_each_others_changes(tmp_path: Path) -> None:
    """The second begins while the first has changed the folder and the dtype, and ends after it."""
    before, begun, ended = (Path.cwd(), torch.get_default_dtype()), threading.Event(), threading.Event()
    executor = RewardExecutor(2, torch.device("cpu"))

    def first() -> None:
        with kept():
            os.chdir(tmp_path)
            torch.set_default_dtype(torch.float64)
            assert begun.wait(LONG)

    def second() -> None:
        with kept():
            begun.set()
            assert ended.wait(LONG)

    def until_changed() -> None:
        ends = time.monotonic() + LONG
        while torch.get_default_dtype() is before[1] and time.monotonic() < ends:
            time.sleep(0.001)

    futures: list[Future[Any]] = [executor.submit(first)]
    until_changed()
    futures.append(executor.submit(second))
    futures[0].result(LONG)
    ended.set()
    futures[1].result(LONG)
    assert (Path.cwd(), torch.get_default_dtype()) == before


def test_an_exit_in_a_reward_beside_the_sampling_is_its_failure() -> None:
    class Leaves(Fails):
        def __call__(self, image: list, **columns: Any) -> list[float]:
            raise SystemExit(3)

    rewards = loaded(("Fails", {}), beside=True)
    rewards.rewards[0].model.__class__ = Leaves
    with pytest.raises(UserError, match=r"it ended the program, by SystemExit\(3\)"):
        rewards.score(*groups(1, 2))


# -- several processes ------------------------------------------------------------------------------------------------------------------


class Lags(Ranks):
    """On the last process, and fails there in the epoch of the key `fails`."""

    def __call__(self, image: list, **columns: Any) -> list[float]:
        if self.accelerator.process_index == self.accelerator.num_processes - 1:
            time.sleep(0.05)
            if self.config.extra_kwargs.get("fails"):
                raise ValueError("the model is gone")
        return super().__call__(image)


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
