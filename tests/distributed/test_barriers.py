"""Processes wait for each other's long work as long as it goes on, and name the one that stands still."""

from collections.abc import Callable

import pytest
from torch.distributed import HashStore

from flow_factory.distributed import barriers
from flow_factory.distributed.barriers import Work
from flow_factory.utils.errors import RendezvousError


class Clock:
    """Time that passes when somebody sleeps, and what the other process does meanwhile."""

    def __init__(self, meanwhile: Callable[[float], None]):
        self.now, self.meanwhile = 0.0, meanwhile

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile(self.now)


def test_all_wait_for_the_slowest_as_long_as_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its work takes a hundred times as long as it may stand still."""
    store = HashStore()

    def meanwhile(now: float) -> None:
        if now < 1000:
            slow.beat(f"row {now}")
        else:
            store.set("encoding/1/done", "")

    clock, before = Clock(meanwhile), barriers.waited()
    monkeypatch.setattr(barriers, "time", clock)
    slow = Work("encoding", store, (1, 2), still=10)
    Work("encoding", store, (0, 2), still=10).wait()
    assert 1000 <= clock.now < 1002
    assert barriers.waited() - before == pytest.approx(clock.now), "and it is known how long"


@pytest.mark.parametrize(("said", "at"), [("row 7", "row 7"), ("", "nothing yet")])
def test_one_that_stands_still_is_named_with_what_it_was_doing(monkeypatch: pytest.MonkeyPatch, said: str, at: str) -> None:
    store, clock = HashStore(), Clock(lambda now: None)
    monkeypatch.setattr(barriers, "time", clock)
    if said:
        Work("encoding", store, (1, 3)).beat(said)
    Work("encoding", store, (2, 3)).store.set("encoding/2/done", "")  # type: ignore[union-attr]
    with pytest.raises(RendezvousError, match=f"encoding: process 1 of 3 has made no progress for 20 s, at: {at}"):
        Work("encoding", store, (0, 3), still=20).wait()
    assert 20 < clock.now < 30


def test_one_that_waits_can_ask_the_others_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which hear of it between the parts of their work."""
    store = HashStore()

    def meanwhile(now: float) -> None:
        if worker.stop_requested() or now > 100:
            store.set("scoring/1/done", "")

    clock = Clock(meanwhile)
    monkeypatch.setattr(barriers, "time", clock)
    worker = Work("scoring", store, (1, 2))
    Work("scoring", store, (0, 2)).wait(lambda: clock.now > 3)
    assert 3 < clock.now < 10


def test_a_process_alone_waits_for_nobody() -> None:
    work = Work("encoding")
    work.beat("row 1")
    work.wait()
