"""Barriers after long work of single processes, without the time limit of the process group."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed import DistError, Store

from flow_factory.distributed import liveness
from flow_factory.utils.errors import ProcessLost, RendezvousError

STILL = 3 * 3600.0
"""Seconds without a heartbeat after which a live process counts as stuck. A part of the work, such as a row or a download, takes less. A
process that has ended is noticed at once."""
OFTEN = 1.0
"""Seconds between two heartbeats, and the longest interval between two checks of the others' heartbeats."""
SHORT = 0.001
"""The first interval between two checks in seconds. Later it is a tenth of the time waited, so a wait is at most a tenth too long."""

_used: Counter[str] = Counter()
"""The number of uses of each name, because a key of a store can be used once."""
_waited = 0.0
"""Seconds that the main thread has waited for other processes."""


def waited() -> float:
    """Seconds that this process has waited for others so far, without waits inside collectives."""
    return _waited


class Work:
    """Reports to the other processes, over the store of the rendezvous, that this one makes progress; `wait` waits until all are done.

    Args:
        name: the name of the work. All processes start work of this name the same number of times.
        store: None for the store of the default group. A single process reports nothing.
        place: (rank, number of processes), if the store is given.
        still: the timeout in seconds, see `STILL`.
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
        """Whether a process has asked all to stop, as of the last heartbeat."""

    def beat(self, doing: str) -> None:
        """Sends a heartbeat, at most once a second.

        Raises:
            RendezvousError: the other processes have ended.
        """
        _set_activity(doing)
        if self.store is None or time.monotonic() - self.last < OFTEN:
            return
        self.count, self.last = self.count + 1, time.monotonic()
        with self._lost():
            self.store.set(f"{self.key}/{self.rank}", f"{self.count} {doing}")
            self.stopped = self.store.check([f"{self.key}/stop"])

    def stop_requested(self) -> bool:
        """Whether a process has asked all to stop, as of at most a second ago."""
        self.beat(liveness.current_activity())
        return self.stopped

    def stop(self) -> None:
        """Asks all to stop: see `stopped`."""
        if self.store is not None:
            with self._lost():
                self.store.set(f"{self.key}/stop", "")

    def wait(self, stops: Callable[[], bool] = lambda: False) -> None:
        """Reports that this process is done, and returns when all are.

        Args:
            stops: called while waiting; returns whether this process asks all to stop.

        Raises:
            RendezvousError: a process has ended, or sent no heartbeat for `still` seconds. The message has its last activity.
        """
        if self.store is None:
            return
        done = [f"{self.key}/{rank}/done" for rank in range(self.size)]
        with self._lost():
            self.store.set(done[self.rank], "")
            self._until(done, stops)
            for key in (f"{self.former}/{self.rank}", f"{self.former}/{self.rank}/done"):  # all processes have passed it
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
                _set_activity(f"waiting for the others after {self.name}")
                self._look([rank for rank, key in enumerate(done) if not self.store.check([key])])
            time.sleep(min(OFTEN, self.still / 10, max(SHORT, (time.monotonic() - since) / 10)))
        if _in_front():
            _waited += time.monotonic() - since
        _set_activity(before)

    def _look(self, busy: list[int]) -> None:
        assert self.store is not None
        for rank in busy:
            now, text = time.monotonic(), self._activity(rank)
            if rank not in self.seen or self.seen[rank][0] != text:
                self.seen[rank] = (text, now)
            elif now - self.seen[rank][1] > self.still:
                doing = text.partition(" ")[2]
                raise RendezvousError(f"{self.name}: process {rank} of {self.size} has made no progress for {self.still:g} s, at: {doing}")

    def _activity(self, rank: int) -> str:
        """The last heartbeat of a process in this work, else its last activity."""
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
            raise RendezvousError(f"{self.name}: the process that hosts the rendezvous has ended; see its own message") from error


def _in_front() -> bool:
    """Whether this is the main thread. Background threads do not count as waiting."""
    return threading.current_thread() is threading.main_thread()


def _set_activity(doing: str) -> None:
    """Sets the activity of the process, but not from background threads."""
    if _in_front():
        liveness.set_activity(doing)


def wait_for_everyone(after: str) -> None:
    """Waits for the other processes after long work, before a collective.

    All processes call this in the same order. A collective is limited by `distributed_timeout`, while this waits as long as all are alive.

    Args:
        after: the name of the work.

    Raises:
        RendezvousError: see `Work.wait`; `ProcessLost` if a process has ended.
    """
    Work(after).wait()
