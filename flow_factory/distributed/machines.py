"""The launchers of a run's machines: where a process or a launcher has died all restart, and agree on which restart it is.

What they agree by is on the store that the launcher of machine 0 serves: the number of the attempt, which only grows, and who is there.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

from torch.distributed import DistError, PrefixStore, Store
from torch.distributed.elastic.rendezvous.api import (
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

from flow_factory.distributed.rendezvous import Rendezvous, enter
from flow_factory.distributed.threads import OWN_LAUNCHER
from flow_factory.utils.errors import MeetingError
from flow_factory.utils.terminal import note

SILENT = 5.0
"""Seconds without a sign of life after which a launcher is dead; living ones give several a second."""
LEAVING = 30.0
"""Seconds for which machine 0 stays when all are done, for those that have not seen it."""
OFTEN = 0.2


class Machines(RendezvousHandler):
    """This machine's launcher among the others.

    Args:
        place: which one this is, and how long all wait for each other at the start.
        max_restarts: of all machines together.
        again: seconds for which they wait for each other later, longer than a collective may take: so long may processes of another machine
            not notice.
        told: what all must have been started with.
        ended: whether the run has all its epochs: a process may have died on its way out, and the others have left.
    """

    def __init__(self, place: Rendezvous, max_restarts: int, again: float, told: str, ended: Callable[[], bool] = lambda: False):
        self.place, self.max_restarts, self.again, self.ended = place, max_restarts, again, ended
        self.token = secrets.token_hex(8)
        self.mine = f"{self.token} {told}"
        self.store: Store | None = None
        self.attempt = -1
        """The one that this machine's processes are of."""

    @property
    def left(self) -> int:
        """How many restarts are left."""
        return self.max_restarts - self.attempt

    def meet(self) -> None:
        """Waits until all machines are at the same attempt, a later one than this machine's last.

        Raises:
            MeetingError: some did not come, another one has this number, or no restarts are left.
            RendezvousGracefulExitError: the run has ended meanwhile.
        """
        timeout = self.place.timeout if self.attempt < 0 else self.again
        wanted, deadline = self.attempt + 1, time.monotonic() + timeout
        if wanted and self.ended():
            note("a process has died, and the run has ended: nothing is left to do")
            with suppress(DistError):
                if self.store is not None:
                    self._ask(self.store, wanted)
                    self.store.set("ended", "")
            self._end()
        while True:
            try:
                if self.store is None:
                    self.store = enter(replace(self.place, timeout=int(timeout)), self.place.number == 0)
                self.attempt = self._join(self.store, wanted, timeout)
                return
            except DistError as error:
                self.store = None
                if not self.max_restarts or time.monotonic() > deadline:
                    raise MeetingError(f"{self.place}: machine 0 left before all had come; its own message says why") from error

    def num_nodes_waiting(self) -> int:
        """Whether others are at a later attempt, or machine 0 has left: asked again and again while the processes run."""
        with suppress(DistError):
            if self.store is not None:
                self._beat(self.store)
                return int(_number(self.store) > self.attempt)
        self.store = None
        return int(self.left > 0)

    def all_done(self) -> bool:
        """Whether all machines' processes have ended well, as this one's have; once the run has ended, who is dead counts as done."""
        with suppress(DistError):
            if self.store is not None:
                self.store.set(self._done(self.attempt)[self.place.number], "")
                others = [k for k, key in enumerate(self._done(self.attempt)) if not self.store.check([key])]
                return not others or (self.ended() and not any(self._is_there(self.store, k) for k in others))
        self.store = None
        return self.left == 0

    def leave(self) -> None:
        """When all are done: the store stays until the others have seen it."""
        with suppress(DistError):
            if self.store is not None:
                gone, end = self.store.add("left", int(self.place.number > 0)), time.monotonic() + LEAVING
                while self.place.number == 0 and gone < self.place.count - 1 and time.monotonic() < end:
                    time.sleep(OFTEN)
                    gone = self.store.add("left", 0)

    def _end(self) -> NoReturn:
        """In the place of a restart that the run does not need any more."""
        self.leave()
        raise RendezvousGracefulExitError("the run has ended")

    # -- one meeting ------------------------------------------------------------------------------------------------------------

    def _join(self, store: Store, wanted: int, timeout: float) -> int:
        """The attempt at which all are: at least the wanted one, and later where somebody has asked for that meanwhile."""
        self._ask(store, wanted)
        attempt, deadline = -1, 0.0
        keys: list[str] = []
        while not keys or not store.check(keys):
            if store.check(["ended"]):
                self._end()
            if (now := _number(store)) != attempt:
                attempt, deadline = now, time.monotonic() + timeout
                keys = self._come(store, attempt)
            if time.monotonic() > deadline:
                missing = ", ".join(str(k) for k, key in enumerate(keys) if not store.check([key]))
                raise MeetingError(f"{self.place}: waited {timeout:g} s, and these did not come: {missing}")
            self._beat(store)
            time.sleep(OFTEN)
        self._require_alike([store.get(key).decode() for key in keys])
        return attempt

    def _ask(self, store: Store, attempt: int) -> None:
        """Makes the number at least this one."""
        if attempt > self.max_restarts:
            raise MeetingError(f"{self.place}: another restart is needed, but --max_restarts {self.max_restarts} are used up")
        store.compare_set("attempt", "", "0")
        while (now := _number(store)) < attempt:
            store.compare_set("attempt", str(now), str(attempt))

    def _come(self, store: Store, attempt: int) -> list[str]:
        """Is there for an attempt, or asks for the next one in the place of a launcher that has died; the keys of all that are to come."""
        keys = [f"machine/{attempt}/{k}" for k in range(self.place.count)]
        self._beat(store)
        holder = store.compare_set(keys[self.place.number], "", self.mine).decode()
        if holder == self.mine:
            return keys
        if not self.max_restarts or _lives(store, holder.partition(" ")[0]):
            raise MeetingError(f"{self.place}: another one has this rank, or was started again while the others continued")
        if any(store.check([key]) for key in self._done(attempt)):
            store.set(self._done(attempt)[self.place.number], "")
            raise RendezvousGracefulExitError("the run has ended")
        self._ask(store, attempt + 1)
        return []

    def _require_alike(self, others: Sequence[str]) -> None:
        mine = self.mine.partition(" ")[2]
        for number, theirs in enumerate(other.partition(" ")[2] for other in others):
            if theirs != mine:
                raise MeetingError(f"{self.place}: machine {number} was started with {theirs}, and this one with {mine}; start all alike")

    def _is_there(self, store: Store, number: int) -> bool:
        """Whether another machine's launcher, of this attempt, lives."""
        return _lives(store, store.get(f"machine/{self.attempt}/{number}").decode().partition(" ")[0])

    def _done(self, attempt: int) -> list[str]:
        return [f"done/{attempt}/{k}" for k in range(self.place.count)]

    def _beat(self, store: Store) -> None:
        store.add(f"alive/{self.token}", 1)

    # -- what torch's agent asks -------------------------------------------------------------------------------------------------

    def next_rendezvous(self) -> RendezvousInfo:
        self.meet()
        assert self.store is not None
        found = RendezvousStoreInfo(self.place.address if self.place.number else "127.0.0.1", self.place.port)
        return RendezvousInfo(PrefixStore(f"agents/{self.attempt}", self.store), self.place.number, self.place.count, found)

    def get_backend(self) -> str:
        return "flow-factory"

    def get_run_id(self) -> str:
        return OWN_LAUNCHER

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def shutdown(self) -> bool:
        return True

    @property
    def use_agent_store(self) -> bool:
        return True


def _number(store: Store) -> int:
    return int(store.get("attempt"))


def _lives(store: Store, token: str) -> bool:
    """Whether a launcher gives signs of life."""
    beats, end = store.add(f"alive/{token}", 0), time.monotonic() + SILENT
    while time.monotonic() < end:
        time.sleep(OFTEN)
        if store.add(f"alive/{token}", 0) != beats:
            return True
    return False
