"""The threads that ask rewards beside the sampling: calls and scores are those in line, and no call undoes what another has changed."""

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_factory.rewards.executors import AHEAD, RewardExecutor
from flow_factory.rewards.isolation import kept
from flow_factory.utils.errors import RewardError, UserError
from flow_factory.utils.signals import Interrupted
from tests.rewards.beside import LONG, Fails, Waits, groups, loaded, seeded
from tests.rewards.test_reward_scoring import CALLS


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


def test_a_reward_that_fails_is_heard_before_the_others_have_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    over: list[int] = []
    monkeypatch.setattr(Waits, "until", staticmethod(lambda: bool(over)))
    rewards = loaded(("Waits", {}), ("Fails", {}), beside=True)
    try:
        with pytest.raises(RewardError, match="the model is gone"):
            rewards.score(*groups(1, 2))
    finally:
        over.append(1)


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
