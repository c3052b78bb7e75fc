"""The launchers of a run's machines. After the death of a process or a launcher all restart, and agree on the number of the restart.

They agree over a store that the launcher of machine 0 serves. It has the number of the attempt, which only grows, and the launchers.
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
from flow_factory.utils.errors import RendezvousError
from flow_factory.utils.terminal import note

SILENT = 5.0
"""Seconds without a heartbeat after which a launcher counts as dead. A live one sends several per second."""
LEAVING = 30.0
"""Seconds for which machine 0 keeps the store after the end, for launchers that have not noticed it."""
OFTEN = 0.2


class Machines(RendezvousHandler):
    """The launcher of this machine, as one of several.

    Args:
        place: the number of this machine, and the timeout of the first rendezvous.
        max_restarts: the number of restarts of all machines together.
        again: the timeout of later rendezvous in seconds. It must exceed that of a collective, because other machines may notice a death
            only then.
        arguments: the arguments with which all launchers must have been started.
        ended: returns whether the run has nothing left to do. Then a process may have died while it exited, and the others have left.
    """

    def __init__(self, place: Rendezvous, max_restarts: int, again: float, arguments: str, ended: Callable[[], bool] = lambda: False):
        self.place, self.max_restarts, self.again, self.ended = place, max_restarts, again, ended
        self.token = secrets.token_hex(8)
        self.mine = f"{self.token} {arguments}"
        self.store: Store | None = None
        self.attempt = -1
        """The attempt of this machine's processes."""

    @property
    def left(self) -> int:
        """The number of restarts left."""
        return self.max_restarts - self.attempt

    def meet(self) -> None:
        """Waits until all machines are at the same attempt, later than this machine's last.

        Raises:
            RendezvousError: some did not join, another one has this number, or no restarts are left.
            RendezvousGracefulExitError: the run has ended.
        """
        timeout = self.place.timeout if self.attempt < 0 else self.again
        wanted, deadline = self.attempt + 1, time.monotonic() + timeout
        if wanted and self.ended():
            note("a process has died, and the run has ended: nothing is left to do")
            with suppress(DistError):
                if self.store is not None:
                    self._request_start(self.store, wanted)
                    self.store.set("ended", "")
            self._end()
        while True:
            try:
                if self.store is None:
                    self.store = enter(replace(self.place, timeout=int(timeout)), self.place.number == 0, self._look)
                self.attempt = self._join(self.store, wanted, timeout)
                return
            except DistError as error:
                self.store = None
                if not self.max_restarts or time.monotonic() > deadline:
                    raise RendezvousError(f"{self.place}: machine 0 left before all had joined; see its own message") from error

    def num_nodes_waiting(self) -> int:
        """1 if others are at a later attempt, or machine 0 has left. Torch polls this while the processes run."""
        with suppress(DistError):
            if self.store is not None:
                self._beat(self.store)
                return int(_number(self.store) > self.attempt)
        self.store = None
        return int(self.left > 0)

    def all_done(self) -> bool:
        """Whether the processes of all machines have succeeded. Once the run has ended, a dead launcher counts as done."""
        with suppress(DistError):
            if self.store is not None:
                self.store.set(self._done(self.attempt)[self.place.number], "")
                others = [k for k, key in enumerate(self._done(self.attempt)) if not self.store.check([key])]
                return not others or (self.ended() and not any(self._is_there(self.store, k) for k in others))
        self.store = None
        return self.left == 0

    def leave(self) -> None:
        """Called at the end. Machine 0 keeps the store until the others have noticed."""
        with suppress(DistError):
            if self.store is not None:
                gone, end = self.store.add("left", int(self.place.number > 0)), time.monotonic() + LEAVING
                while self.place.number == 0 and gone < self.place.count - 1 and time.monotonic() < end:
                    time.sleep(OFTEN)
                    gone = self.store.add("left", 0)

    def _look(self) -> None:
        """Ends if the run has ended meanwhile: the machines that are waited for have left, and nothing is left to do."""
        if self.ended():
            self._end()

    def _end(self) -> NoReturn:
        """Ends instead of a restart that the run no longer needs."""
        self.leave()
        raise RendezvousGracefulExitError("the run has ended")

    # -- one rendezvous ---------------------------------------------------------------------------------------------------------

    def _join(self, store: Store, wanted: int, timeout: float) -> int:
        """Joins, and returns the attempt at which all are: the wanted one, or a later one that another launcher has requested."""
        self._request_start(store, wanted)
        attempt, deadline = -1, 0.0
        keys: list[str] = []
        while not keys or not store.check(keys):
            if store.check(["ended"]):
                self._end()
            self._look()
            if (now := _number(store)) != attempt:
                attempt, deadline = now, time.monotonic() + timeout
                keys = self._register(store, attempt)
            if time.monotonic() > deadline:
                missing = ", ".join(str(k) for k, key in enumerate(keys) if not store.check([key]))
                raise RendezvousError(f"{self.place}: waited {timeout:g} s, but these did not join: {missing}")
            self._beat(store)
            time.sleep(OFTEN)
        self._require_alike([store.get(key).decode() for key in keys])
        return attempt

    def _request_start(self, store: Store, attempt: int) -> None:
        """Raises the number of the attempt to at least this one."""
        if attempt > self.max_restarts:
            raise RendezvousError(f"{self.place}: another restart is needed, but --max_restarts {self.max_restarts} are used up")
        store.compare_set("attempt", "", "0")
        while (now := _number(store)) < attempt:
            store.compare_set("attempt", str(now), str(attempt))

    def _register(self, store: Store, attempt: int) -> list[str]:
        """Registers for an attempt, or requests the next one if a dead launcher holds the place. Returns the keys of all launchers."""
        keys = [f"machine/{attempt}/{k}" for k in range(self.place.count)]
        self._beat(store)
        holder = store.compare_set(keys[self.place.number], "", self.mine).decode()
        if holder == self.mine:
            return keys
        if not self.max_restarts or _lives(store, holder.partition(" ")[0]):
            raise RendezvousError(f"{self.place}: another process has this rank, or this one was restarted while the others continued")
        if self.ended() or store.check([self._done(attempt)[0]]):  # another machine's processes end before the main one
            store.set(self._done(attempt)[self.place.number], "")
            raise RendezvousGracefulExitError("the run has ended")
        self._request_start(store, attempt + 1)
        return []

    def _require_alike(self, others: Sequence[str]) -> None:
        mine = self.mine.partition(" ")[2]
        for number, theirs in enumerate(other.partition(" ")[2] for other in others):
            if theirs != mine:
                raise RendezvousError(
                    f"{self.place}: machine {number} was started with {theirs}, and this one with {mine}; start all alike"
                )

    def _is_there(self, store: Store, number: int) -> bool:
        """Whether the launcher of another machine is alive in this attempt."""
        return _lives(store, store.get(f"machine/{self.attempt}/{number}").decode().partition(" ")[0])

    def _done(self, attempt: int) -> list[str]:
        return [f"done/{attempt}/{k}" for k in range(self.place.count)]

    def _beat(self, store: Store) -> None:
        store.add(f"alive/{self.token}", 1)

    # -- the interface of torch's agent ------------------------------------------------------------------------------------------

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
    """Whether a launcher sends heartbeats."""
    beats, end = store.add(f"alive/{token}", 0), time.monotonic() + SILENT
    while time.monotonic() < end:
        time.sleep(OFTEN)
        if store.add(f"alive/{token}", 0) != beats:
            return True
    return False
