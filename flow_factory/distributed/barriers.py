"""Barriers after long work of single processes, without the time limit of the process group."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed import DistError, Store

from flow_factory.distributed import liveness
from flow_factory.utils.errors import MeetingError, ProcessLost

STILL = 3 * 3600.0
"""Seconds without a sign of life after which a process is given up, though it is there: a part of the work, such as one row or one
download, takes less. One that has ended is noticed at once."""
OFTEN = 1.0
"""Seconds between two signs of life, and between two looks for the others' where they take long."""
SHORT = 0.001
"""Seconds between two looks at first; later a tenth of what was waited, so that a wait is at most a tenth too long."""

_used: Counter[str] = Counter()
"""How often each name was used: keys of a store are there once."""
_waited = 0.0
"""Seconds that the main thread has waited for other processes."""


def waited() -> float:
    """Seconds that this process's work has waited for other processes so far, but for what waits inside a collective."""
    return _waited


class Work:
    """Tells the other processes, over the store through which they met, that this one goes on; `wait` waits until all are done.

    Args:
        name: what is done; all processes begin work of the same name equally often.
        store: None: the one by which the processes of the group have met, and nothing is told where this process is alone.
        place: (number of this process, number of processes), where the store is given.
        still: seconds, see `STILL`.
    """

    def __init__(self, name: str, store: Store | None = None, place: tuple[int, int] = (0, 1), still: float = STILL):
        self.name, self.key, self.former = name, name, ""
        if store is None and dist.is_initialized() and dist.get_world_size() > 1:
            there = liveness.here
            store = dist.distributed_c10d._get_default_store() if there is None else there.store
            place = (dist.get_rank(), dist.get_world_size())
            self.key, self.former = f"{name}/{_used[name]}", f"{name}/{_used[name] - 1}"
            _used[name] += 1
        self.store, (self.rank, self.size), self.still = store, place, still
        self.count, self.last = 0, -still
        self.seen: dict[int, tuple[str, float]] = {}
        self.stopped = False
        """Whether a process has asked all to stop, as of the last sign of life."""

    def beat(self, doing: str) -> None:
        """A sign of life, at most every second.

        Raises:
            MeetingError: the others are gone.
        """
        _say(doing)
        if self.store is None or time.monotonic() - self.last < OFTEN:
            return
        self.count, self.last = self.count + 1, time.monotonic()
        with self._lost():
            self.store.set(f"{self.key}/{self.rank}", f"{self.count} {doing}")
            self.stopped = self.store.check([f"{self.key}/stop"])

    def asked(self) -> bool:
        """Whether a process has asked all to stop, as of at most a second ago."""
        self.beat(liveness.current_activity())
        return self.stopped

    def stop(self) -> None:
        """Asks all to stop: see `stopped`."""
        if self.store is not None:
            with self._lost():
                self.store.set(f"{self.key}/stop", "")

    def wait(self, stops: Callable[[], bool] = lambda: False) -> None:
        """Done here; returns when all are.

        Args:
            stops: whether this process, while it waits, asks all to stop.

        Raises:
            MeetingError: one of them has ended, or has given no sign of life for `still` seconds, and what it was doing.
        """
        if self.store is None:
            return
        done = [f"{self.key}/{rank}/done" for rank in range(self.size)]
        with self._lost():
            self.store.set(done[self.rank], "")
            self._until(done, stops)
            for key in (f"{self.former}/{self.rank}", f"{self.former}/{self.rank}/done"):  # all have gone on from there
                self.store.delete_key(key)

    def _until(self, done: list[str], stops: Callable[[], bool]) -> None:
        """Waits for these keys."""
        global _waited
        assert self.store is not None
        since = looked = time.monotonic()
        before = liveness.current_activity()
        while not self.store.check(done):
            if (who := liveness.who_is_gone()) is not None:
                raise ProcessLost(who)
            if time.monotonic() - looked >= OFTEN:
                looked = time.monotonic()
                if stops():
                    self.stop()
                _say(f"waiting for the others after {self.name}")
                self._look([rank for rank, key in enumerate(done) if not self.store.check([key])])
            time.sleep(min(OFTEN, self.still / 10, max(SHORT, (time.monotonic() - since) / 10)))
        if _in_front():
            _waited += time.monotonic() - since
        _say(before)

    def _look(self, busy: list[int]) -> None:
        assert self.store is not None
        for rank in busy:
            now, text = time.monotonic(), self._said(rank)
            if rank not in self.seen or self.seen[rank][0] != text:
                self.seen[rank] = (text, now)
            elif now - self.seen[rank][1] > self.still:
                doing = text.partition(" ")[2]
                raise MeetingError(f"{self.name}: process {rank} of {self.size} has made no progress for {self.still:g} s, at: {doing}")

    def _said(self, rank: int) -> str:
        """The last sign of life in this work, else what the process has said of itself."""
        assert self.store is not None
        for key in (f"{self.key}/{rank}", f"doing/{rank}"):
            if self.store.check([key]):
                return self.store.get(key).decode()
        return "0 nothing yet"

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except DistError as error:
            raise MeetingError(f"{self.name}: the process that hosts the rendezvous has ended; see its own message") from error


def _in_front() -> bool:
    """Not in a thread beside the training, which waits for nobody's work."""
    return threading.current_thread() is threading.main_thread()


def _say(doing: str) -> None:
    """What the process does; work beside the training speaks for itself alone."""
    if _in_front():
        liveness.set_activity(doing)


def wait_for_everyone(after: str) -> None:
    """Waits for the other processes where the next thing is a collective, and work that takes longer than a step was before it.

    All processes call this in the same order. A collective has the limit of `distributed_timeout`; this waits for whoever is alive.

    Args:
        after: the work that was done.

    Raises:
        MeetingError: as `Work.wait`; `ProcessLost`: one of them has ended.
    """
    Work(after).wait()
