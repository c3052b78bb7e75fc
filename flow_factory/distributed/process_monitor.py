"""The monitor of a run's processes: which are alive, and what each is doing.

Each process keeps a connection to the first one. The kernel closes it when the process ends, however it ends and even if its Python is
blocked. So a death is known at once, and a busy process is distinguished from a dead one. Activities are on the store of the rendezvous.
"""

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from flow_factory.distributed.launch import already_reported
from flow_factory.utils.background import busy
from flow_factory.utils.errors import RendezvousError, timed_out

if TYPE_CHECKING:
    from torch.distributed import Store


STUCK = 15.0
"""Seconds after another's death within which a blocked process ends itself, because a collective may then block for ever."""
GRACE = 2.0
"""Seconds within which a death, or the failure of a collective, is known everywhere."""
START = "its start"
LEFT, FAILED = "left", "failed"
DIED = "lost the connection to another process, which has died"
DISCONNECTED = RuntimeError
"""The error of a store whose server has ended. It is the base class of torch's DistError, whose import takes a second."""
KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))
"""Options with which a machine without power or network counts as lost after half a minute."""


class ProcessMonitor:
    """Reports this process to the others, and watches them.

    Args:
        store: the store of the rendezvous. Several threads use it.
        address: the address of the first process's machine.
        limit: the timeout of a collective in seconds: `distributed_timeout`.
    """

    def __init__(self, store: "Store", rank: int, size: int, address: str, limit: float):
        self.store, self.rank, self.size, self.limit = store, rank, size, limit
        self.began = time.monotonic()
        self.now = ""
        """The activity of this process."""
        self.gone: dict[int, str] = {}
        """Rank of a process that has ended before the run -> its last word, or ""."""
        self.connections: list[socket.socket] = []
        self.closing = False
        if rank == 0:
            self._receive()
        else:
            self._join(address)

    def set_activity(self, doing: str) -> None:
        """Sets the activity of this process."""
        if doing == self.now:
            return
        self.now = doing
        with _host_there():
            self.store.set(f"doing/{self.rank}", f"{time.monotonic() - self.began:.1f} {doing}")

    def doing(self, rank: int) -> str:
        """The activity of a process, and since when."""
        with suppress(DISCONNECTED):
            what, since = activity_of(self.store, rank)
            return f"{what}, since {max(0.0, time.monotonic() - self.began - since):.0f} s"
        return START

    def who_is_gone(self) -> str | None:
        """A sentence about a process that has ended; None if there is none."""
        if not self.gone:
            return None
        rank, word = next(iter(self.gone.items()))
        how = "has failed; see its own message. It was at" if word == FAILED else "has died, at"
        return f"process {rank} of {self.size} {how}: {self.doing(rank)}"

    def why(self, error: BaseException) -> str:
        """The reason why a collective has failed: the process that has died, or those that did not join in time."""
        if timed_out(error):
            with suppress(DISCONNECTED):
                self.store.set(f"failed/{self.rank}", "")
        end = time.monotonic() + GRACE
        while time.monotonic() < end and not self.gone:
            time.sleep(0.05)
        if self.gone or not timed_out(error):
            return self.who_is_gone() or DIED
        return f"a collective has not ended within distributed_timeout: {self.limit:g} s; {self._missing()}"

    def _missing(self) -> str:
        """The processes with another activity than this one, which have not failed too. The others wait in the same collective."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        with suppress(DISCONNECTED):
            others = [rank for rank in others if not self.store.check([f"failed/{rank}"])] or others
        activities = {rank: self.doing(rank) for rank in others}
        away = {rank: what for rank, what in activities.items() if what.rpartition(",")[0] != self.now} or activities
        few = [f"process {rank} of {self.size} was at: {what}" for rank, what in list(away.items())[:3]]
        return "; ".join(few) + (f"; and {len(away) - 3} more" if len(away) > 3 else "")

    def leave(self, word: str = LEFT) -> None:
        """Called before this process ends: it has finished, or has reported its failure itself."""
        for connection in self.connections:
            with suppress(OSError):
                connection.sendall(f"{word}\n".encode())
        self.closing = self.closing or word == LEFT

    def close(self) -> None:
        """Closes the connections that a forked child would keep open."""
        while self.connections:
            os.close(self.connections.pop().detach())  # `close` would wait for the files that threads read

    # -- connections -----------------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        dual = socket.has_dualstack_ipv6()
        server = socket.create_server(("", 0), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual, backlog=self.size)
        key = secrets.token_hex(8)  # it identifies connections of this run
        self.connections.append(server)
        with _host_there():
            self.store.set("presence", f"{server.getsockname()[1]} {key}")

        def accept() -> None:
            with suppress(OSError):
                while True:
                    _start(self._follow, server.accept()[0], key)

        _start(accept)

    def _follow(self, connection: socket.socket, key: str) -> None:
        """On the first process: reads the connection of another one until it closes."""
        _keep_alive(connection)
        last = ""
        with connection.makefile() as lines, suppress(OSError):
            hello, _, number = lines.readline().strip().partition(" ")
            if hello != key:
                return
            self.connections.append(connection)
            for line in lines:
                last = line.strip()
        self._lost(int(number), last)

    def _join(self, address: str) -> None:
        with _host_there():
            port, _, key = self.store.get("presence").decode().partition(" ")
        try:
            connection = socket.create_connection((address, int(port)), timeout=60)
            connection.settimeout(None)
            connection.sendall(f"{key} {self.rank}\n".encode())
        except OSError as error:
            where = f"process 0, at {address}:{port}"
            raise RendezvousError(f"process {self.rank} of {self.size} cannot reach {where} ({error.strerror or error})") from error
        _keep_alive(connection)
        self.connections.append(connection)

        def listen() -> None:
            last = ""
            with connection.makefile() as lines, suppress(OSError):
                for line in lines:
                    number, _, word = line.strip().partition(" ")
                    if number.isdecimal():
                        self._lost(int(number), word)
                    else:
                        last = number
            self._lost(0, last)

        _start(listen)

    def _lost(self, rank: int, word: str) -> None:
        """Handles the end of a process. The first process tells the others. Blocked processes end themselves."""
        if word == LEFT or self.closing or rank in self.gone:
            return
        self.gone[rank] = word
        if self.rank == 0:
            for connection in self.connections[1:]:
                with suppress(OSError):
                    connection.sendall(f"{rank} {word}\n".encode())
        if len(self.gone) == 1:
            _start(self._end_if_stuck)

    def _end_if_stuck(self) -> None:
        main, before, since = threading.main_thread().ident, None, time.monotonic()
        while not self.closing:
            frame = sys._current_frames().get(main or 0)
            here = (id(frame), frame and frame.f_lasti)
            if here != before or busy():
                before, since = here, time.monotonic()
            elif time.monotonic() - since > STUCK:
                if not already_reported():
                    print(f"error: {self.who_is_gone()}", file=sys.stderr, flush=True)
                os._exit(1)
            del frame  # a frame keeps all of its objects alive
            time.sleep(1)


def activity_of(store: "Store", rank: int) -> tuple[str, float]:
    """(last activity of a process, its time in seconds since the rendezvous)."""
    if not store.check([key := f"doing/{rank}"]):
        return START, 0.0
    since, _, doing = store.get(key).decode().partition(" ")
    return doing, float(since)


@contextmanager
def _host_there() -> Iterator[None]:
    """Turns errors of the store into a RendezvousError."""
    try:
        yield
    except DISCONNECTED as error:
        raise RendezvousError("the process that hosts the rendezvous has ended; see its own message") from error


def _start(do: object, *given: object) -> None:
    threading.Thread(target=do, args=given, daemon=True, name="presence").start()  # type: ignore[arg-type]


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
