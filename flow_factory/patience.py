"""Long work that each process does alone, and that no time limit of the process group is meant for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed import DistError, Store

from flow_factory.errors import MeetingError

STILL = 1800.0
"""Seconds without a sign of life after which a process counts as dead: a part of the work, such as one row, takes less."""
OFTEN = 1.0
"""Seconds between two signs of life, and between two looks for the others'."""


class Work:
    """Tells the other processes, over the store through which they met, that this one goes on; `wait` waits until all are done.

    Args:
        name: what is done, different for each piece of work.
        store: None: the process group's, and nothing is told where this process is alone.
        place: (number of this process, number of processes), where the store is given.
        still: seconds, see `STILL`.
    """

    def __init__(self, name: str, store: Store | None = None, place: tuple[int, int] = (0, 1), still: float = STILL):
        if store is None and dist.is_initialized():
            store, place = dist.distributed_c10d._get_default_store(), (dist.get_rank(), dist.get_world_size())
        self.name, self.store, (self.rank, self.size), self.still = name, store, place, still
        self.count, self.last = 0, -still
        self.seen: dict[int, tuple[str, float]] = {}
        self.stopped = False
        """Whether a process has asked all to stop, as of the last sign of life."""

    def beat(self, doing: str) -> None:
        """A sign of life, at most every second.

        Raises:
            MeetingError: the others are gone.
        """
        if self.store is None or time.monotonic() - self.last < OFTEN:
            return
        self.count, self.last = self.count + 1, time.monotonic()
        with self._lost():
            self.store.set(f"{self.name}/{self.rank}", f"{self.count} {doing}")
            self.stopped = self.store.check([f"{self.name}/stop"])

    def stop(self) -> None:
        """Asks all to stop: see `stopped`."""
        if self.store is not None:
            with self._lost():
                self.store.set(f"{self.name}/stop", "")

    def wait(self) -> None:
        """Done here; returns when all are.

        Raises:
            MeetingError: one of them has given no sign of life for `still` seconds, and what it was doing; or the others are gone.
        """
        if self.store is None:
            return
        done = [f"{self.name}/{rank}/done" for rank in range(self.size)]
        with self._lost():
            self.store.set(done[self.rank], "")
            while not self.store.check(done):
                self._look([rank for rank, key in enumerate(done) if not self.store.check([key])])
                time.sleep(min(OFTEN, self.still / 10))

    def _look(self, busy: list[int]) -> None:
        assert self.store is not None
        for rank in busy:
            key, now = f"{self.name}/{rank}", time.monotonic()
            text = self.store.get(key).decode() if self.store.check([key]) else "0 nothing yet"
            if rank not in self.seen or self.seen[rank][0] != text:
                self.seen[rank] = (text, now)
            elif now - self.seen[rank][1] > self.still:
                doing = text.partition(" ")[2]
                raise MeetingError(f"{self.name}: process {rank} of {self.size} has stood still for {self.still:g} s, at: {doing}")

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except DistError as error:
            raise MeetingError(f"{self.name}: the process at which all meet has left; its own message says why") from error
